"""Figures that others published or that were measured before, as ``anchors.csv`` beside the networks has them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from harness import ROOT

sys.path.append(str(ROOT))
from tests import published as reader  # the reader of the tests, which are no package of lipray

SOURCES = {
    "GLipSDP": "Pauli, Gramlich and Allgöwer (2024), arXiv 2405.01125",
    "LipSDP-Neuron": "LipSDP of Fazlyab et al. (2019), in the tables of Pauli, Gramlich and Allgöwer (2024)",
}
OTHER_NETWORK = {
    ("FC-R18", "GLipSDP"): "bounds the network without the ReLU after each addition, which is another network: no "
    "bound of this one",
}
"""Figures that are not of the network as it is here, and why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of ``anchors.csv``."""

    method: str
    value: float
    published: bool
    seconds: float | None
    note: str


def here() -> bool:
    """Whether the networks and their figures are here."""
    return reader.here()


def output_of(name: str) -> str:
    """What ``anchors.csv`` calls the output of a network that is bounded."""
    row = reader.catalogue()[name].get("output_row")
    return "all outputs" if row is None else f"row {row}"


def figures(name: str) -> tuple[Figure, ...]:
    """What is known of a network at the output that is bounded."""
    if not here() or name not in reader.catalogue():
        return ()
    output = output_of(name)
    return tuple(
        Figure(
            row["method"],
            float(row["value"]),
            row["published_or_measured"].startswith("published"),
            float(row["cpu_s"]) if row["cpu_s"] else None,
            row["note"],
        )
        for row in reader.anchors()
        if (row["network"], row["output"]) == (name, output)
    )


def known_lipsdp(name: str) -> float | None:
    """The LipSDP-Neuron value known of a network, ``None`` where none is."""
    for figure in figures(name):
        if figure.method in {"LipSDP-Neuron", "LipSDP-Neuron certified"}:
            return figure.value
        if figure.method.startswith("LipSDP-Neuron (primal-dual"):
            return figure.value
    return None


def known_exact(name: str) -> float | None:
    """The constant itself, where it is known."""
    return next((figure.value for figure in figures(name) if figure.method.startswith("exact")), None)

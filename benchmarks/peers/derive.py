"""What follows from a network's rows: quotients by the product, by LipSDP, and by what is attained."""

from __future__ import annotations

from collections.abc import Mapping

from harness import Row

from peers.answer import PUBLISHED
from peers.methods import LOWER

PRODUCT = "lipray, product"
SOLVERS = "LipSDP, "
"""How the names of the solvers' rows begin."""
KNOWN = "LipSDP, known"
"""The row of the value that ``anchors.csv`` has."""


def valid(row: Row) -> float | None:
    """The bound that a row stands for: what is proven where something is, otherwise its own."""
    if row.get("other_network"):
        return None
    proven = row.get("proven")
    return proven if proven is not None else row.get("bound")


def lipsdp_of(rows: Mapping[str, Row]) -> float | None:
    """The best LipSDP-Neuron value that is known without lipray's own optimisers.

    That of ``anchors.csv`` where there is one; otherwise the smallest that is proven from a solver's multipliers.
    """
    if KNOWN in rows:
        return float(rows[KNOWN]["bound"])
    return min((float(row["proven"]) for name, row in rows.items() if at_its_end(name, row)), default=None)


def at_its_end(name: str, row: Row) -> bool:
    """Whether a row's multipliers are those of a solver's optimum: not at SCS's own tolerances, nor at a limit.

    SDPA calls an optimum of that kind inaccurate where it lacks a digit of its own tolerance; it knows no limit.
    """
    if row.get("proven") is None or not name.startswith(SOLVERS) or name.endswith("SCS"):
        return False
    return row["ended"] == "optimal" or (name.endswith("SDPA") and row["ended"].startswith("optimal"))


def shown(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows of a network with their quotients added; those that could not be tried are left out."""
    product = rows.get(PRODUCT, {}).get("bound")
    lipsdp = lipsdp_of(rows)
    lower = rows.get(LOWER, {}).get("bound") or None
    found: dict[str, Row] = {}
    for name, row in rows.items():
        if row.get("left_out"):
            continue
        bound = row.get("bound")
        values = dict(row)
        if bound is not None and name != LOWER:
            values["of_product"] = None if not product else bound / product
            values["of_lipsdp"] = None if not lipsdp else bound / lipsdp
            safe = valid(row)
            values["gap"] = None if lower is None or safe is None else safe / lower
        if row.get("kind") == PUBLISHED:
            values["seconds"] = values["cpu"] = values["peak"] = None
        found[name] = values
    return found

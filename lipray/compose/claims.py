"""From a composed bound to its certificate file: the plan, the multipliers, and what is claimed of every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lipray import __version__
from lipray.certify.certificate import Certificate
from lipray.compose.bound import Bound
from lipray.compose.compose import TILED
from lipray.errors import SolveError
from lipray.model.network import Network
from lipray.partition.plan import Block, Plan
from lipray.partition.worklist import Worklist
from lipray.verify.identity import graph_hash, weights_hash
from lipray.verify.record import SCHEMA_VERSION, array_name

Rows = Sequence[int] | None
Pairs = Sequence[tuple[int, int]] | None


def claims(
    network: Network, plan: Plan, work: Worklist, bound: Bound, *, rows: Rows = None, pairs: Pairs = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The fields of a certificate and its arrays, for ``lipray.verify.record.encode``.

    Args:
        network: the whole network, its outputs selected.
        plan: how it was cut.
        work: ``worklist(plan)``.
        bound: what was composed from the plan's certificates.
        rows: the output rows that were selected from the model.
        pairs: the pairs of outputs whose differences were.

    Returns:
        ``None`` where the bound is infinite: there is nothing to prove.

    Raises:
        SolveError: a bound is used whose proof is not there, which is a defect.
    """
    if not np.isfinite([bound.upper, *(block.upper for block in bound.blocks)]).all():
        return None
    problems = _Problems(bound.certificate)
    blocks = []
    first = 0
    for block, own, product in zip(plan.blocks, bound.blocks, work.products, strict=True):
        last = first + len(block.network.nodes) - 1
        blocks.append(
            {
                "first": first,
                "last": last,
                "composition": own.source if own.source in TILED else "whole",
                "tiles": _tiles(block, own.source, product, bound.certificate, work, problems),
                "claim": own.upper,
            }
        )
        first = last
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "lipray": __version__,
        "model": {
            "input_shape": list(network.input_shape),
            "output_shape": list(network.output_shape),
            "graph": graph_hash(network),
            "weights": weights_hash(network),
        },
        "selection": {
            "rows": None if rows is None else list(rows),
            "pairs": None if pairs is None else [list(pair) for pair in pairs],
        },
        "problems": problems.parts,
        "blocks": blocks,
        "claim": bound.upper,
    }
    return fields, problems.arrays


def _tiles(
    block: Block,
    source: str,
    product: str,
    certificates: Mapping[str, Certificate],
    work: Worklist,
    problems: _Problems,
) -> list[dict[str, Any]]:
    whole = work.by_key[product].network
    if source == "product":
        return [{"window": [], "problem": problems.add(product, whole), "restricted": False}]
    tiles = []
    for tile in block.tiles:
        key = work.tiles[tile.key]
        restricted = key not in certificates
        problem = problems.add(product, whole) if restricted else problems.add(key, tile.network, tile.key)
        tiles.append({"window": [list(span) for span in tile.output], "problem": problem, "restricted": restricted})
    return tiles


class _Problems:
    """The sub-problems that are used, each once, in the order of their use."""

    def __init__(self, certificates: Mapping[str, Certificate]) -> None:
        self.parts: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._certificates = certificates
        self._numbers: dict[str, int] = {}

    def add(self, key: str, network: Network, content: str | None = None) -> int:
        """The number of a sub-problem, which is written down when it is first met."""
        if key in self._numbers:
            return self._numbers[key]
        certificate = self._certificates[key]
        proof = certificate.proof
        if proof is None:
            raise SolveError(network.nodes[-1].name, f"the bound {certificate.bound} came without its proof")
        number = self._numbers[key] = len(self.parts)
        self.parts.append(
            {
                "content": content or network.content_hash(),
                "method": certificate.method,
                "kind": proof.kind,
                "cut": proof.cut,
                "window": proof.window,
                "sides": [list(sides) for sides in proof.sides],
                "windows": [[list(span) for span in window] for window in proof.windows],
                "layers": [{"name": name, "width": width} for name, width in proof.layers],
                "claim": certificate.bound,
            }
        )
        for layer, values in enumerate(proof.multipliers):
            self.arrays[array_name(number, layer)] = values
        return number

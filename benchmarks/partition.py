"""Bound and time against the partition: tiles per axis and activation layers per block.

    .venv/bin/python benchmarks/partition.py [--repeat 3] [--only cnn1] [--short]

In one process, without a lower bound; every sub-problem has at most ``LIMIT`` seconds.
"""

from __future__ import annotations

import sys
from functools import partial

import harness
from harness import Column, Row
from speed import DIGITS, example

from lipray.config import EstimateConfig
from lipray.model.network import Network
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.serial import SerialExecutor

LIMIT = 60.0
CUTS = {
    "digits_cnn": ((1, None), (2, None), (4, None), (1, 1)),
    "cnn1": ((1, None), (2, None), (4, None), (1, 2), (1, 1)),
}
"""Per network: tiles per axis and activation layers per block (None: as many as fit)."""

COLUMNS = (
    Column("network", "network"),
    Column("tiles per axis", "factor", lambda value: f"{value}"),
    Column("layers per block", "depth"),
    Column("blocks", "blocks", lambda value: f"{value}"),
    Column("sub-problems", "subproblems", lambda value: f"{value}"),
    Column("neurons of the largest", "neurons", lambda value: f"{value:,}"),
    Column("bound", "bound", harness.upper),
    Column("overlap", "overlap", harness.upper),
    Column("sum", "sum", harness.upper),
    Column("product", "product", harness.upper),
    Column("of the product", "of_product", harness.ratio),
    Column("s", "seconds", harness.seconds),
    Column("longest task, s", "longest", harness.seconds),
)

NOTES = f"""\
Method ellipsoid. `bound`: what `lipray estimate` reports: per block the smaller of its composed bound and its
product bound, blocks by their product. `overlap`: tiles composed by how their fields overlap, with no help from the
product; `sum`: tiles by the root of the sum of squares (Sulehman and Mu). Where a block is not tiled the two are its
bound. `product`: the closed form, cut the same way. A block of one linear operator is never tiled, so one layer per
block has one row. `s`: all sub-problems one after the other, what a cluster divides; `longest task`: what it cannot.
At most {LIMIT:.0f} s per sub-problem.
"""


def networks() -> dict[str, Network]:
    """The networks of ``examples/`` this benchmark cuts."""
    return {
        "digits_cnn": example(DIGITS, "digits_cnn.safetensors", (1, 8, 8)),
        "cnn1": example("cnn1", "cnn1_digits28.safetensors", None),
    }


def estimate(network: Network, factor: int, depth: int | None) -> RunOutcome:
    """One estimate with the partition asked for."""
    config = EstimateConfig(
        partition_factor=factor,
        block_depth=depth,
        composition="overlap",
        time_limit=LIMIT,
        lower_starts=0,
        executor="serial",
    )
    return estimate_network(network, config, SerialExecutor())


def measure(name: str, network: Network, factor: int, depth: int | None, repeat: int) -> Row:
    """One row."""
    outcome, seconds = harness.timed(lambda: estimate(network, factor, depth), repeat)
    bound, tiles = outcome.bound, [tile for block in outcome.plan.blocks for tile in block.tiles]
    return {
        "network": name,
        "factor": factor,
        "depth": "whole" if depth is None else str(depth),
        "blocks": len(bound.blocks),
        "subproblems": len({tile.key for tile in tiles}),
        "neurons": max((tile.neurons for tile in tiles), default=0),
        "bound": bound.upper,
        "overlap": bound.figures.get("overlap", bound.upper),
        "sum": bound.figures.get("sum", bound.upper),
        "product": bound.figures["product"],
        "of_product": bound.upper / bound.figures["product"],
        "seconds": harness.median(seconds),
        "all_seconds": seconds,
        "longest": max(outcome.task_seconds.values()),
        "sources": [block.source for block in bound.blocks],
    }


def main() -> int:
    """Run the benchmark."""
    options = harness.arguments("Bound and time against the partition.").parse_args()
    results = harness.Results("partition", "Bound and time against the partition", COLUMNS, options, NOTES)
    keys = []
    for name, network in networks().items():
        for factor, depth in CUTS[name]:
            key = f"{name} p={factor} depth={'whole' if depth is None else depth}"
            keys.append(key)
            if not options.short or (name == "digits_cnn" and (factor, depth) != (1, None)):
                results.row(key, partial(measure, name, network, factor, depth, results.repeat))
    return results.close(keys)


if __name__ == "__main__":
    sys.exit(main())

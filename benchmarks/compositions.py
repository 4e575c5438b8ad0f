"""What a composition of tiles gives away: sum, overlap, diagonal and metric side by side, against the tiles per axis.

    .venv/bin/python benchmarks/compositions.py [--only "cnn1 p=2 metric"] [--fresh] [--short]

In one process with one thread, without a lower bound.
"""

from __future__ import annotations

import sys
from functools import cache, partial

import composition_blocks
import harness
from composition_blocks import WIDTH
from harness import Column, Row

from lipray.config import EstimateConfig
from lipray.model.importer import import_module
from lipray.model.network import Network
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.serial import SerialExecutor

BLOCKS = {
    "cnn1": ("cnn1_maps", (1, 28, 28), (2, 4)),
    "cnn2": ("cnn2_maps", (3, 32, 32), (4,)),
    "resnet stage": ("resnet_stage", (4, 16, 16), (2, 4)),
    "vgg block": ("vgg_block", (4, 16, 16), (2, 4)),
}
"""Factory, input shape, and tiles per axis."""
WAYS = ("sum", "overlap", "diagonal", "metric")
LIMIT = 12.0
"""Seconds that a tile may take; tiles together have eight times as many."""

COLUMNS = (
    Column("block", "block"),
    Column("tiles per axis", "factor", str),
    Column("composition", "composition"),
    Column("bound", "bound", harness.upper),
    Column("of the product", "of_product", harness.ratio),
    Column("of the whole block's", "of_whole", harness.ratio),
    Column("core time, s", "seconds", harness.seconds),
    Column("distinct tiles", "distinct", str),
)

NOTES = f"""\
`bound`: of the tiles, composed in this way, without the product's help. `of the product`: of the layers' exact norms.
`of the whole block's`: of the bound by the method frequency, which cuts nothing. Method ellipsoid,
at most {LIMIT:.0f} s per tile, and eight times that for tiles together. cnn1: trained, 28×28×1, two 5×5; cnn2: as
initialised, 32×32×3, five 3×3; resnet stage: two basic blocks at 16×16; vgg block: two 3×3 at 16×16 and a max-pool,
both of {WIDTH} channels.
"""


@cache
def block(name: str) -> Network:
    """The block by its name."""
    factory, shape, _ = BLOCKS[name]
    return import_module(getattr(composition_blocks, factory)().eval(), shape)


def bounded(name: str, **options: object) -> RunOutcome:
    """An estimate in this process, with one thread."""
    limit = 8 * LIMIT if options.get("composition") == "metric" else LIMIT
    config = EstimateConfig(executor="serial", lower_starts=0, time_limit=limit, **options)  # type: ignore[arg-type]
    return estimate_network(block(name), config, SerialExecutor(threads=1))


@cache
def tiled(name: str, factor: int, way: str) -> RunOutcome:
    """The block in tiles; overlap and sum are of the same ones."""
    return bounded(name, method="ellipsoid", partition_factor=factor, composition=way)


@cache
def whole(name: str) -> float:
    """The block bounded whole, on tori."""
    return bounded(name, method="frequency").bound.upper


def measure(name: str, factor: int, way: str) -> Row:
    """One row."""
    outcome = tiled(name, factor, "overlap" if way == "sum" else way)
    (part,), (plan,) = outcome.bound.blocks, outcome.plan.blocks
    bound, product = part.alternatives[way], part.alternatives["product"]
    return {
        "block": name,
        "factor": factor,
        "composition": way,
        "bound": bound,
        "product": product,
        "whole": whole(name),
        "of_product": bound / product,
        "of_whole": bound / whole(name),
        "seconds": sum(outcome.task_seconds.values()),
        "distinct": len(plan.distinct) if plan.together is None else plan.together.groups,
    }


def main() -> int:
    """Run the benchmark."""
    options = harness.arguments(__doc__ or "").parse_args()
    options.repeat = 1
    results = harness.Results("compositions", "Compositions of tiles", COLUMNS, options, NOTES)
    keys = []
    for name, (_, _, factors) in BLOCKS.items():
        for factor in factors:
            for way in WAYS:
                key = f"{name} p={factor} {way}"
                keys.append(key)
                if not options.short or (name, factor) == ("vgg block", 2):
                    results.row(key, partial(measure, name, factor, way))
    return results.close(keys)


if __name__ == "__main__":
    sys.exit(main())

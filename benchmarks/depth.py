"""Time and memory of the methods on tori against depth: linear and flat.

    .venv/bin/python benchmarks/depth.py [--only gradient] [--repeat 3] [--short]

Needs nothing but the repository; every row is measured in a process of its own.
"""

from __future__ import annotations

import math
import sys
import time
from functools import partial

import harness
import numpy as np
import torch
from apart import apart, peak_memory
from harness import Column, Row

from lipray.certify.frequency.bundle import gradient_bundles, in_place
from lipray.certify.frequency.objective import Working, measure
from lipray.certify.frequency.start import closed_start
from lipray.model.network import Activation, Conv, Input, Network, Node
from lipray.verify.torus.proof import Means, bundles, set_up

MIB = 2**20
DEPTHS = (10, 20, 50, 100)
CHANNELS = 32
SIDES = (32, 64)
"""Maps: at the larger side not even the smallest depth's frequencies are worked on at once."""
MEMORY = 256 * MIB
"""What a bundle's size is chosen by; a quarter of it is one bundle's own."""
LINEAR, FLAT = 0.15, 1.25
"""Largest relative distance from the line, and growth of the peak between the smallest and the largest depth."""

COLUMNS = (
    Column("way", "way"),
    Column("map", "side", lambda value: f"{value}×{value}"),
    Column("layers", "depth", harness.count),
    Column("s", "seconds", harness.seconds),
    Column("s per layer", "per_layer", harness.seconds),
    Column("peak, MiB", "peak", harness.mebibytes),
    Column("of which before, MiB", "before", harness.mebibytes),
    Column("bundles", "bundles", harness.count),
    Column("verdict", "verdict"),
)

NOTES = f"""\
Random chains of 3x3 convolutions of {CHANNELS} channels with a ReLU between any two, on one torus; `memory`
{MEMORY // MIB} MiB. `closed form`: chosen, and proven. `gradient`: one value with its gradient in all multipliers, as a
step of the first-order optimiser takes it, with a memory in which no depth has room for its factors, so that
they are worked out again on the way back. `peak`: largest resident set of the process; `before`: what Python, torch
and the network take of that.

pass: the seconds lie within {LINEAR:.0%} of a straight line in the depth; on {SIDES[-1]}x{SIDES[-1]} maps the peak at
depth {DEPTHS[-1]} is at most {FLAT} times that at depth {DEPTHS[0]} (on {SIDES[0]}x{SIDES[0]} maps a chain of
{DEPTHS[0]} layers takes less than is allowed, so that nothing holds its memory back yet).
"""


def random_chain(depth: int, channels: int, side: int) -> Network:
    """He-normal weights from a fixed seed; ``channels`` to ``channels`` in every layer."""
    rng = np.random.default_rng(0)
    shape = (channels, side, side)
    nodes, weights = [Node("input", Input(), (), shape)], {}
    for layer in range(depth):
        key = f"conv{layer}.weight"
        weights[key] = rng.normal(size=(channels, channels, 3, 3)) * math.sqrt(2.0 / (9 * channels))
        nodes.append(Node(f"conv{layer}", Conv(key, None, (1, 1), ((1, 1),) * 2, (1, 1)), (len(nodes) - 1,), shape))
        if layer < depth - 1:
            nodes.append(Node(f"relu{layer}", Activation("relu", (0.0,), (1.0,)), (len(nodes) - 1,), shape))
    return Network(tuple(nodes), weights)


def through_depth(depth: int, channels: int, side: int, way: str) -> Row:
    """One way through a random chain; to be run in a process of its own."""
    setup = set_up(random_chain(depth, channels, side))
    means = Means(in_place, MEMORY, 1, "cpu")
    before = peak_memory()
    start = time.perf_counter()
    closed = closed_start(setup, means)
    if closed is None:
        raise RuntimeError("the closed form was not proven")
    if way == "gradient":
        theta = torch.log(torch.from_numpy(np.concatenate(closed.multipliers)))
        start = time.perf_counter()
        point = measure(Working(setup, None, kept=False), theta, 8.0, means, closed.bound**2)
        if point is None or not bool(torch.isfinite(point.gradient).all()):
            raise RuntimeError("no gradient at the closed form")
    seconds = time.perf_counter() - start
    torus, _ = setup.split(closed.multipliers)
    count = len((gradient_bundles if way == "gradient" else bundles)(setup, torus, means))
    return {"seconds": seconds, "before": before, "bundles": count, "bound": closed.bound}


def depth_row(way: str, depth: int, side: int, channels: int, repeat: int) -> Row:
    """One depth, one way."""
    runs: list[Row] = []
    work = {"depth": depth, "channels": channels, "side": side, "way": way}
    harness.timed(lambda: runs.append(apart(through_depth, **work)), repeat)
    seconds = harness.median([run["seconds"] for run in runs])
    row = {"way": way, "side": side, "depth": depth, "seconds": seconds, "per_layer": seconds / depth}
    row |= {key: max(run[key] for run in runs) for key in ("peak", "before", "bundles")}
    return {**row, "all_seconds": [run["seconds"] for run in runs]}


def depth_fit(way: str, side: int, rows: list[Row]) -> Row:
    """A straight line through the seconds, and how the peak grows."""
    depths, seconds = (np.array([row[key] for row in rows], dtype=float) for key in ("depth", "seconds"))
    slope, offset = np.polyfit(depths, seconds, 1, w=1.0 / seconds)
    off = float(np.abs((slope * depths + offset) / seconds - 1.0).max())
    growth = rows[-1]["peak"] / rows[0]["peak"]
    missed = [f"{off:.0%} off a line"] if off > LINEAR else []
    missed += [f"the peak grows {growth:.2f} times"] if growth > FLAT and side == SIDES[-1] else []
    verdict = "FAIL: " + ", ".join(missed) if missed else "pass"
    text = f"{way}: {offset:.3f} s + {slope:.4f} s per layer, at most {off:.1%} off; peak grows {growth:.2f} times"
    return {"way": text, "slope": slope, "offset": offset, "off": off, "growth": growth, "verdict": verdict}


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("Time and memory against depth.").parse_args()
    results = harness.Results("depth", "Time and memory against depth", COLUMNS, options, NOTES)
    keys: list[str] = []
    for way in ("closed form", "gradient"):
        for side in SIDES:
            own = [f"{way} {side} depth {layers}" for layers in DEPTHS]
            for key, layers in zip(own, DEPTHS, strict=True):
                if not options.short:
                    results.row(key, partial(depth_row, way, layers, side, CHANNELS, results.repeat))
                elif side == SIDES[0]:
                    results.row(key, partial(depth_row, way, layers, side, 8, 1))
            keys += own
            rows = [results.rows[key] for key in own if key in results.rows]
            if not options.short and len(rows) == len(own) and len({row["identity"] for row in rows}) == 1:
                keys.append(f"{way} {side} fit")
                results.derive(keys[-1], depth_fit(way, side, rows), like=rows[-1])
    return results.close(keys)


if __name__ == "__main__":
    sys.exit(main())

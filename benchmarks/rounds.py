"""Rounds of bundles of frequencies over Ray, against the serial executor.

    .venv/bin/python benchmarks/rounds.py [--only "64 trained gradient"] [--short]

Needs nothing but the repository, and two cores with nothing else to do.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import harness
import numpy as np
import torch
from apart import apart
from harness import ROOT, Column, Row

from lipray.certify.frequency.bundle import AnyBundle, gradient_bundles, in_place, perform_bundle
from lipray.certify.frequency.objective import pull_back
from lipray.certify.frequency.start import closed_start
from lipray.config import EstimateConfig
from lipray.model.load import load_network
from lipray.partition.subproblem import Subproblem
from lipray.run.driver import make_plan
from lipray.run.executor import Task
from lipray.run.rounds import Rounds
from lipray.run.serial import SerialExecutor
from lipray.run.start import start_executor
from lipray.verify.torus.proof import Means, Multipliers, Setup, bundles, perform, set_up

WORKERS = 2
EFFICIENT = 0.9
"""Efficiency that is asked for."""

ROUNDS = 3
MEMORY = 4 * 2**30
TRAINED = ROOT / "examples" / "resnet18_digits32.safetensors"
CASES = {"resnet18 32": ((3, 32, 32), None), "resnet18 64 trained": ((3, 64, 64), TRAINED)}
"""ResNet-18 with seeded weights, and a trained one of width 16 on larger maps: 13 and 41 groups of frequencies.

At a quarter of the width a round on 32x32 maps takes so little time that one worker does the whole problem."""

KINDS = {"proof": "bound", "gradient": "gradient"}
SHORT = ("resnet18 64 trained proof",)

COLUMNS = (
    Column("network", "network"),
    Column("round", "kind"),
    Column("groups", "groups", harness.count),
    Column("bundles", "bundles", harness.count),
    Column("serial, s", "serial", harness.seconds),
    Column("Ray, s", "ray", harness.seconds),
    Column("first round, s", "first", harness.seconds),
    Column("two processes, s", "pair", harness.seconds),
    Column("efficiency", "efficiency", harness.ratio),
    Column("against two processes", "against_pair", harness.ratio),
    Column("verdict", "verdict"),
)

NOTES = f"""\
Rounds of bundles of frequencies, one thread each: one bundle after the other in one process (the serial executor), and
the same bundles over an embedded Ray with {WORKERS} workers. Medians of {ROUNDS} rounds after the first one, which
carries the network to the workers. `efficiency`: serial / ({WORKERS} x Ray). `two processes`: the same bundles in two
plain processes at the same time, without Ray, the longer of the two: what the machine itself makes of two workers that
share its memory and its clock, and of a number of groups that is odd (13 are 7 and 6: at most 0.93). `against two
processes`: that / Ray. `trained`: ResNet-18 of width 16, `examples/resnet18_digits32.safetensors`.

pass: efficiency at least {EFFICIENT}.
"""


def problem(name: str, kind: str) -> tuple[Setup, Multipliers, Row]:
    """The set-up, the closed form's multipliers, and what else a round of that kind takes."""
    shape, weights = CASES[name]
    setup = set_up(load_network("resnet18-cifar", shape, weights=weights).network)
    closed = closed_start(setup, Means(in_place, MEMORY, 1, "cpu"))
    if closed is None or setup.problem.head is None:
        raise RuntimeError("the closed form was not proven")
    more: Row = {}
    if kind == "gradient":
        more["directions"] = np.random.default_rng(0).normal(size=(setup.problem.head.rows, 1))
    return setup, setup.split(closed.multipliers)[0], more


def cut(setup: Setup, torus: Multipliers, kind: str) -> Sequence[AnyBundle]:
    """The bundles of a round."""
    means = Means(memory=MEMORY, workers=WORKERS)
    return gradient_bundles(setup, torus, means) if kind == "gradient" else bundles(setup, torus, means)


def one_round(setup: Setup, torus: Multipliers, kind: str, means: Means, **more: object) -> None:
    """One round of either kind."""
    if kind == "gradient":
        pull_back(setup, torus, means, **more)
    else:
        perform(setup, torus, means)


def rounds(name: str, kind: str, place: str, count: int) -> Row:
    """Seconds of rounds on one executor; to be run in a process of its own, whose threads are limited."""
    config = EstimateConfig(executor=place, workers=WORKERS, threads=1, method="frequency", memory=MEMORY)
    # Ray first: what it reads when it is imported must be set before.
    executor = SerialExecutor(1) if place == "serial" else start_executor(config)
    try:
        setup, torus, more = problem(name, kind)
        block = make_plan(setup.network, config).blocks[0]
        work = Subproblem("rounds", setup.network, "frequency", block.settings)
        tile = block.tiles[0]
        spread = Rounds(
            Task("rounds", "rounds", "rounds", work, tile.memory, tile.seconds), block.torus, executor
        ).spread
        means = Means(spread, MEMORY, WORKERS, "cpu")
        seconds: list[float] = []
        for _ in range(count + 1):
            start = time.perf_counter()
            one_round(setup, torus, kind, means, **more)
            seconds.append(time.perf_counter() - start)
        executor.release()
    finally:
        executor.close()
    return {
        "first": seconds[0],
        "seconds": seconds[1:],
        "bundles": len(cut(setup, torus, kind)),
        "groups": len(setup.groups),
    }


def half(name: str, kind: str, which: int, count: int, gate: Any, told: Any) -> None:
    """Every second bundle of a round, once all are at the gate; tells the seconds of every round."""
    torch.set_num_threads(1)
    setup, torus, more = problem(name, kind)
    own = cut(setup, torus, kind)[which::WORKERS]
    for number in range(count + 1):
        gate.wait()
        start = time.perf_counter()
        for bundle in own:
            perform_bundle(replace(bundle, **more))
        told.put((number, time.perf_counter() - start))


def pair(name: str, kind: str, count: int) -> Row:
    """Seconds of the longer of two plain processes, round by round."""
    context = multiprocessing.get_context("spawn")
    gate, told = context.Barrier(WORKERS), context.Queue()
    workers = [context.Process(target=half, args=(name, kind, i, count, gate, told)) for i in range(WORKERS)]
    for worker in workers:
        worker.start()
    longer = [0.0] * (count + 1)
    for _ in range(WORKERS * (count + 1)):
        number, seconds = told.get(timeout=600)
        longer[number] = max(longer[number], seconds)
    for worker in workers:
        worker.join()
    return {"seconds": longer[1:]}


def measure(name: str, what: str, count: int) -> Row:
    """One network, one kind of round."""
    work = {"name": name, "kind": KINDS[what], "count": count}
    found = {place: apart(rounds, threads=1, place=place, **work) for place in ("serial", "ray")}
    found["pair"] = apart(pair, threads=1, **work)
    row = {"network": name, "kind": what, **{key: found["ray"][key] for key in ("first", "groups", "bundles")}}
    for place, part in found.items():
        row |= {place: harness.median(part["seconds"]), f"all_{place}": part["seconds"]}
    row["efficiency"] = row["serial"] / (WORKERS * row["ray"])
    row["against_pair"] = row["pair"] / row["ray"]
    low = row["efficiency"] < EFFICIENT
    return {**row, "verdict": f"FAIL: efficiency below {EFFICIENT}" if low else "pass"}


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("Rounds of bundles over Ray, against the serial executor.").parse_args()
    results = harness.Results("rounds", "Rounds of bundles over Ray", COLUMNS, options, NOTES)
    keys = [f"{name} {what}" for name in CASES for what in KINDS]
    for key in keys:
        if not options.short or key in SHORT:
            name, what = key.rsplit(maxsplit=1)
            results.row(key, partial(measure, name, what, 2 if options.short else ROUNDS))
    return results.close(keys)


if __name__ == "__main__":
    sys.exit(main())

"""What running on Ray costs: per sub-problem, for very many of them, with one worker and two, and to do it again.

    .venv/bin/python benchmarks/service.py [--only "overhead 100 ms"] [--short]

Needs nothing but the repository, and two cores with nothing else to do.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import harness
import numpy as np
from apart import apart
from harness import ROOT, Column, Row

from lipray.certify.solve import solve
from lipray.config import EstimateConfig
from lipray.model.network import Activation, Dense, Input, Network, Node
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import Worklist
from lipray.run.driver import estimate_network
from lipray.run.events import Event, TaskDone
from lipray.run.executor import Done, Task
from lipray.run.recall import Memory
from lipray.run.start import start_executor
from lipray.run.store.solved import open_store

OVERHEAD, FLAT, EFFICIENT = 0.05, 1.2, 0.9
"""Overhead per sub-problem that is allowed, growth of the driver's memory, and the share of time that workers work."""

SIZES = {"100 ms": (32, 2), "500 ms": (40, 12)}
"""Neurons of a layer, of which there are four, and iterations, for sub-problems of about so long."""
COUNT = {"100 ms": 240, "500 ms": 80}
SECONDS = {"100 ms": 0.1, "500 ms": 0.5}
TURNS = 5
"""In plain and on Ray, one after the other; the median of their ratios counts."""
MANY = 50_000
"""Blocks of the long chain: each has a product bound and a sub-problem."""

COLUMNS = (
    Column("what", "what"),
    Column("sub-problems", "problems", harness.count),
    Column("bare, s", "bare", harness.seconds),
    Column("s", "seconds", harness.seconds),
    Column("per sub-problem, ms", "each", lambda value: f"{value * 1e3:.2f}"),
    Column("overhead", "overhead", harness.relative),
    Column("solving slower", "slower", harness.relative),
    Column("workers at work", "busy", harness.ratio),
    Column("efficiency", "efficiency", harness.ratio),
    Column("memory of the driver grows", "growth", harness.ratio),
    Column("solved", "solved", harness.count),
    Column("verdict", "verdict"),
)

NOTES = f"""\
`overhead`: distinct sub-problems (four dense layers, method ellipsoid, a fixed number of iterations) as tasks of an
embedded Ray with one worker, each kept in a store on disk: wall time over the seconds that the solver took in the
worker. `solving slower`: those over what it took in a plain process (`bare`), in {TURNS} turns, one after the
other; medians; one thread each; Ray's start is not counted. Two equal loops on the machine measured differ by up to
15 %, which hides what is there to see in the second. `workers`: the same over two workers: the share of the time
that they solve, and the efficiency, plain time over twice theirs. `many`: a chain of {MANY:,} blocks of one layer
through planner, driver, window, workers and store, twice as many sub-problems; `memory of the driver grows` is its
resident memory at the end over that at a tenth of the way. `again`: the same estimate another time, all from the
store, and proven again. `resume`: the command, of a run that is finished.

pass: overhead at most {OVERHEAD:.0%}; growth at most {FLAT}; workers at work at least {EFFICIENT} of the time;
nothing solved again.
"""


def dense(width: int, seed: int) -> Network:
    """Four random layers."""
    draw = np.random.default_rng(seed)
    nodes = [Node("x", Input(), (), (width,))]
    weights = {}
    for layer in range(4):
        weights[f"w{layer}"] = draw.standard_normal((width, width)) / width**0.5
        nodes.append(Node(f"d{layer}", Dense(f"w{layer}", None), (len(nodes) - 1,), (width,)))
        nodes.append(Node(f"a{layer}", Activation("relu", (0.0,), (1.0,)), (len(nodes) - 1,), (width,)))
    return Network(tuple(nodes), weights)


def problems(what: str, count: int) -> list[Subproblem]:
    """Distinct sub-problems of about the same time."""
    width, iterations = SIZES[what]
    settings = Settings(iterations=iterations)
    return [Subproblem(f"{what} {i}", dense(width, i), "ellipsoid", settings) for i in range(count)]


def against(what: str, count: int, workers: int) -> Row:
    """Seconds of all in this process and on Ray, kept in a store, in turns: a machine is not always equally fast."""
    executor = start_executor(EstimateConfig(workers=workers))
    given = problems(what, count)
    tasks = [Task(problem.key(), problem.label, "g", problem, 2**24, SECONDS[what]) for problem in given]
    work = Worklist({task.key: problem for task, problem in zip(tasks, given, strict=True)}, {}, ())
    bare, there, own = [], [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(executor):
        memory = Memory(open_store(folder), work, budgeted=False)
        warm = [Task(f"warm {i}", "warm", f"w{i}", given[0], 2**24, SECONDS[what]) for i in range(workers)]
        assert len(list(executor.run(warm))) == workers  # noqa: S101 - every worker is up
        solve(given[0])  # what is done once per process
        each = count // TURNS
        for turn in range(TURNS):
            part = slice(turn * each, (turn + 1) * each)
            bare.append(harness.timed(lambda part=part: [solve(problem) for problem in given[part]], 1)[1][0])
            start, solving = time.perf_counter(), 0.0
            for outcome in executor.run(tasks[part]):
                assert isinstance(outcome, Done)  # noqa: S101
                memory.keep(outcome)
                solving += outcome.seconds
            there.append(time.perf_counter() - start)
            own.append(solving)
        kept = len(list(Path(folder).rglob("*.json")))
    if kept != TURNS * each:
        raise RuntimeError(f"{kept} kept of {TURNS * each}")
    return {"bare": bare, "there": there, "own": own, "problems": kept}


def chain(blocks: int) -> Network:
    """Rotations, hardly contracting, with ReLUs between: every block another one."""
    draw = np.random.default_rng(0)
    nodes = [Node("x", Input(), (), (2,))]
    weights = {}
    for block, angle in enumerate(draw.uniform(0.1, 1.4, blocks)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        weights[f"w{block}"] = 0.9999 * turn
        nodes.append(Node(f"d{block}", Dense(f"w{block}", None), (len(nodes) - 1,), (2,)))
        nodes.append(Node(f"a{block}", Activation("relu", (0.0,), (1.0,)), (len(nodes) - 1,), (2,)))
    return Network(tuple(nodes), weights)


def resident() -> int:
    """Bytes of this process that are resident now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def many(blocks: int, folder: str) -> Row:
    """The chain through everything, and once more from the store."""
    config = EstimateConfig(method="ellipsoid", iterations=0, block_depth=1, lower_starts=0, workers=2)
    network = chain(blocks)
    marks: dict[int, int] = {}
    solved = 0

    def watch(event: Event) -> None:
        nonlocal solved
        if isinstance(event, TaskDone):
            solved += not event.stored and "product" not in event.label
            if event.done % max(1, event.tasks // 20) == 0:
                marks[event.done] = resident()

    executor = start_executor(config)
    with contextlib.closing(executor):
        start = time.perf_counter()
        outcome = estimate_network(network, config, executor, watch, store=open_store(folder))
        seconds = time.perf_counter() - start
    problems = len(outcome.work.by_key)
    points = sorted(marks)
    early = next(marks[point] for point in points if point >= problems // 10)
    return {
        "seconds": seconds,
        "problems": problems,
        "growth": marks[points[-1]] / early,
        "solved": solved,
        "upper": outcome.bound.upper,
        "failures": len(outcome.failures),
    }


def resume() -> Row:
    """Seconds of ``lipray resume`` for a run that is finished."""
    words = [sys.executable, "-m", "lipray"]
    model = ["examples/digits_cnn.py:digits_cnn", "--weights", "examples/digits_cnn.safetensors"]
    options = ["--input-shape", "1,8,8", "--run-id", "finished", "--quiet", "--executor", "serial"]
    with tempfile.TemporaryDirectory() as folder:
        store = ["--store", folder]
        subprocess.run([*words, "estimate", *model, *options, *store], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        start = time.perf_counter()
        done = subprocess.run(
            [*words, "resume", f"{folder}/finished"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    solved = 0 if "finished already" in done.stderr else 1
    return {"what": "resume of a finished run", "seconds": seconds, "solved": solved, "verdict": verdict(solved == 0)}


def verdict(good: bool, why: str = "") -> str:
    """Pass, or what is missing."""
    return "pass" if good else f"FAIL: {why or 'something was solved again'}"


def overhead(what: str, count: int) -> Row:
    """What a task costs beyond its solving."""
    row = apart(against, threads=1, what=what, count=count, workers=1)
    more = harness.median([there / own for there, own in zip(row["there"], row["own"], strict=True)]) - 1.0
    return {
        "what": f"overhead {what}",
        "problems": row["problems"],
        "bare": sum(row["bare"]),
        "seconds": sum(row["there"]),
        "each": sum(row["there"]) / row["problems"],
        "overhead": more,
        "slower": harness.median([own / bare for own, bare in zip(row["own"], row["bare"], strict=True)]) - 1.0,
        "verdict": verdict(more <= OVERHEAD, f"more than {OVERHEAD:.0%}"),
    }


def workers(what: str, count: int) -> Row:
    """Two workers against one plain process."""
    row = apart(against, threads=1, what=what, count=count, workers=2)
    efficiency = harness.median([bare / (2.0 * there) for there, bare in zip(row["there"], row["bare"], strict=True)])
    busy = harness.median([own / (2.0 * there) for there, own in zip(row["there"], row["own"], strict=True)])
    return {
        "what": f"workers {what}",
        "problems": row["problems"],
        "bare": sum(row["bare"]),
        "seconds": sum(row["there"]),
        "each": sum(row["there"]) / row["problems"],
        "efficiency": efficiency,
        "busy": busy,
        "slower": harness.median([own / bare for own, bare in zip(row["own"], row["bare"], strict=True)]) - 1.0,
        "verdict": verdict(busy >= EFFICIENT, f"workers at work less than {EFFICIENT} of the time"),
    }


def crowd(results: harness.Results, blocks: int) -> None:
    """The long chain, and the same again."""
    with tempfile.TemporaryDirectory() as folder:

        def first() -> Row:
            row = apart(many, threads=1, blocks=blocks, folder=folder)
            good = row["growth"] <= FLAT and not row["failures"]
            why = f"{row['failures']} failures, growth {row['growth']:.2f}"
            each = row["seconds"] / row["problems"]
            return {**row, "what": "many", "each": each, "verdict": verdict(good, why)}

        def again() -> Row:
            row = apart(many, threads=1, blocks=blocks, folder=folder)
            each = row["seconds"] / row["problems"]
            return {**row, "what": "again", "each": each, "verdict": verdict(row["solved"] == 0)}

        results.row("many", first)
        results.row("again", again)


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("What running on Ray costs.").parse_args()
    results = harness.Results("service", "What running on Ray costs", COLUMNS, options, NOTES)
    keys = []
    for what in ("100 ms",) if options.short else SIZES:
        count = 10 if options.short else COUNT[what]
        results.row(f"overhead {what}", partial(overhead, what, count))
        results.row(f"workers {what}", partial(workers, what, count))
        keys += [f"overhead {what}", f"workers {what}"]
    crowd(results, 200 if options.short else MANY)
    results.row("resume", resume)
    return results.close([*keys, "many", "again", "resume"])


if __name__ == "__main__":
    sys.exit(main())

"""What becomes of sub-problems that failed: smaller tiles first, then their closed form, then the product bound.

A tile that hung, or did not fit the memory of any node, is cut in two along each axis, since smaller tiles take less of
both. Where a part fails too, and for blocks solved whole, which lose more by a cut, the closed form is tried: one
factorisation instead of an optimiser's many. What is left has the product bound of its block, as always.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lipray.config import EstimateConfig
from lipray.partition.cost import estimate_cost
from lipray.partition.finer import coarser, finer
from lipray.partition.plan import Plan
from lipray.partition.subproblem import TORUS_METHODS, Subproblem
from lipray.partition.worklist import Worklist, worklist
from lipray.run.bracket import Bracket
from lipray.run.budget import SPENT, Clock
from lipray.run.executor import Done, Executor, Task
from lipray.run.recall import Memory
from lipray.run.tasks import block_of

CLOSED_FORMS = frozenset({"ellipsoid", "metric", *TORUS_METHODS})
"""Methods that have a closed form: no iterations."""


def rescue(
    config: EstimateConfig, state: Bracket, executor: Executor, clock: Clock, memory: Memory | None = None
) -> None:
    """Try what failed another way, and narrow the bracket by it; nothing happens where nothing failed.

    Args:
        config: whose budget leaves time for it, or not.
        state: the bracket of the run; its plan is finer afterwards where smaller tiles were solved.
        executor: where tasks run.
        clock: of the budget.
        memory: keeps what is solved.
    """
    lost = _failed(state)
    if not lost or (config.budget is not None and clock.left <= 0.1 * config.budget):
        return
    before = state.plan
    known = {tile.key: tile for block in before.blocks for tile in block.tiles}
    contents = {key for key in known if state.work.tiles[key] in lost}
    smaller = finer(before, contents)
    if smaller is not before and smaller != before:
        work = worklist(smaller)
        state.replan(smaller, work)
        fresh = [key for key in work.by_key if key not in state.seconds and key not in state.keys]
        _run(_tasks(smaller, work, fresh), state, executor, clock, memory, whole=True)
        failed = {key for key, name in work.tiles.items() if name in set(fresh) and name not in state.keys}
        back = coarser(smaller, before, failed)
        state.replan(back, worklist(back))
    left = [key for key in _failed(state) if state.work.by_key[key].method in CLOSED_FORMS]
    _run(_closed(state, left), state, executor, clock, memory, whole=False)


def _failed(state: Bracket) -> frozenset[str]:
    """Keys of sub-problems of the plan without a certificate, for want of more than time."""
    spent = {failure.task.key for failure in state.failures if failure.kind in SPENT}
    return frozenset(key for key in set(state.work.tiles.values()) if key not in state.keys and key not in spent)


def _tasks(plan: Plan, work: Worklist, keys: Iterable[str]) -> list[Task]:
    owners = block_of(plan, work)
    sizes = {work.tiles[tile.key]: tile for block in plan.blocks for tile in block.tiles}
    return [
        Task(key, work.by_key[key].label, owners[key].label, work.by_key[key], sizes[key].memory, sizes[key].seconds)
        for key in keys
        if key in sizes
    ]


def _closed(state: Bracket, keys: Iterable[str]) -> list[Task]:
    """The same sub-problems without iterations, under the keys of those they stand for."""
    tasks = []
    for task in _tasks(state.plan, state.work, keys):
        assert isinstance(task.work, Subproblem)  # noqa: S101 (what the plan is made of)
        problem = task.work
        if problem.settings.iterations == 0:
            continue
        problem = replace(problem, settings=replace(problem.settings, iterations=0))
        cost = estimate_cost(problem.network, problem.method, problem.settings)
        label = f"{task.label} closed form"
        tasks.append(replace(task, label=label, work=problem, seconds=min(task.seconds, cost.seconds)))
    return tasks


def _run(
    tasks: list[Task], state: Bracket, executor: Executor, clock: Clock, memory: Memory | None, *, whole: bool
) -> None:
    if not tasks:
        return
    if memory is not None:
        memory.work = state.work
    state.expect(tasks)
    for outcome in executor.run(tasks, deadline=clock.deadline):
        state.add(outcome)
        if memory is not None and isinstance(outcome, Done):
            memory.keep(outcome, whole=whole)

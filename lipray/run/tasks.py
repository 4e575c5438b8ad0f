"""The tasks of a plan: product bounds, sub-problems that one task solves, searches for a lower bound, and the rest.

A problem whose rounds are long (on tori, or of tiles together) is no task: it is coordinated, round by round, see
``lipray.run.rounds``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lipray.config import EstimateConfig
from lipray.errors import UsageError
from lipray.model.network import Network, Shape
from lipray.partition.choice import default_limit
from lipray.partition.cost import estimate_cost
from lipray.partition.plan import Block, Plan, RoundWork
from lipray.partition.subproblem import Subproblem
from lipray.partition.worklist import FALLBACK_METHOD, Worklist
from lipray.run.budget import Clock
from lipray.run.executor import Task
from lipray.run.lower_bound import Ascent, ascent_seconds, plan_ascents, task_width

LOWER_GROUP = "lower bound"

LONG_ROUND = 0.5
"""Seconds of one pass over all frequencies or tiles from which on the workers share a problem's rounds."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """``tasks`` in the order to start them, then ``coordinated`` problems, one after the other.

    Of these it says what their rounds take.
    """

    tasks: tuple[Task, ...]
    coordinated: tuple[tuple[Task, RoundWork], ...]

    @property
    def everything(self) -> tuple[Task, ...]:
        """All tasks, coordinated ones included."""
        return (*self.tasks, *(task for task, _ in self.coordinated))


@dataclass(frozen=True, slots=True)
class Crowd:
    """Among how many a budget is shared: sub-problems that are solved each by one task, and searches."""

    solves: int
    searches: int = 1


def schedule(
    network: Network,
    plan: Plan,
    work: Worklist,
    config: EstimateConfig,
    clock: Clock,
    width: int = 1,
    crowd: Crowd | None = None,
) -> Schedule:
    """All work in the order to start it: the blocks' product bounds, then the rest, longest first.

    Product bounds, and searches for a lower bound, whose time is limited by estimate, are done whatever the clock says.

    Args:
        network: the whole network.
        plan: how it is cut.
        work: the plan's sub-problems.
        config: what the search for a lower bound is told.
        clock: its budget limits the time of every sub-problem; limits do not change a task's key.
        width: how many tasks run at one time.
        crowd: what shares the budget, where that is more than this plan.
    """
    blocks = {key: block for block, key in reversed(list(zip(plan.blocks, work.products, strict=True)))}
    tiles = {work.tiles[tile.key]: (block, tile) for block in reversed(plan.blocks) for tile in reversed(block.tiles)}
    products: list[Task] = []
    solves: list[tuple[Task, RoundWork | None]] = []
    coordinated: list[tuple[Task, RoundWork]] = []
    for key, problem in work.by_key.items():
        if key in blocks:
            cost = estimate_cost(problem.network, FALLBACK_METHOD, problem.settings)
            group = blocks[key].label
            products.append(Task(key, problem.label, group, problem, cost.memory_bytes, cost.seconds, needed=True))
            continue
        block, tile = tiles[key]
        task = Task(key, problem.label, block.label, problem, tile.memory, tile.seconds)
        if block.rounds is not None and _shared(block):
            coordinated.append((task, block.rounds))
        else:
            solves.append((task, block.rounds))
    crowd = crowd or Crowd(len(solves))
    rest = [*_limited(solves, clock, width, crowd.solves), *_ascents(network, config, clock, width, crowd.searches)]
    rest.sort(key=lambda task: (-task.seconds, task.label))
    return Schedule((*products, *rest), tuple(coordinated))


def solved_alone(plan: Plan, work: Worklist) -> frozenset[str]:
    """Keys of the sub-problems that are solved by one task each, product bounds aside."""
    tiles = (work.tiles[tile.key] for block in plan.blocks if not _shared(block) for tile in block.tiles)
    return frozenset(tiles) - frozenset(work.products)


def read_data(path: Path, shape: Shape) -> np.ndarray:
    """Points to start the lower bound from: a float64 array (N, *shape).

    Raises:
        UsageError: the file is missing, is no plain ``.npy`` array, or has another shape or values not finite.
    """
    try:
        data = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        why = fault.strerror if isinstance(fault, OSError) and fault.strerror else "it is not a plain .npy array"
        raise UsageError("--data", f"{path} cannot be read: {why}", hint="Save it by numpy.save.") from None
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "fiub":
        raise UsageError("--data", f"{path} holds no array of numbers", hint="Save one array by numpy.save.")
    if data.shape[1:] != shape or len(data) == 0:
        raise UsageError(
            "--data",
            f"{path} has shape {data.shape}, and the network takes (N, {', '.join(map(str, shape))})",
            hint="The first axis counts the points.",
        )
    if not np.isfinite(data).all():
        raise UsageError("--data", f"{path} holds NaN or infinity", hint="Leave such points out.")
    return data.astype(np.float64)


def _shared(block: Block) -> bool:
    """Whether the workers share the rounds of a block's problem."""
    return block.rounds is not None and block.rounds.pass_seconds >= LONG_ROUND


def _limited(solves: Sequence[tuple[Task, RoundWork | None]], clock: Clock, width: int, count: int) -> list[Task]:
    """The sub-problems with the time limit that the budget leaves them, or on tori without a budget the rule's."""
    limited = []
    for task, work in solves:
        problem = task.work
        assert isinstance(problem, Subproblem)  # noqa: S101 (solves are sub-problems)
        limit = problem.settings.time_limit
        if clock.budget is not None:
            limit = clock.solve_limit(count, width, limit)
        elif work is not None:
            limit = default_limit(problem.settings, work.closed_form_seconds)
        if limit == problem.settings.time_limit:
            limited.append(task)
            continue
        problem = replace(problem, settings=replace(problem.settings, time_limit=limit))
        seconds = task.seconds if limit is None else min(task.seconds, limit)
        limited.append(replace(task, work=problem, seconds=seconds))
    return limited


def _ascents(network: Network, config: EstimateConfig, clock: Clock, width: int, searches: int) -> list[Task]:
    data = read_data(config.data, network.input_shape) if config.data is not None else None
    seconds = None if clock.search is None else clock.search * width / searches
    ascents = plan_ascents(network, starts=config.lower_starts, seed=config.seed, data=data, seconds=seconds)
    return [_ascent_task(ascent) for ascent in ascents]


def _ascent_task(ascent: Ascent) -> Task:
    network = ascent.network
    values = sum(node.size for node in network.nodes)
    memory = 8 * (12 * min(ascent.starts, task_width(network)) * values + sum(a.size for a in network.weights.values()))
    return Task(ascent.label, ascent.label, LOWER_GROUP, ascent, memory, ascent_seconds(ascent), needed=True)


def block_of(plan: Plan, work: Worklist) -> dict[str, Block]:
    """The first block that each sub-problem belongs to, by the sub-problem's key."""
    owners: dict[str, Block] = {}
    for block, product in zip(plan.blocks, work.products, strict=True):
        for key in (product, *(work.tiles[tile.key] for tile in block.tiles)):
            owners.setdefault(key, block)
    return owners

"""One estimate from plan to bracket: tasks out, outcomes in, and a valid bound at every moment between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lipray.certify.certificate import Certificate, Status
from lipray.compose.bound import Bound
from lipray.compose.compose import compose
from lipray.config import EstimateConfig
from lipray.errors import SolveError, UsageError
from lipray.model.network import Network, Shape
from lipray.partition.cost import estimate_cost
from lipray.partition.plan import Block, Plan
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings
from lipray.partition.worklist import FALLBACK_METHOD, Worklist, worklist
from lipray.run.events import Listener, LowerBoundImproved, PlanReady, TaskDone, ignore
from lipray.run.executor import Done, Executor, Failure, Outcome, Task
from lipray.run.lower_bound import Ascent, Witness, best, multiply_adds, plan_ascents, task_width

LOWER_GROUP = "lower bound"


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished estimate: the bracket, the plan it came from, and every task that gave no value."""

    bound: Bound
    plan: Plan
    work: Worklist
    failures: tuple[Failure, ...]
    task_seconds: Mapping[str, float]


def make_plan(network: Network, config: EstimateConfig) -> Plan:
    """The plan that ``config`` asks for.

    Raises:
        PlanError: the network cannot be cut that way.
    """
    settings = Settings(
        iterations=config.iterations,
        tolerance=config.tolerance,
        time_limit=config.time_limit,
        memory=config.memory,
    )
    return plan_network(
        network,
        method=config.method,
        settings=settings,
        partition_factor=config.partition_factor,
        block_depth=config.block_depth,
    )


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


def make_tasks(network: Network, plan: Plan, work: Worklist, config: EstimateConfig) -> tuple[Task, ...]:
    """All tasks in the order to start them: the blocks' product bounds, then the rest, longest first."""
    blocks = {key: block for block, key in reversed(list(zip(plan.blocks, work.products, strict=True)))}
    tiles = {work.tiles[tile.key]: (block, tile) for block in reversed(plan.blocks) for tile in reversed(block.tiles)}
    products: list[Task] = []
    solves: list[Task] = []
    for key, problem in work.by_key.items():
        if key in blocks:
            cost = estimate_cost(problem.network, FALLBACK_METHOD, problem.settings)
            group = blocks[key].label
            products.append(Task(key, problem.label, group, problem, cost.memory_bytes, cost.seconds))
        else:
            block, tile = tiles[key]
            solves.append(Task(key, problem.label, block.label, problem, tile.memory, tile.seconds))
    data = read_data(config.data, network.input_shape) if config.data is not None else None
    ascents = plan_ascents(network, starts=config.lower_starts, seed=config.seed, data=data)
    rest = [*solves, *(_ascent_task(ascent) for ascent in ascents)]
    rest.sort(key=lambda task: (-task.seconds, task.label))
    return (*products, *rest)


def estimate_network(
    network: Network, config: EstimateConfig, executor: Executor, notify: Listener = ignore
) -> RunOutcome:
    """Bound the network's l2 Lipschitz constant from above and below.

    Every block's product bound is computed first; from then on there is a valid upper bound, which each
    finished sub-problem can only lower. What fails is replaced by its block's product bound and listed.

    Args:
        network: the whole network, its output rows already selected.
        config: what to do; where to write is not looked at here.
        executor: where tasks run; the caller closes it.
        notify: called with every event, in this process.

    Returns:
        The bracket and what it was made from. Equal inputs give equal bounds on every executor, provided
        that the libraries below use the same number of threads.

    Raises:
        PlanError: the network cannot be cut as asked, or a sub-problem fits no node.
        SolveError: a block has no bound at all, or the bounds contradict each other, which is a defect.
        ClusterError: the executor lost the place where its tasks run.
    """
    start = time.perf_counter()
    plan = make_plan(network, config)
    work = worklist(plan)
    tasks = make_tasks(network, plan, work, config)
    executor.check(tasks)
    notify(PlanReady(plan, len(tasks), sum(not isinstance(task.work, Ascent) for task in tasks), executor.description))
    state = _Progress(plan, work, config.composition, tasks, notify)
    for outcome in executor.run(tasks):
        state.add(outcome)
    bound = state.finish(time.perf_counter() - start)
    return RunOutcome(bound, plan, work, tuple(state.failures), state.seconds)


class _Progress:
    """What has come back so far, and the bracket it implies."""

    def __init__(self, plan: Plan, work: Worklist, composition: str, tasks: tuple[Task, ...], notify: Listener) -> None:
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = {}
        self._plan, self._work, self._composition = plan, work, composition
        self._tasks, self._notify = len(tasks), notify
        self._expected = sum(task.seconds for task in tasks)
        self._spent = 0.0
        self._certificates: dict[str, Certificate] = {}
        self._witnesses: dict[str, Witness] = {}
        self._lower = 0.0
        self._upper: float | None = None
        self._quiet_until = 0.0

    def add(self, outcome: Outcome) -> None:
        """Take one outcome in and tell the listener what is known now."""
        task = outcome.task
        failure = None
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
            failure = f"{outcome.kind}: {outcome.why}"
            self.seconds[task.key] = 0.0
        else:
            self._take(outcome)
        done = len(self.seconds)
        self._spent += task.seconds
        self._refresh(force=done == self._tasks)
        self._notify(
            TaskDone(
                label=task.label,
                seconds=self.seconds[task.key],
                done=done,
                tasks=self._tasks,
                share=1.0 if done == self._tasks else self._spent / self._expected,
                upper=self._upper,
                lower=self._lower,
                failure=failure,
            )
        )

    def _take(self, outcome: Done) -> None:
        task, value = outcome.task, outcome.value
        self.seconds[task.key] = outcome.seconds
        if isinstance(value, Witness):
            self._witnesses[task.key] = value
            if value.quotient > self._lower:
                self._lower = value.quotient
                self._notify(LowerBoundImproved(value.quotient, task.label))
        else:
            self._certificates[task.key] = value
            if value.status is Status.FALLBACK:
                self.failures.append(Failure(task, Status.FALLBACK.name, value.status.advice))

    def _refresh(self, *, force: bool) -> None:
        """Recompute the running bound, unless that would take a noticeable part of the time."""
        start = time.perf_counter()
        if force or start >= self._quiet_until:
            try:
                self._upper = self._compose().upper
            except SolveError:
                self._upper = None
            took = time.perf_counter() - start
            self._quiet_until = start + 20 * took

    def _compose(self) -> Bound:
        return compose(self._plan, self._certificates, composition=self._composition, work=self._work)

    def finish(self, seconds: float) -> Bound:
        """The bound of the whole run."""
        try:
            bound = self._compose()
        except SolveError as fault:
            causes = [f"{item.task.label} failed: {item.kind}: {item.why}" for item in self.failures]
            hint = fault.hint or (causes[0] if causes else "")
            raise SolveError(*fault.args, hint=hint) from None
        witness = best(self._witnesses)
        lower = 0.0 if witness is None else witness.quotient
        if lower > bound.upper:
            raise SolveError(
                "whole network",
                f"the lower bound {lower!r} exceeds the upper bound {bound.upper!r}; no result is given",
                hint="This is a defect of lipray: please report it with the model.",
            )
        pair = None if witness is None or lower == 0.0 else (witness.x, witness.y)
        return replace(bound, lower=lower, witness=pair, seconds=seconds)


def _ascent_task(ascent: Ascent) -> Task:
    network = ascent.network
    values = sum(node.size for node in network.nodes)
    memory = 8 * (12 * min(ascent.starts, task_width(network)) * values + sum(a.size for a in network.weights.values()))
    seconds = 14 * ascent.starts * ascent.steps * multiply_adds(network) / 4e9
    return Task(ascent.label, ascent.label, LOWER_GROUP, ascent, memory, seconds)


def block_of(plan: Plan, work: Worklist) -> dict[str, Block]:
    """The first block that each sub-problem belongs to, by the sub-problem's key."""
    owners: dict[str, Block] = {}
    for block, product in zip(plan.blocks, work.products, strict=True):
        for key in (product, *(work.tiles[tile.key] for tile in block.tiles)):
            owners.setdefault(key, block)
    return owners

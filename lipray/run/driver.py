"""One estimate from plan to bracket: tasks out, outcomes in, and a valid bound at every moment between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lipray.certify.certificate import Certificate, Status
from lipray.compose.bound import Bound
from lipray.compose.compose import compose
from lipray.config import EstimateConfig
from lipray.errors import SolveError
from lipray.model.network import Network
from lipray.partition.plan import Plan, TorusWork
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import Worklist, worklist
from lipray.run.budget import Clock, affordable, torus_limit
from lipray.run.events import (
    Listener,
    LowerBoundImproved,
    PlanReady,
    RoundDone,
    TaskDone,
    UpperBoundImproved,
    ignore,
)
from lipray.run.executor import Done, Executor, Failure, Outcome, Task
from lipray.run.lower_bound import Ascent, Witness, best
from lipray.run.recall import Memory, prove_again
from lipray.run.rounds import coordinate
from lipray.run.store import Store
from lipray.run.tasks import Schedule, schedule

BUDGET_SPENT = "BudgetSpent"
"""The kind of failure of what a budget left no time for."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished estimate: the bracket, the plan it came from, and every task that gave no value.

    ``stored`` are the keys of tasks whose answer a store had, ``store_faults`` what was wrong with the store.
    """

    bound: Bound
    plan: Plan
    work: Worklist
    failures: tuple[Failure, ...]
    task_seconds: Mapping[str, float]
    stored: frozenset[str] = frozenset()
    store_faults: tuple[str, ...] = ()


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
        switch=config.switch,
        device=config.device,
    )
    return plan_network(
        network,
        method=config.method,
        settings=settings,
        partition_factor=config.partition_factor,
        block_depth=config.block_depth,
        hand_over=config.chain is True,
    )


def estimate_network(
    network: Network,
    config: EstimateConfig,
    executor: Executor,
    notify: Listener = ignore,
    clock: Clock | None = None,
    store: Store | None = None,
) -> RunOutcome:
    """Bound the network's l2 Lipschitz constant from above and below.

    Every block's product bound is computed first; from then on there is a valid upper bound, which each
    finished sub-problem can only lower. What fails is replaced by its block's product bound and listed. Large problems
    on tori come last and one after the other, because all workers share the rounds of each. A budget
    limits the time of every part by estimate, and what its end cuts short has the best bound so far.

    Args:
        network: the whole network, its output rows already selected.
        config: what to do; where to write is not looked at here.
        executor: where tasks run; the caller closes it.
        notify: called with every event, in this process.
        clock: of the budget, where it began to run before this call.
        store: of solved tasks; what it holds is proven again instead of solved, what is solved is kept there.

    Returns:
        The bracket and what it was made from. Equal inputs give equal bounds on every executor, provided
        that the libraries below use the same number of threads.

    Raises:
        PlanError: the network cannot be cut as asked, or a sub-problem fits no node.
        SolveError: a block has no bound at all, or the bounds contradict each other, which is a defect.
        ClusterError: the executor lost the place where its tasks run.
    """
    start = time.monotonic()
    clock = clock or Clock(config.budget, start)
    plan = make_plan(network, config)
    work = worklist(plan)
    planned = schedule(network, plan, work, config, clock, executor.width(config.device))
    executor.check(planned.everything)
    problems = sum(not isinstance(task.work, Ascent) for task in planned.everything)
    notify(PlanReady(plan, len(planned.everything), problems, executor.description))
    state = _Progress(plan, work, config.composition, planned.everything, notify)
    memory = None if store is None else Memory(store, work, budgeted=clock.budget is not None)
    spared = frozenset() if memory is None else _recall(memory, planned, executor, state)
    for outcome in executor.run([task for task in planned.tasks if task.key not in spared]):
        state.add(outcome)
        if memory is not None and isinstance(outcome, Done):
            memory.keep(outcome)
    coordinated = [(task, torus) for task, torus in planned.coordinated if task.key not in spared]
    for number, (task, torus) in enumerate(coordinated):
        following = sum(item.seconds for item, _ in coordinated[number:])
        state.add(_coordinate(task, torus, executor, clock, task.seconds / following, state, memory))
    bound = state.finish(time.monotonic() - start)
    faults = () if memory is None else (*memory.store.damaged, *memory.faults)
    return RunOutcome(bound, plan, work, tuple(state.failures), state.seconds, spared, faults)


def _recall(memory: Memory, planned: Schedule, executor: Executor, state: _Progress) -> frozenset[str]:
    """Take in what a store holds, once it is proven again; the keys of the tasks that this spares."""
    final, begun = memory.find(planned.everything)
    spared = set()
    for task, value in prove_again(planned, final | begun, executor):
        if isinstance(value, Failure):
            memory.reject(task)
        elif task.key in final:
            state.add(Done(task, value, 0.0), stored=True)
            spared.add(task.key)
        elif isinstance(value, Certificate):
            state.improve(task, value, "stored")
    return frozenset(spared)


def _coordinate(
    task: Task,
    torus: TorusWork,
    executor: Executor,
    clock: Clock,
    share: float,
    state: _Progress,
    memory: Memory | None,
) -> Outcome:
    """One large problem on tori within its share of what is left of the budget."""
    assert isinstance(task.work, Subproblem)  # noqa: S101 (narrows the type)
    width = min(executor.width(task.device), torus.groups)
    left = clock.left
    if not affordable(torus, width, left):
        why = (
            f"its closed form is expected to take {torus.closed_form_seconds / width:.0f} s, "
            f"and {left:.0f} s of the budget were left; the product bound stands in its place"
        )
        return Failure(task, BUDGET_SPENT, why, 0)

    def report(certificate: Certificate, way: str) -> None:
        state.improve(task, certificate, way)
        if memory is not None:
            memory.keep_provisional(task, certificate)

    limit = torus_limit(torus, task.work.settings, width, left, share)
    outcome, lost = coordinate(
        task,
        torus,
        executor,
        time_limit=limit,
        report=report,
        heartbeat=lambda rounds, seconds: state.beat(task, rounds, seconds, limit),
    )
    state.failures.extend(lost)
    if memory is not None and isinstance(outcome, Done):
        memory.keep(outcome, whole=not lost)
    return outcome


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
        self._running: dict[str, Certificate] = {}
        self._lower = 0.0
        self._upper: float | None = None
        self._quiet_until = 0.0

    def add(self, outcome: Outcome, *, stored: bool = False) -> None:
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
                stored=stored,
            )
        )

    def improve(self, task: Task, certificate: Certificate, way: str) -> None:
        """Take in a better certificate of a problem that is still worked on."""
        known = self._running.get(task.key)
        if known is None or certificate.bound < known.bound:
            # Its key is that of a problem with the time limit that the budget set.
            self._running[task.key] = replace(certificate, key=task.key, status=Status.STALLED)
        self._refresh(force=True)
        self._notify(UpperBoundImproved(task.label, way, self._upper, self._lower))

    def beat(self, task: Task, rounds: int, seconds: float, limit: float | None) -> None:
        """Tell the listener that a coordinated problem goes on."""
        part = min(1.0, seconds / (limit or max(task.seconds, seconds, 1.0)))
        share = min(1.0, (self._spent + part * task.seconds) / self._expected)
        self._notify(RoundDone(task.label, rounds, seconds, limit, share, self._upper, self._lower))

    def _take(self, outcome: Done) -> None:
        task, value = outcome.task, outcome.value
        self.seconds[task.key] = outcome.seconds
        self._running.pop(task.key, None)
        if isinstance(value, Witness):
            self._witnesses[task.key] = value
            if value.quotient > self._lower:
                self._lower = value.quotient
                self._notify(LowerBoundImproved(value.quotient, task.label))
        elif isinstance(value, Certificate):
            # Where a budget set the time limit, the plan's key is the problem's, not that of its limit.
            value = replace(value, key=task.key)
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
        known = self._running | self._certificates
        return compose(self._plan, known, composition=self._composition, work=self._work)

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

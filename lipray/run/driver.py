"""Estimates from plan to bracket: tasks out, outcomes in, and a valid bound at every moment between.

One estimate is the case of several at once that share nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lipray.certify.certificate import Certificate
from lipray.compose.bound import Bound
from lipray.config import EstimateConfig
from lipray.errors import ClusterError, LiprayError, PlanError, SolveError
from lipray.model.network import Network
from lipray.partition.plan import Plan, RoundWork
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import Worklist, worklist
from lipray.run.bracket import Bracket
from lipray.run.budget import BUDGET_SPENT, SPENT, Clock, affordable, round_limit
from lipray.run.events import Listener, PlanReady, SweepReady, ignore
from lipray.run.executor import Done, Executor, Failure, Outcome, Task
from lipray.run.joint import Point, Pursuit, Together
from lipray.run.lower_bound import Ascent
from lipray.run.recall import Memory, prove_again, prove_in_rounds
from lipray.run.rescue import rescue
from lipray.run.rounds import coordinate
from lipray.run.stop import Stopped
from lipray.run.store.solved import Store
from lipray.run.tasks import Crowd, Schedule, schedule, solved_alone


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished estimate: the bracket, the plan it came from, and every task that gave no value.

    ``stored`` are the keys of tasks whose answer a store had, ``store_faults`` what was wrong with the store.
    ``stopped`` names the signal, or the fault of the cluster, that ended the run before its work was done.
    """

    bound: Bound
    plan: Plan
    work: Worklist
    failures: tuple[Failure, ...]
    task_seconds: Mapping[str, float]
    stored: frozenset[str] = frozenset()
    store_faults: tuple[str, ...] = ()
    stopped: str | None = None

    @property
    def complete(self) -> bool:
        """Whether no sub-problem failed, other than for want of the time that a budget did not give."""
        failed = [item for item in self.failures if isinstance(item.task.work, Subproblem) and item.kind not in SPENT]
        return self.stopped is None and not failed


Ending = RunOutcome | LiprayError | Stopped
"""How an estimate ends: with a bound, or with what kept it from one."""


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
        composition=config.composition,
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
    solved in rounds come last and one after the other, because all workers share the rounds of each. A budget
    limits the time of every part by estimate, and what its end cuts short has the best bound so far. Told to stop
    (``Stopped``), or without a cluster all of a sudden, the run ends with the bound it has then.

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
        ClusterError: the executor lost the place where its tasks run, before there was a bound.
        Stopped: told to stop, before there was a bound.
    """
    point = Point(network, config, notify)
    (ending,) = estimate_together((point,), executor, clock=clock, store=store)
    if isinstance(ending, BaseException):
        raise ending
    return ending


def estimate_together(
    points: Sequence[Point],
    executor: Executor,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    notify: Listener | None = None,
    conclude: Callable[[int, Ending], None] | None = None,
) -> tuple[Ending, ...]:
    """Estimates at once, over one executor: what several of them ask for is done once.

    Each is what ``estimate_network`` says, and has the same bound. A point that cannot be planned, or that has no
    bound, ends with its error, and the others go on. Tasks are interleaved, so that all points make progress.

    Args:
        points: the estimates; those of one network hold the same object.
        executor: where tasks run; the caller closes it.
        clock: of the budget that all share; by default that of the first point.
        store: of solved tasks.
        notify: told of all tasks, each once; ``None`` where every point is told on its own.
        conclude: called with a point's number and how it ended, as soon as its last task is in.

    Returns:
        How each ended, in order: an outcome, or the error; where told to stop before it had a bound, what told so.

    Raises:
        UsageError: an option names what the network does not have.
    """
    start = time.monotonic()
    clock = clock or Clock(points[0].config.budget, start)
    endings: dict[int, Ending] = {}
    pursuits = _begin(points, executor, clock, endings)
    together = Together(list(pursuits.values()), notify)
    memory = None if store is None else Memory(store, together.work, budgeted=clock.budget is not None)
    numbers = {id(pursuit): number for number, pursuit in pursuits.items()}

    def end(pursuit: Pursuit, stopped: str | None = None) -> None:
        ending = _ending(pursuit, time.monotonic() - start, memory, stopped)
        if conclude is not None:
            conclude(numbers[id(pursuit)], ending)
        endings[numbers[id(pursuit)]] = ending

    for number, refused in endings.items():
        if conclude is not None:
            conclude(number, refused)
    if not pursuits:
        return tuple(endings[number] for number in range(len(points)))
    if notify is not None:
        notify(SweepReady(len(pursuits), len(together.planned.everything), executor.description))
    executor.listen(notify or points[0].notify)
    try:
        spared = frozenset() if memory is None else _recall(memory, together, executor, end)
        _work(together, spared, executor, clock, memory, end)
        for number, pursuit in pursuits.items():
            if number not in endings:
                rescue(pursuit.point.config, pursuit.state, executor, clock, memory)
                end(pursuit)
    except (Stopped, ClusterError) as told:
        why = told.name if isinstance(told, Stopped) else told.describe()
        for number, pursuit in pursuits.items():
            if number in endings:
                continue
            if pursuit.done or pursuit.state.valid:
                end(pursuit, None if pursuit.done else why)
            else:
                endings[number] = told
    return tuple(endings[number] for number in range(len(points)))


def _begin(points: Sequence[Point], executor: Executor, clock: Clock, endings: dict[int, Ending]) -> dict[int, Pursuit]:
    """Plan all points, and tell each what its work is; those that cannot be done are among the endings."""
    plans: dict[int, tuple[Plan, Worklist]] = {}
    for number, point in enumerate(points):
        try:
            plan = make_plan(point.network, point.config)
        except PlanError as fault:
            endings[number] = fault
            continue
        plans[number] = plan, worklist(plan)
    solves = frozenset[str]().union(*(solved_alone(plan, work) for plan, work in plans.values()))
    crowd = Crowd(len(solves), len({id(points[number].network) for number in plans}))
    planned: dict[int, Schedule] = {}
    for number, (plan, work) in plans.items():
        point = points[number]
        width = executor.width(point.config.device)
        made = schedule(point.network, plan, work, point.config, clock, width, crowd)
        try:
            executor.check(made.everything)
        except PlanError as fault:
            endings[number] = fault
            continue
        planned[number] = made
    pursuits: dict[int, Pursuit] = {}
    for number, made in planned.items():
        point, (plan, work), tasks = points[number], plans[number], made.everything
        problems = sum(not isinstance(task.work, Ascent) for task in tasks)
        point.notify(PlanReady(plan, len(tasks), problems, executor.description))
        state = Bracket(plan, work, point.config.composition, tasks, point.notify, among=len(planned))
        pursuits[number] = Pursuit(point, plan, work, made, state)
    return pursuits


def _ending(pursuit: Pursuit, seconds: float, memory: Memory | None, stopped: str | None) -> RunOutcome | SolveError:
    """What a point comes to."""
    state = pursuit.state
    try:
        bound = state.finish(seconds)
    except SolveError as fault:
        return fault
    faults = () if memory is None else (*memory.store.damaged, *memory.faults)
    stored = frozenset(pursuit.stored)
    return RunOutcome(bound, state.plan, state.work, tuple(state.failures), state.seconds, stored, faults, stopped)


def _work(
    together: Together,
    spared: frozenset[str],
    executor: Executor,
    clock: Clock,
    memory: Memory | None,
    end: Callable[[Pursuit], None],
) -> None:
    """Do all that is not spared: tasks of their own first, then what the workers share."""
    planned = together.planned
    alone = [task for task in planned.tasks if task.key not in spared]
    for outcome in executor.run(alone, deadline=clock.deadline):
        finished = together.add(outcome)
        if memory is not None and isinstance(outcome, Done):
            memory.keep(outcome)
        for pursuit in finished:
            end(pursuit)
    coordinated = [(task, layout) for task, layout in planned.coordinated if task.key not in spared]
    for number, (task, layout) in enumerate(coordinated):
        following = sum(item.seconds for item, _ in coordinated[number:])
        share = task.seconds / following
        for pursuit in together.add(_coordinate(task, layout, executor, clock, share, together, memory)):
            end(pursuit)


def _recall(memory: Memory, together: Together, executor: Executor, end: Callable[[Pursuit], None]) -> frozenset[str]:
    """Take in what a store holds, once it is proven again; the keys of the tasks that this spares."""
    final, begun = memory.find(together.planned.everything)
    spared = set()
    for task, value in prove_again(together.planned, final | begun, executor):
        if isinstance(value, Failure):
            memory.reject(task)
        elif task.key in final:
            spared.add(task.key)
            for pursuit in together.add(Done(task, value, 0.0), stored=True):
                end(pursuit)
        elif isinstance(value, Certificate):
            together.improve(task, value, "stored")
    return frozenset(spared)


def _coordinate(
    task: Task,
    layout: RoundWork,
    executor: Executor,
    clock: Clock,
    share: float,
    together: Together,
    memory: Memory | None,
) -> Outcome:
    """One large problem, solved in rounds, within its share of what is left of the budget."""
    assert isinstance(task.work, Subproblem)  # noqa: S101 (narrows the type)
    width = min(executor.width(task.device), layout.groups)
    left = clock.left
    if not affordable(layout, width, left):
        why = (
            f"its closed form is expected to take {layout.closed_form_seconds / width:.0f} s, "
            f"and {left:.0f} s of the budget were left; the product bound stands in its place"
        )
        return Failure(task, BUDGET_SPENT, why, 0)

    def report(certificate: Certificate, way: str) -> None:
        together.improve(task, certificate, way)
        if memory is not None:
            memory.keep_provisional(task, certificate)

    limit = round_limit(layout, task.work.settings, width, left, share)
    journal = None if memory is None else memory.journal(task)
    outcome, lost = coordinate(
        task,
        layout,
        executor,
        time_limit=limit,
        report=report,
        heartbeat=lambda rounds, seconds: together.beat(task, rounds, seconds, limit),
        journal=journal,
        again=lambda certificate: prove_in_rounds(task, layout, executor, certificate),
    )
    together.lose(task, lost)
    if memory is not None and isinstance(outcome, Done):
        memory.keep(outcome, whole=not lost, journal=journal)
    return outcome

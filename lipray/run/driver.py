"""One estimate from plan to bracket: tasks out, outcomes in, and a valid bound at every moment between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lipray.certify.certificate import Certificate
from lipray.compose.bound import Bound
from lipray.config import EstimateConfig
from lipray.errors import ClusterError
from lipray.model.network import Network
from lipray.partition.plan import Plan, TorusWork
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import Worklist, worklist
from lipray.run.bracket import Bracket
from lipray.run.budget import BUDGET_SPENT, SPENT, Clock, affordable, torus_limit
from lipray.run.events import Listener, PlanReady, ignore
from lipray.run.executor import Done, Executor, Failure, Outcome, Task
from lipray.run.lower_bound import Ascent
from lipray.run.recall import Memory, prove_again, prove_in_rounds
from lipray.run.rescue import rescue
from lipray.run.rounds import coordinate
from lipray.run.stop import Stopped
from lipray.run.store import Store
from lipray.run.tasks import Schedule, schedule


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
    start = time.monotonic()
    clock = clock or Clock(config.budget, start)
    plan = make_plan(network, config)
    work = worklist(plan)
    planned = schedule(network, plan, work, config, clock, executor.width(config.device))
    executor.check(planned.everything)
    executor.listen(notify)
    problems = sum(not isinstance(task.work, Ascent) for task in planned.everything)
    notify(PlanReady(plan, len(planned.everything), problems, executor.description))
    state = Bracket(plan, work, config.composition, planned.everything, notify)
    memory = None if store is None else Memory(store, work, budgeted=clock.budget is not None)
    spared: frozenset[str] = frozenset()
    stopped = None
    try:
        spared = frozenset() if memory is None else _recall(memory, planned, executor, state)
        _work(planned, spared, config, executor, clock, state, memory)
    except (Stopped, ClusterError) as told:
        if not state.valid:
            raise
        stopped = told.name if isinstance(told, Stopped) else told.describe()
    bound = state.finish(time.monotonic() - start)
    faults = () if memory is None else (*memory.store.damaged, *memory.faults)
    return RunOutcome(bound, state.plan, state.work, tuple(state.failures), state.seconds, spared, faults, stopped)


def _work(
    planned: Schedule,
    spared: frozenset[str],
    config: EstimateConfig,
    executor: Executor,
    clock: Clock,
    state: Bracket,
    memory: Memory | None,
) -> None:
    """Do all that is not spared: tasks of their own first, then what the workers share, then what failed otherwise."""
    for outcome in executor.run([task for task in planned.tasks if task.key not in spared]):
        state.add(outcome)
        if memory is not None and isinstance(outcome, Done):
            memory.keep(outcome)
    coordinated = [(task, torus) for task, torus in planned.coordinated if task.key not in spared]
    for number, (task, torus) in enumerate(coordinated):
        following = sum(item.seconds for item, _ in coordinated[number:])
        state.add(_coordinate(task, torus, executor, clock, task.seconds / following, state, memory))
    rescue(config, state, executor, clock, memory)


def _recall(memory: Memory, planned: Schedule, executor: Executor, state: Bracket) -> frozenset[str]:
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
    state: Bracket,
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
    journal = None if memory is None else memory.journal(task)
    outcome, lost = coordinate(
        task,
        torus,
        executor,
        time_limit=limit,
        report=report,
        heartbeat=lambda rounds, seconds: state.beat(task, rounds, seconds, limit),
        journal=journal,
        again=lambda certificate: prove_in_rounds(task, torus, executor, certificate),
    )
    state.failures.extend(lost)
    if memory is not None and isinstance(outcome, Done):
        memory.keep(outcome, whole=not lost, journal=journal)
    return outcome

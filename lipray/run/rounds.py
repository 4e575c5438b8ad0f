"""A problem in rounds, coordinated: the optimiser runs here, and every round's bundles on the workers.

Bundles are of groups of frequencies on tori, or of one tile each of a block whose tiles are solved together.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lipray.certify.certificate import Certificate, Status
from lipray.errors import ClusterError
from lipray.partition.plan import RoundWork
from lipray.partition.subproblem import METRIC, Subproblem
from lipray.run.budget import OUT_OF_TIME, cut
from lipray.run.executor import Done, Executor, Failure, Outcome, Task, explain, owned
from lipray.run.store.journal import LONG, Journal

if TYPE_CHECKING:
    from lipray.certify.bundles import AnyBundle, AnyResult

Report = Callable[["Certificate", str], None]
"""Told of every better certificate of the problem, and of the way that gave it."""

Again = Callable[["Certificate"], "Certificate"]
"""Proves a certificate again, all of it here and now: the same multipliers with the bound recomputed.

Raises VerificationError where they prove nothing.
"""

Heartbeat = Callable[[int, float], None]
"""Told after every round: how many there were, and the seconds since the first began."""


def _ignore(rounds: int, seconds: float) -> None:
    del rounds, seconds


def coordinate(
    task: Task,
    layout: RoundWork,
    executor: Executor,
    *,
    time_limit: float | None,
    report: Report,
    heartbeat: Heartbeat = _ignore,
    journal: Journal | None = None,
    again: Again | None = None,
) -> tuple[Outcome, tuple[Failure, ...]]:
    """Solve the problem of a task, its bundles performed by the executor; and the bundles that were lost.

    Should the solver fail after a bound was certified, that bound is kept, without the multipliers it came from.

    Args:
        task: the problem.
        layout: what its rounds take.
        executor: where bundles are performed.
        time_limit: seconds.
        report: told of every better certificate.
        heartbeat: told of every round.
        journal: keeps results and states, and has those of an earlier process.
        again: proves a certificate again. A certificate that may rest on results of a journal counts only then.

    Raises:
        ClusterError: the place where bundles run is lost.
    """
    from lipray.certify.solve import checked
    from lipray.verify.torus.proof import LostBundleError

    problem = task.work
    assert isinstance(problem, Subproblem)  # noqa: S101 (narrows the type)
    width = executor.width(problem.settings.device)
    settings = replace(problem.settings, time_limit=time_limit, workers=width)
    deadline = None if time_limit is None else cut(time.monotonic(), time_limit)
    rounds = Rounds(task, layout, executor, heartbeat, deadline, journal=journal)
    best: list[Certificate] = []

    sure: list[tuple[object, Certificate]] = []

    def proven(certificate: Certificate) -> Certificate:
        if again is None or not rounds.recalled or certificate.proof is None:
            return certificate
        multipliers = certificate.proof.multipliers
        if not sure or sure[-1][0] is not multipliers:
            sure.append((multipliers, again(certificate)))
        return replace(certificate, bound=sure[-1][1].bound, gram=sure[-1][1].gram)

    def improved(certificate: Certificate, way: str) -> None:
        if rounds.replaying:
            return  # an earlier process was here, and what it had then is kept elsewhere
        best.append(proven(certificate))
        report(best[-1], way)

    start = time.perf_counter()
    try:
        certificate = _solver(problem)(replace(problem, settings=settings), rounds.spread, improved, journal)
        if certificate is None:
            return Failure(task, Status.FALLBACK.name, Status.FALLBACK.advice), tuple(rounds.lost)
        value = checked(problem, proven(certificate))
    except ClusterError:
        raise
    except LostBundleError as fault:
        # Only the closed form's: later ones leave what was proven before.
        if rounds.lost:
            return Failure(task, type(fault).__name__, explain(fault)), tuple(rounds.lost)
        why = "its closed form was not done when its time was spent; the product bound stands in its place"
        return Failure(task, OUT_OF_TIME, why, 0), ()
    except Exception as fault:  # noqa: BLE001 - whatever a solver raises, what is proven already stands
        if journal is not None and rounds.led:
            # What a journal holds may be anybody's: without it the problem is as if it had never been begun.
            journal.clear()
            seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
            return coordinate(task, layout, executor, time_limit=seconds, report=report, heartbeat=heartbeat)
        failure = Failure(task, type(fault).__name__, explain(fault))
        if not best:
            return failure, tuple(rounds.lost)
        value = replace(best[-1], status=Status.STALLED)
        return Done(task, value, time.perf_counter() - start), (*rounds.lost, failure)
    finally:
        executor.release()
    took = time.perf_counter() - start
    return Done(task, replace(value, seconds=rounds.core_seconds(took)), took), tuple(rounds.lost)


def _solver(problem: Subproblem) -> Callable[..., Certificate | None]:
    """What solves a problem in rounds: of its spread, report and journal."""
    if problem.method == METRIC:
        from lipray.certify.metric_solve import solve_metric

        return solve_metric
    from lipray.certify.frequency.solve import solve_frequency

    return solve_frequency


class Rounds:
    """The rounds of one problem: bundles become tasks, and their results return in order."""

    def __init__(
        self,
        task: Task,
        layout: RoundWork,
        executor: Executor,
        heartbeat: Heartbeat = _ignore,
        deadline: float | None = None,
        *,
        memory: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.lost: list[Failure] = []
        self.led = self.recalled = self.replaying = False
        self._waited = self._worked = 0.0
        self._journal = journal
        self._memory = bundle_memory(task) if memory is None else memory
        self._deadline = deadline
        self._task, self._layout, self._executor, self._heartbeat = task, layout, executor, heartbeat
        self._held = 8 * sum(array.size for array in task.work.network.weights.values())
        self._numbers = itertools.count(1)
        self._start = time.monotonic()

    def spread(self, bundles: Sequence[AnyBundle]) -> list[AnyResult | None]:
        """Perform bundles wherever the executor runs tasks; ``None`` for one that was lost or failed.

        ``led``: some result came from the journal; ``recalled``: one of a proof did; ``replaying``: all of the last
        round's did.
        """
        number, began = next(self._numbers), time.perf_counter()
        known: list[AnyResult | None] = [None] * len(bundles)
        if self._journal is not None:
            known = self._journal.recall(bundles)
        results = known.copy()
        tasks = [
            self._bundle_task(number, index, bundle) for index, bundle in enumerate(bundles) if known[index] is None
        ]
        places = {task.key: index for index, task in zip(_missing(known), tasks, strict=True)}
        for outcome in self._executor.run(tasks, keep=True, deadline=self._deadline) if tasks else ():
            if isinstance(outcome, Done):
                index = places[outcome.task.key]
                self._worked += outcome.seconds
                results[index] = owned(outcome.value)
                if self._journal is not None and outcome.seconds >= LONG:
                    self._journal.keep_one(bundles[index], results[index])  # type: ignore[arg-type]  # it is no longer missing
            elif outcome.kind != OUT_OF_TIME:
                self.lost.append(outcome)
        self.led = self.led or len(tasks) < len(bundles)
        self.replaying = not tasks and bool(bundles)
        proof = any(bundle.proof for bundle in bundles)
        self.recalled = self.recalled or (proof and len(tasks) < len(bundles))
        if self._journal is not None and tasks and None not in results:
            self._journal.keep_round(bundles, results)  # type: ignore[arg-type]  # none is missing
        self._heartbeat(number, time.monotonic() - self._start)
        self._waited += time.perf_counter() - began
        return results

    def core_seconds(self, took: float) -> float:
        """Seconds of one core: of all bundles, and of what was done between the rounds, of ``took`` by the clock."""
        return self._worked + max(0.0, took - self._waited)

    def _bundle_task(self, number: int, index: int, bundle: AnyBundle) -> Task:
        layout, groups = self._layout, bundle.share
        label = f"{self._task.label} round {number}/{index + 1}"
        # Tiles differ in their networks, of which workers keep what they derive.
        group = (
            f"{self._task.group} tile {index + 1}"
            if bundle.network is not self._task.work.network
            else self._task.group
        )
        # The solver cuts bundles to the memory allowed, by an estimate of its own.
        memory = self._held + min(groups * layout.group_memory, max(self._memory, layout.group_memory))
        return Task(label, label, group, bundle, memory, layout.pass_seconds * groups / layout.groups)


def _missing(known: Sequence[object]) -> list[int]:
    return [index for index, result in enumerate(known) if result is None]


def bundle_memory(task: Task) -> int:
    """Bytes that one bundle of a problem may take at most, by the problem's settings."""
    assert isinstance(task.work, Subproblem)  # noqa: S101 (narrows the type)
    return task.work.settings.memory

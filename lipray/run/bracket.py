"""The bracket of a run: every outcome narrows it, and at any moment it is valid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lipray.certify.certificate import Certificate, Status
from lipray.compose.bound import Bound
from lipray.compose.compose import compose
from lipray.errors import SolveError
from lipray.partition.plan import Plan
from lipray.partition.worklist import Worklist
from lipray.run.events import Listener, LowerBoundImproved, RoundDone, TaskDone, UpperBoundImproved
from lipray.run.executor import Done, Failure, Outcome, Task
from lipray.run.lower_bound import Witness, best


class Bracket:
    """What has come back so far, and the bracket that it implies at this moment.

    ``among`` so many brackets the time is shared that keeping them up to date may take.
    """

    def __init__(
        self,
        plan: Plan,
        work: Worklist,
        composition: str,
        tasks: tuple[Task, ...],
        notify: Listener,
        *,
        among: int = 1,
    ) -> None:
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = {}
        self.plan, self.work, self._composition = plan, work, composition
        self._tasks, self._notify = len(tasks), notify
        self._expected = sum(task.seconds for task in tasks)
        self._spent = 0.0
        self._certificates: dict[str, Certificate] = {}
        self._witnesses: dict[str, Witness] = {}
        self._running: dict[str, Certificate] = {}
        self._lower = 0.0
        self._upper: float | None = None
        self._quiet_until, self._among = 0.0, among

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the sub-problems that have a certificate."""
        return frozenset(self._certificates)

    def replan(self, plan: Plan, work: Worklist) -> None:
        """Go on with another plan of the same network; what is known of it stays known."""
        self.plan, self.work = plan, work

    def expect(self, tasks: Sequence[Task]) -> None:
        """More is to be done than was planned."""
        self._tasks += len([task for task in tasks if task.key not in self.seconds])
        self._expected += sum(task.seconds for task in tasks)

    @property
    def upper(self) -> float | None:
        """The upper bound as it was last composed."""
        return self._upper

    @property
    def lower(self) -> float:
        """The lower bound so far."""
        return self._lower

    @property
    def valid(self) -> bool:
        """Whether every block has a bound already."""
        try:
            self._compose()
        except SolveError:
            return False
        return True

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
                **_particulars(outcome),
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
            self._quiet_until = start + 20 * self._among * took

    def _compose(self) -> Bound:
        known = self._running | self._certificates
        return compose(self.plan, known, composition=self._composition, work=self.work)

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


def _particulars(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {}
    status = outcome.value.status.value if isinstance(outcome.value, Certificate) else ""
    return {"status": status, "began": outcome.began, "where": outcome.where}

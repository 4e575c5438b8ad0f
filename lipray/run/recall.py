"""What a store knows of a plan: found answers are proven again before they count, and everything new is kept.

A certificate from a store is a claim. Its multipliers are checked by ``lipray.verify`` like any certificate's, as tasks
of the executor, and the bound that counts is the one recomputed; a pair of points is evaluated again. So neither damage
nor malice in a store can make a bound too small; it only costs the work that the store would have saved. Products of
norms are not asked for: recomputing one is what checking it would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lipray.certify.certificate import Certificate
from lipray.errors import StoreError, VerificationError
from lipray.partition.plan import RoundWork
from lipray.partition.subproblem import Subproblem
from lipray.partition.worklist import Worklist
from lipray.run.executor import Done, Executor, Failure, Task, explain
from lipray.run.lower_bound import Ascent, Witness
from lipray.run.store.journal import Journal
from lipray.run.store.objects import Stored, object_key
from lipray.run.store.solved import Store
from lipray.run.tasks import Schedule

WORTH = 0.1
"""Seconds of solving below which an answer is not worth the wait for a disk: a loss of power may take it."""
FAULTS = 3
"""Writes that may fail one after the other before no more are tried."""


@dataclass(slots=True)
class Memory:
    """A store, the sub-problems of a plan by key, and whether a budget cuts their solving short.

    What a budget may have cut is kept apart, as provisional: it is a bound to begin with, and is worked on again.
    """

    store: Store
    work: Worklist
    budgeted: bool
    faults: list[str] = field(default_factory=list)
    _failed: int = 0

    def find(self, tasks: Sequence[Task]) -> tuple[dict[str, Stored], dict[str, Certificate]]:
        """Answers by task key: those that spare the task, and those that are only a bound to begin with."""
        final: dict[str, Stored] = {}
        begun: dict[str, Certificate] = {}
        for task in tasks:
            asked = self._asked(task)
            if asked is None:
                continue
            try:
                found = self.store.get(asked)
                provisional = None if found is not None else self.store.get(asked, provisional=True)
            except StoreError as fault:
                self._fault(fault)
                break
            if found is not None and _fits(asked, found):
                final[task.key] = found
            elif isinstance(provisional, Certificate) and _fits(asked, provisional):
                begun[task.key] = provisional
        return final, begun

    def journal(self, task: Task) -> Journal | None:
        """The journal of a coordinated problem, where what an earlier process came to is found again."""
        asked = self._asked(task)
        if asked is None:
            return None
        return Journal(self.store.files.below(f"journal/{object_key(asked)}"), self._fault)

    def keep(self, outcome: Done, *, whole: bool = True, journal: Journal | None = None) -> None:
        """Keep a new answer; a store that cannot be written costs nothing but that.

        Where it is not ``whole`` (work was lost on the way) it is only a bound to begin with another time. The
        ``journal`` that led to a final answer has served.
        """
        asked = self._asked(outcome.task)
        if asked is None or self._failed >= FAULTS or not isinstance(outcome.value, Certificate | Witness):
            return
        value = outcome.value
        if isinstance(value, Certificate):
            if value.proof is None or value.proof.kind == "product":
                return
            value = replace(value, key=outcome.task.key, seconds=value.seconds or outcome.seconds)
        provisional = self.budgeted or not whole
        durable = outcome.seconds >= WORTH
        kept = self._write(asked, value, provisional=provisional, durable=durable)
        if kept and journal is not None and not provisional:
            journal.clear()

    def keep_provisional(self, task: Task, certificate: Certificate) -> None:
        """Keep what a problem that is still worked on has reached, so that it outlives this process."""
        asked = self._asked(task)
        if asked is None or self._failed >= FAULTS or certificate.proof is None:
            return
        self._write(asked, replace(certificate, key=task.key), provisional=True)

    def reject(self, task: Task) -> None:
        """Put away an answer that did not hold; where that cannot be done, it is only not used."""
        asked = self._asked(task)
        if asked is None:
            return
        try:
            self.store.reject(asked, "its multipliers do not prove its bound")
        except StoreError as fault:
            self._fault(fault)

    def _write(self, asked: Subproblem | Ascent, value: Stored, *, provisional: bool, durable: bool = True) -> bool:
        try:
            self.store.put(asked, value, provisional=provisional, durable=durable)
        except StoreError as fault:
            self._failed += 1
            self._fault(fault)
            return False
        self._failed = 0
        return True

    def _asked(self, task: Task) -> Subproblem | Ascent | None:
        """The work as the plan has it: a time limit that a budget gives a task is no part of the question."""
        if isinstance(task.work, Ascent):
            return task.work
        problem = self.work.by_key.get(task.key)
        return None if problem is None or problem.method == "product" else problem

    def _fault(self, fault: StoreError) -> None:
        text = fault.describe()
        if text not in self.faults:
            self.faults.append(text)


def prove_again(
    planned: Schedule, found: Mapping[str, Stored], executor: Executor
) -> Iterator[tuple[Task, Stored | Failure]]:
    """Check found answers on an executor: each with its recomputed figure, or why it does not hold.

    Args:
        planned: the tasks that the answers are to.
        found: answers by task key.
        executor: where the proofs are done.
    """
    from lipray.verify.prove import Figure, Problem

    layouts = {task.key: layout for task, layout in planned.coordinated}
    checks: list[Task] = []
    for task in planned.everything:
        value = found.get(task.key)
        if isinstance(value, Certificate) and value.proof is not None:
            problem = Problem(task.label, task.work.network, value.proof, value.bound)
            check = replace(task, label=f"{task.label} (stored)", work=problem)
            if task.key not in layouts:
                checks.append(check)
                continue
            try:
                yield task, prove_in_rounds(task, layouts[task.key], executor, value)
            except VerificationError as fault:
                yield task, Failure(task, type(fault).__name__, explain(fault))
        elif isinstance(value, Witness):
            from lipray.run.lower_bound import attained

            quotient = attained(task.work.network, value.x, value.y)
            if math.isfinite(quotient):
                yield task, replace(value, quotient=quotient)
            else:
                yield task, Failure(task, "Witness", "its points attain no finite quotient")
    plain = {task.key: task for task in planned.everything}
    for outcome in executor.run(checks):
        task = plain[outcome.task.key]
        if isinstance(outcome, Failure):
            yield task, replace(outcome, task=task)
            continue
        known, proven = found[task.key], outcome.value
        assert isinstance(proven, Figure)  # noqa: S101 (what such a task returns)
        assert isinstance(known, Certificate)  # noqa: S101 (only certificates are checked)
        yield task, replace(known, bound=proven.bound, gram=proven.gram)


def prove_in_rounds(task: Task, layout: RoundWork, executor: Executor, value: Certificate) -> Certificate:
    """A coordinated problem's certificate with its bound recomputed from its multipliers.

    Raises:
        VerificationError: they prove no bound.
        ClusterError: bundles were lost.
    """
    from lipray.run.verification import in_rounds
    from lipray.verify.prove import Problem

    assert isinstance(task.work, Subproblem)  # noqa: S101 (what is coordinated)
    if value.proof is None:
        raise VerificationError(task.label, "its certificate holds no multipliers")
    problem = Problem(task.label, task.work.network, value.proof, value.bound)
    check = replace(task, label=f"{task.label} (again)", work=problem)
    figure = in_rounds(problem, check, layout, executor, task.work.settings.memory)
    return replace(value, bound=figure.bound, gram=figure.gram)


def _fits(asked: Subproblem | Ascent, found: Stored) -> bool:
    """Whether an answer is one to this kind of question, about these shapes."""
    if isinstance(asked, Ascent):
        return isinstance(found, Witness) and found.x.shape == asked.network.input_shape
    return isinstance(found, Certificate) and found.key == asked.key() and found.proof is not None

"""Tasks, what becomes of them, and the small interface behind which they are executed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lipray.certify.certificate import Certificate
from lipray.errors import LiprayError, SolveError
from lipray.partition.subproblem import Subproblem
from lipray.run.lower_bound import Ascent, Witness

Work = Subproblem | Ascent
Value = Certificate | Witness


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work: an idempotent, deterministic computation on values.

    ``key`` is unique in a run. Tasks of one ``group`` share most of their arrays. ``memory`` (bytes) and
    ``seconds`` are estimates.
    """

    key: str
    label: str
    group: str
    work: Work
    memory: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """A task's value, and the seconds it took where it ran."""

    task: Task
    value: Value
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A task without a value: the kind of fault (an exception's name), why, and how often it was tried."""

    task: Task
    kind: str
    why: str
    attempts: int = 1


Outcome = Done | Failure


class Executor(Protocol):
    """Runs tasks somewhere; a task that fails is an outcome, never an exception."""

    @property
    def name(self) -> str:
        """``"serial"`` or ``"ray"``."""

    @property
    def description(self) -> str:
        """Where the tasks run, in a few words for a reader."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that can never run here.

        Raises:
            InfeasibleResourcesError: a task needs more memory than there is anywhere.
        """

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """One outcome per task, in the order of completion; the first tasks are started first.

        Raises:
            ClusterError: the place where tasks run is lost.
        """

    def close(self) -> None:
        """Release what the executor holds; calling it twice is harmless."""


def perform(work: Work) -> Value:
    """Do the work of one task; the same in every executor."""
    if isinstance(work, Ascent):
        from lipray.run.lower_bound import ascend

        return ascend(work)
    from lipray.certify.solve import solve

    return solve(work)


def attempt(task: Task) -> Outcome:
    """Perform a task; an exception becomes a ``Failure``."""
    start = time.perf_counter()
    try:
        value = perform(task.work)
    except Exception as fault:  # noqa: BLE001 - whatever a solver raises, the run goes on with the fallback
        return Failure(task, type(fault).__name__, explain(fault))
    return Done(task, value, time.perf_counter() - start)


def explain(fault: BaseException) -> str:
    """The reason of a fault in one line."""
    if isinstance(fault, SolveError):
        return str(fault.args[-1])
    if isinstance(fault, LiprayError):
        return fault.describe()
    text = str(fault).strip()
    return text.splitlines()[0][:300] if text else type(fault).__name__

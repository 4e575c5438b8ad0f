"""Tasks, what becomes of them, and the small interface behind which they are executed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lipray.errors import LiprayError, SolveError
from lipray.partition.subproblem import TORUS_METHODS, Subproblem
from lipray.run.budget import OUT_OF_TIME
from lipray.run.lower_bound import Ascent, Witness

if TYPE_CHECKING:
    from lipray.certify.bundles import AnyBundle, AnyResult
    from lipray.certify.certificate import Certificate
    from lipray.run.events import Listener
    from lipray.verify.prove import Figure, Problem

    Work = Subproblem | Ascent | AnyBundle | Problem
    Value = Certificate | Witness | AnyResult | Figure


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work: an idempotent, deterministic computation on values.

    ``key`` is unique in a run. Tasks of one ``group`` share most of their arrays. ``memory`` (bytes) and
    ``seconds`` are estimates. The work is a sub-problem, a search for a lower bound, a bundle of a round, or a
    proof to be checked. What is ``needed`` is done even after a deadline.
    """

    key: str
    label: str
    group: str
    work: Work
    memory: int
    seconds: float
    needed: bool = False

    @property
    def device(self) -> str:
        """Torch's name of the device the work needs."""
        if isinstance(self.work, Subproblem):
            return self.work.settings.device if self.work.method in TORUS_METHODS else "cpu"
        return getattr(self.work, "device", "cpu")


@dataclass(frozen=True, slots=True)
class Done:
    """A task's value, the seconds it took where it ran, when it began (since 1970), and where that was."""

    task: Task
    value: Value
    seconds: float
    began: float = 0.0
    where: str = ""


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

    def width(self, device: str) -> int:
        """How many tasks on a device run at one time."""

    def run(self, tasks: Sequence[Task], *, keep: bool = False, deadline: float | None = None) -> Iterator[Outcome]:
        """One outcome per task, in the order of completion; the first tasks are started first.

        With ``keep`` the arrays of the tasks' groups stay where tasks run, for further calls with the same
        arrays (compared by identity), until ``release``. What is not done at the ``deadline``
        (``time.monotonic``) fails then, unless it is needed; a task under way in this very process is not cut short.

        Raises:
            ClusterError: the place where tasks run is lost.
        """

    def listen(self, notify: Listener) -> None:
        """Tell a listener of what is tried again."""

    def release(self) -> None:
        """Let go of the arrays that were kept."""

    def close(self) -> None:
        """Release what the executor holds; calling it twice is harmless."""


def late(task: Task) -> Failure:
    """The outcome of a task that was not done at the deadline."""
    return Failure(task, OUT_OF_TIME, "it was not done when its time was spent", 0)


def perform(work: Work) -> Value:
    """Do the work of one task; the same in every executor."""
    if isinstance(work, Ascent):
        from lipray.run.lower_bound import ascend

        return ascend(work)
    if isinstance(work, Subproblem):
        from lipray.certify.solve import solve

        return solve(work)
    from lipray.verify.prove import Problem, prove

    if isinstance(work, Problem):
        return prove(work)
    from lipray.certify.bundles import perform as perform_bundle

    return perform_bundle(work)


def attempt(task: Task) -> Outcome:
    """Perform a task; an exception becomes a ``Failure``."""
    began, start = time.time(), time.perf_counter()
    try:
        value = perform(task.work)
    except Exception as fault:  # noqa: BLE001 - whatever a solver raises, the run goes on with the fallback
        return Failure(task, type(fault).__name__, explain(fault))
    return Done(task, value, time.perf_counter() - start, began)


def owned(value: Any) -> Any:
    """A result whose arrays have their own memory, which can be written to.

    What comes out of an object store has neither: its arrays pin the message that they came in, and are locked, which
    torch does not know of.
    """
    if isinstance(value, np.ndarray):
        return value if value.flags.owndata and value.flags.writeable else value.copy()
    if isinstance(value, tuple):
        own = tuple(owned(part) for part in value)
        return own if any(new is not old for new, old in zip(own, value, strict=True)) else value
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        fresh = {name: owned(part) for name, part in parts.items()}
        changed = {name: part for name, part in fresh.items() if part is not parts[name]}
        return replace(value, **changed) if changed else value
    return value


def explain(fault: BaseException) -> str:
    """The reason of a fault in one line."""
    if isinstance(fault, SolveError):
        return str(fault.args[-1])
    if isinstance(fault, LiprayError):
        return fault.describe()
    text = str(fault).strip()
    return text.splitlines()[0][:300] if text else type(fault).__name__

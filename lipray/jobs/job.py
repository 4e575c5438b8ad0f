"""A job of lipray as the cluster tells of it, and what its exit code means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from lipray.jobs.request import Request

TERMINATED = 143
"""Exit code of a driver that was stopped; Ray keeps none of a job that it stops."""

_RUN, _ATTEMPT, _MODEL, _STORE = "lipray_run", "lipray_attempt", "lipray_model", "lipray_store"
_VERSION, _CONFIG = "lipray_version", "lipray_config"
_COMMAND, _SHIPPED = "lipray_command", "lipray_shipped"

MEANINGS = {
    0: "a certified bound",
    1: "a defect of lipray",
    2: "an option or argument is wrong",
    3: "a configuration file is wrong",
    4: "the model cannot be read, or has a layer without a global constant",
    5: "the network cannot be cut as asked, or a sub-problem fits no node",
    6: "a sub-problem has no certificate and no fallback",
    7: "the store cannot be read or written",
    8: "Ray failed, or is another version",
    9: "a certificate does not prove what it claims",
    10: "a valid bound, but incomplete: product bounds stand in for tasks that failed",
    126: "the head cannot run python",
    127: "the head has no python on its PATH",
    130: "interrupted, with the best valid bound so far",
    143: "stopped, with the best valid bound so far",
}
"""What the exit codes of a driver mean."""


class State(Enum):
    """Where a job is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in {State.SUCCEEDED, State.FAILED, State.STOPPED}


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of a run on a cluster; times are seconds since 1970.

    ``command`` is the command line that submitted it, ``shipped`` whether files of its sender were sent along.
    """

    submission_id: str
    run: str
    attempt: int
    state: State
    model: str
    store: str
    version: str
    config_hash: str
    command: str
    shipped: bool
    started: float
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def meaning(self) -> str:
        """What the exit code says; empty while there is none."""
        if self.exit_code is None:
            return "stopped" if self.state is State.STOPPED else ""
        return MEANINGS.get(self.exit_code, f"killed by signal {-self.exit_code}" if self.exit_code < 0 else "unknown")

    @property
    def status_code(self) -> int:
        """The exit code as a command hands it on: a signal as shells tell it, 143 where Ray stopped the job."""
        if self.exit_code is None:
            return TERMINATED
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


def metadata_of(
    request: Request, *, attempt: int, store: str, version: str, command: str, shipped: bool
) -> dict[str, str]:
    """What is kept with a job; nothing of it is secret."""
    return {
        _RUN: request.run,
        _ATTEMPT: str(attempt),
        _MODEL: request.name,
        _VERSION: version,
        _CONFIG: request.config_hash,
        _STORE: store,
        _COMMAND: command,
        _SHIPPED: "yes" if shipped else "no",
    }


def read_job(details: Any) -> Job | None:
    """A job from Ray's record of it; ``None`` where lipray did not submit it."""
    kept = details.metadata or {}
    if details.submission_id is None or _RUN not in kept:
        return None
    return Job(
        submission_id=details.submission_id,
        run=kept[_RUN],
        attempt=int(kept[_ATTEMPT]) if kept.get(_ATTEMPT, "").isdigit() else 1,
        state=State(str(getattr(details.status, "value", details.status)).lower()),
        model=kept.get(_MODEL, ""),
        store=kept.get(_STORE, ""),
        version=kept.get(_VERSION, ""),
        config_hash=kept.get(_CONFIG, ""),
        command=kept.get(_COMMAND, ""),
        shipped=kept.get(_SHIPPED) == "yes",
        started=(details.start_time or 0) / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )

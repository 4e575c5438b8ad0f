"""What ``events.jsonl`` tells, read back: a line per event, and what cannot be read counted."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from lipray.run.record.folder import EVENTS, RunFolder


class EventLine(BaseModel):
    """One event as it was written down, see ``lipray.run.events``; what a kind of event does not have is empty.

    ``time`` and ``began`` are seconds since 1970, ``seconds`` what a task took.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    time: float
    event: str
    label: str = ""
    seconds: float = 0.0
    began: float = 0.0
    where: str = ""
    status: str = ""
    failure: str = ""
    stored: bool = False
    upper: float | None = None
    lower: float | None = None
    place: str = ""
    kind: str = ""
    why: str = ""
    attempt: int = 0
    rounds: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """The events of a run, those of all its attempts, in the order in which they were heard.

    ``damaged`` lines could not be read, such as the last of a driver that was killed.
    """

    events: tuple[EventLine, ...]
    damaged: int = 0


def read_history(folder: RunFolder) -> History:
    """The events of a run so far; none where there is no file of them.

    Raises:
        StoreError: the file cannot be read.
    """
    events, damaged = [], 0
    for line in (folder.read(EVENTS) or b"").split(b"\n"):
        if not line.strip():
            continue
        try:
            events.append(EventLine.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return History(tuple(events), damaged)

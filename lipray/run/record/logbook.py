"""The record of a run while it goes on: its manifest, what happens, and how far it is.

A run folder that cannot be written any more costs the record, not the run.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from lipray.errors import StoreError
from lipray.run.events import Event, Listener, PlanReady, RoundDone, Silence, SweepReady, TaskDone
from lipray.run.record.folder import EVENTS, MANIFEST, PLAN, PROGRESS, RunFolder
from lipray.run.record.plan_record import describe_plan
from lipray.run.record.records import ManifestRecord, ProgressRecord, State
from lipray.run.store.files import LocalFiles

BEAT = 2.0
"""Seconds between two looks at what is to be written."""
PAUSES = (2.0, 20.0)
"""Seconds between two writes, to a local folder and to a remote one."""
SILENCE = 600.0
"""Seconds without any event after which a run says so."""
FAULTS = 3
"""Writes that may fail one after the other before no more are tried."""


class Logbook:
    """A listener that writes down what it hears, and hands it on; a thread of its own does the writing.

    Until the plan is ready nothing is written, so that a mistake in the request leaves nothing behind. One that is not
    ``live`` writes at the end only: a point of a sweep, whose progress is the sweep's.
    """

    def __init__(
        self, folder: RunFolder, manifest: ManifestRecord, notify: Listener, *, spent: float = 0.0, live: bool = True
    ) -> None:
        self.faults: list[str] = []
        self.begun = False
        self._folder, self._manifest, self._notify, self._spent, self._live = folder, manifest, notify, spent, live
        self._plan: bytes | None = None
        self._start = self._heard = self._written = time.monotonic()
        self._lines: list[str] = []
        self._progress = ProgressRecord(time=time.time(), attempt=manifest.attempt, seconds=spent, tasks=0)
        self._failed = 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._pause = PAUSES[0] if isinstance(folder.files, LocalFiles) else PAUSES[1]
        self._thread = threading.Thread(target=self._beat, name="logbook", daemon=True)

    def __call__(self, event: Event) -> None:
        """Write an event down, in time, and hand it on.

        Raises:
            StoreError: the run's first files cannot be written.
        """
        self._heard = time.monotonic()
        if isinstance(event, PlanReady | SweepReady) and not self.begun:
            self._begin(event)
        if self.begun:
            self._lines.append(json.dumps({"time": round(time.time(), 3), **describe(event)}))
            self._note(event)
        self._notify(event)

    @property
    def name(self) -> str:
        """The run's identifier."""
        return self._folder.name

    @property
    def place(self) -> str:
        """Path or URL of the run folder."""
        return self._folder.place

    def finish(self, files: Mapping[str, bytes], state: State, why: str = "") -> None:
        """Write the last files, and the manifest that lists them.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.close()
        if self.begun and not self._live:
            self._write_all()
        for name, content in files.items():
            self._folder.write(name, content)
        self._manifest = self._manifest.model_copy(
            update={
                "state": state,
                "why": why,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            }
        )
        self._folder.write(MANIFEST, _json(self._manifest))

    def close(self) -> None:
        """Write what is left, and no more."""
        if self._over.is_set():
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.begun and self._live:
            self._write_down()

    def _begin(self, event: PlanReady | SweepReady) -> None:
        if isinstance(event, PlanReady):
            self._plan = _json(describe_plan(event.plan, self._manifest.model))
        if self._live:
            self._folder.write(MANIFEST, _json(self._manifest))
            if self._plan is not None:
                self._folder.write(PLAN, self._plan)
        self.begun = True
        self._note(event)
        if self._live:
            self._write_down()
            self._thread.start()

    def _write_all(self) -> None:
        """What a live run has written on the way."""
        if self._plan is not None:
            self._folder.write(PLAN, self._plan)
        self._folder.write(EVENTS, "".join(f"{line}\n" for line in self._lines).encode())
        seconds = self._spent + time.monotonic() - self._start
        self._folder.write(PROGRESS, _json(self._progress.model_copy(update={"time": time.time(), "seconds": seconds})))

    def _note(self, event: Event) -> None:
        changes: dict[str, Any] = {}
        if isinstance(event, PlanReady | SweepReady):
            changes["tasks"] = event.tasks
        elif isinstance(event, TaskDone):
            changes = {
                "done": event.done,
                "stored": self._progress.stored + event.stored,
                "failed": self._progress.failed + (event.failure is not None),
            }
        for name in ("share", "upper", "lower"):
            value = getattr(event, name, None)
            if value is not None:
                changes[name] = value
        self._progress = self._progress.model_copy(update=changes)

    def _beat(self) -> None:
        warned = self._heard
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if now - self._written >= self._pause:
                self._write_down()
            if now - max(self._heard, warned) >= SILENCE:
                warned = now
                left = self._progress.tasks - self._progress.done
                self._notify(Silence(now - self._heard, left))

    def _write_down(self) -> None:
        """Events to the end of their file, and progress in the place of what it was."""
        with self._lock:
            lines, self._lines = self._lines, []
            self._written = time.monotonic()
            seconds = self._spent + self._written - self._start
            progress = self._progress.model_copy(update={"time": time.time(), "seconds": seconds})
            if self._failed >= FAULTS:
                return
            try:
                if lines:
                    self._folder.files.append(EVENTS, "".join(f"{line}\n" for line in lines).encode())
                self._folder.write(PROGRESS, _json(progress), durable=False)
                self._failed = 0
            except Exception as fault:  # noqa: BLE001 - file systems raise what they like
                self._failed += 1
                text = fault.describe() if isinstance(fault, StoreError) else f"{EVENTS} cannot be written ({fault})"
                if text not in self.faults:
                    self.faults.append(text)
            if not isinstance(self._folder.files, LocalFiles):
                # A remote file of events is put as a whole every time.
                self._pause = max(PAUSES[1], 20.0 * (time.monotonic() - self._written))


def describe(event: Event) -> dict[str, Any]:
    """An event as a record: its name, and its fields where they are numbers or text."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    if isinstance(event, PlanReady):
        return {"event": name, "tasks": event.tasks, "subproblems": event.subproblems, "place": event.place}
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, RoundDone | TaskDone):
        values["seconds"] = round(event.seconds, 6)
    return {"event": name, **{key: _plain(value) for key, value in values.items() if value not in (None, "")}}


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _json(record: Any) -> bytes:
    text: str = record.model_dump_json(indent=1)
    return text.encode() + b"\n"

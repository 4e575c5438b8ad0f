"""A store of solved tasks by content.

An object is a record, ``objects/ab/<key>.json``, and the arrays it names, ``objects/cd/<SHA-256>.npz``, written first.
What is damaged is moved to ``quarantine/`` and counted, and the task is done again. Any number of drivers may share a
store: whichever record was written last, it names its own arrays.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from lipray.errors import StoreError
from lipray.partition.subproblem import Subproblem
from lipray.run.lower_bound import Ascent
from lipray.run.store.files import Backend, LocalFiles, open_files, reason
from lipray.run.store.objects import DamagedError, Stored, decode, encode, object_key, record_of


@dataclass(slots=True)
class Store:
    """Solved tasks by content; what was found damaged, and why the last write failed, is remembered for the report."""

    place: str
    files: Backend = field(repr=False)
    damaged: list[str] = field(default_factory=list)

    def get(self, work: Subproblem | Ascent, *, provisional: bool = False) -> Stored | None:
        """The answer to a task, ``None`` where there is none or it is damaged; a ``provisional`` one is kept apart.

        Raises:
            StoreError: the store cannot be read.
        """
        key = object_key(work, provisional=provisional)
        content = self._read(_record(key))
        if content is None:
            return None
        arrays = ""
        try:
            record = record_of(key, content)
            arrays = _arrays(record.arrays)
            return decode(record, self._read(arrays))
        except DamagedError as fault:
            self._quarantine(key, str(fault), arrays)
            return None

    def put(self, work: Subproblem | Ascent, value: Stored, *, provisional: bool = False, durable: bool = True) -> None:
        """Keep the answer to a task; where it is not ``durable`` a loss of power may take it, or damage it.

        Raises:
            StoreError: it cannot be written; what was there before is as it was.
        """
        key = object_key(work, provisional=provisional)
        content, digest, packed = encode(key, value)
        try:
            self.files.write(_arrays(digest), packed, durable=durable)
            self.files.write(_record(key), content, durable=durable)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            raise StoreError(self.place, f"cannot be written ({reason(fault)})") from None

    def reject(self, work: Subproblem | Ascent, why: str) -> None:
        """Quarantine what is kept of a task, whether provisional or not."""
        for provisional in (False, True):
            key = object_key(work, provisional=provisional)
            if self._read(_record(key)) is not None:
                self._quarantine(key, why, "")

    def _read(self, name: str) -> bytes | None:
        try:
            return self.files.read(name)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            raise StoreError(self.place, f"cannot be read ({reason(fault)})") from None

    def _quarantine(self, key: str, why: str, arrays: str) -> None:
        self.damaged.append(f"{key}: {why}")
        stamp = time.time_ns()
        for name in filter(None, (_record(key), arrays)):
            with contextlib.suppress(Exception):
                self.files.move(name, f"quarantine/{stamp}-{name.rpartition('/')[2]}")


def open_store(place: str) -> Store:
    """A store at a local path or an fsspec URL such as ``s3://bucket/folder``.

    Raises:
        UsageError: the URL's protocol is not installed or not known.
        StoreError: the place cannot be used.
    """
    files = open_files(place)
    if isinstance(files, LocalFiles):
        files.sweep()
    return Store(place, files)


def _record(key: str) -> str:
    return f"objects/{key[:2]}/{key}.json"


def _arrays(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}.npz"

"""A store of solved tasks by content: on a local path, or behind any fsspec URL.

An object is a record, ``objects/ab/<key>.json``, and the arrays it names, ``objects/cd/<SHA-256>.npz``, written first.
Every file appears whole or not at all: locally by a temporary file in the same folder, fsync, rename and fsync of the
folder; elsewhere by a single put. What is damaged is moved to ``quarantine/`` and counted, and the task is done again.
Any number of drivers may share a store: whichever record was written last, it names its own arrays.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lipray.errors import StoreError, UsageError
from lipray.partition.subproblem import Subproblem
from lipray.run.lower_bound import Ascent
from lipray.run.objects import DamagedError, Stored, decode, encode, object_key, record_of

STALE = 86400.0
"""Seconds after which a temporary file is nobody's any more."""


class Backend(Protocol):
    """Whole files by name, with ``/`` between folders."""

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Put a file in its place, whole; one that is there is replaced."""

    def move(self, name: str, other: str) -> None:
        """Rename a file; nothing happens where it is gone."""


class LocalFiles:
    """Files under a folder of this machine, durable once written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write beside the place, and rename."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(scratch).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()
            raise
        self._sync(path.parent)

    def move(self, name: str, other: str) -> None:
        """Rename within the folder."""
        there = self._folder / other
        there.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).replace(there)

    def sweep(self) -> None:
        """Remove temporary files of writers that are long gone."""
        now = time.time()
        for path in self._folder.glob("objects/*/.*.part"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > STALE:
                    path.unlink()

    @staticmethod
    def _sync(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RemoteFiles:
    """Files behind an fsspec file system; a put is one request there, and atomic where the service's are."""

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""
        try:
            content: bytes = self._system.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put a whole file."""
        path = self._path(name)
        # Where folders are real they must exist; an object store has none.
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(path, content)

    def move(self, name: str, other: str) -> None:
        """Rename a file."""
        there = self._path(other)
        self._system.makedirs(there.rpartition("/")[0], exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._system.mv(self._path(name), there)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


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

    def put(self, work: Subproblem | Ascent, value: Stored, *, provisional: bool = False) -> None:
        """Keep the answer to a task.

        Raises:
            StoreError: it cannot be written; what was there before is as it was.
        """
        key = object_key(work, provisional=provisional)
        content, digest, packed = encode(key, value)
        try:
            self.files.write(_arrays(digest), packed)
            self.files.write(_record(key), content)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            raise StoreError(self.place, f"cannot be written ({_reason(fault)})") from None

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
            raise StoreError(self.place, f"cannot be read ({_reason(fault)})") from None

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
    if "://" not in place:
        folder = Path(place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise StoreError(place, f"cannot be used ({fault.strerror})") from None
        local = LocalFiles(folder)
        local.sweep()
        return Store(place, local)
    import fsspec  # type: ignore[import-untyped]  # it has no annotations

    try:
        system, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as fault:
        hint = "Install the file system's package, such as lipray[s3]."
        raise UsageError("--store", f"{place}: {_reason(fault)}", hint=hint) from None
    return Store(place, RemoteFiles(system, str(root)))


def _record(key: str) -> str:
    return f"objects/{key[:2]}/{key}.json"


def _arrays(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}.npz"


def _reason(fault: BaseException) -> str:
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    text = str(fault).strip()
    return text.splitlines()[0][:200] if text else type(fault).__name__

"""Files behind an fsspec file system: an object store, or another machine's disk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from lipray.run.stop import told_since

READ_SECONDS = 120.0
"""How long a file may take to be read. Retries of the service's own come within it."""
WRITE_SECONDS = 60.0
"""How long anything else may take; a file that is written, longer by its size."""
SLOW = 2**20
"""Bytes a second below which a connection is as good as none."""
HURRY_SECONDS = 1.0
"""How long anything may take once the process is told to stop; a file that is written, longer by its size."""
HURRIED = 4 * 2**20
"""Bytes a second that are counted with then."""
PATIENCE = 9.0
"""How often the time that a fault has cost passes until the service is asked again, for what need not be kept."""
GLANCE = 0.2
"""Seconds between two looks at whether an answer is still waited for."""
QUICK = 1.0
"""Seconds below which a fault costs nothing worth speaking of."""


@dataclass(slots=True)
class _Outage:
    """Until when a service is left alone, and why."""

    until: float = 0.0
    why: str = ""


class RemoteFiles:
    """A put is one request where the service has such, and atomic where the service's are.

    What fsspec remembers of listings is forgotten before every use, because other processes write too. A service that
    is gone costs a tenth of the time at most: after a fault that took long, everything but durable writes fails at once
    for a while.
    """

    def __init__(self, system: Any, root: str, outage: _Outage | None = None) -> None:
        self._system, self._root, self._outage = system, root.rstrip("/"), outage or _Outage()

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""
        self._system.invalidate_cache()
        try:
            content: bytes = self._call(READ_SECONDS, "cat_file", self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put a whole file."""
        if durable:
            self._outage.until = 0.0
        path = self._path(name)
        try:
            self._call(WRITE_SECONDS, "pipe_file", path, content)
        except FileNotFoundError:
            self._make_folder_of(path)
            self._call(WRITE_SECONDS, "pipe_file", path, content)

    def append(self, name: str, content: bytes) -> None:
        """Read, and put the whole again: an object store has no other way."""
        self.write(name, (self.read(name) or b"") + content, durable=False)

    def move(self, name: str, other: str) -> None:
        """Rename a file."""
        path, there = self._path(name), self._path(other)
        self._system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            try:
                self._rename(path, there)
            except FileNotFoundError:
                self._make_folder_of(there)
                self._rename(path, there)

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder."""
        self._system.invalidate_cache()
        try:
            found = self._call(WRITE_SECONDS, "ls", self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {""})

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it."""
        self._system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._call(WRITE_SECONDS, "rm", self._path(folder), recursive=True)

    def below(self, folder: str) -> RemoteFiles:
        """The files of a folder."""
        return RemoteFiles(self._system, self._path(folder), self._outage)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _rename(self, path: str, there: str) -> None:
        if not self._system.async_impl:
            self._system.mv(path, there)
            return
        # Two requests; fsspec's own move asks for several listings as well.
        self._call(WRITE_SECONDS, "cp_file", path, there)
        self._call(WRITE_SECONDS, "rm_file", path)

    def _make_folder_of(self, path: str) -> None:
        """Make the folder of a file where folders are real; never a bucket, whose name may be a slip.

        Raises:
            FileNotFoundError: there is no such bucket.
        """
        root = path.lstrip("/")
        bucket = path[: len(path) - len(root)] + root.partition("/")[0]
        self._system.invalidate_cache()
        if not self._call(WRITE_SECONDS, "exists", bucket):
            raise FileNotFoundError(f"there is no {bucket}, or it is not ours to see")
        self._call(WRITE_SECONDS, "makedirs", path.rpartition("/")[0], exist_ok=True)

    def _call(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the file system, unless it is left alone.

        Raises:
            OSError: whatever it raised, in a few words; FileNotFoundError and its like as they are.
        """
        began = time.monotonic()
        if began < self._outage.until:
            raise OSError(self._outage.why)
        try:
            return self._ask(seconds, method, arguments, options)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as fault:
            took = time.monotonic() - began
            if took > QUICK:
                self._outage.until, self._outage.why = began + (1.0 + PATIENCE) * took, first_line(fault)
            raise

    def _ask(self, seconds: float, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a method; that of a file system which answers by coroutines is given up after some time."""
        coroutine = getattr(self._system, f"_{method}", None) if self._system.async_impl else None
        try:
            if coroutine is None:
                return getattr(self._system, method)(*arguments, **options)
            size = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
            return _within(
                seconds, size, asyncio.run_coroutine_threadsafe(coroutine(*arguments, **options), self._system.loop)
            )
        except OSError:
            raise
        except Exception as fault:  # noqa: BLE001 - the libraries below have errors of their own
            raise OSError(first_line(fault)) from None


def _within(seconds: float, size: int, future: Future[Any]) -> Any:
    """What comes of a call that sends ``size`` bytes, within its time, or less once the process is told to stop.

    Raises:
        TimeoutError: it did not answer.
    """
    began = time.monotonic()
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                return future.result(timeout=GLANCE)
            if future.done():
                return future.result()
            now, told = time.monotonic(), told_since()
            allowed = began + seconds + size / SLOW
            if told is not None:
                allowed = min(allowed, max(began, told) + HURRY_SECONDS + size / HURRIED)
            if now > allowed:
                raise TimeoutError(f"no answer within {now - began:.1f} s")
    finally:
        future.cancel()


def first_line(fault: BaseException) -> str:
    """What an error says, in a few words."""
    text = str(fault).strip()
    return text.splitlines()[0][:200] if text else type(fault).__name__

"""Files behind an fsspec file system: an object store, or another machine's disk."""

from __future__ import annotations

import contextlib
from typing import Any

READ_SECONDS = 120.0
"""How long a file may take to be read. Retries of the service's own come within it."""
WRITE_SECONDS = 60.0
"""How long anything else may take; a file that is written, longer by its size."""
SLOW = 2**20
"""Bytes a second below which a connection is as good as none."""


class RemoteFiles:
    """A put is one request where the service has such, and atomic where the service's are.

    What fsspec remembers of listings is forgotten before every use, because other processes write too.
    """

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")

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
        del durable  # what a service has accepted, it keeps
        path, seconds = self._path(name), WRITE_SECONDS + len(content) / SLOW
        try:
            self._call(seconds, "pipe_file", path, content)
        except FileNotFoundError:
            self._make_folder_of(path)
            self._call(seconds, "pipe_file", path, content)

    def append(self, name: str, content: bytes) -> None:
        """Read, and put the whole again: an object store has no other way."""
        self.write(name, (self.read(name) or b"") + content)

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
        return RemoteFiles(self._system, self._path(folder))

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
        """Call the file system; one that answers by coroutines is given up after some time.

        Raises:
            OSError: whatever it raised, in a few words; FileNotFoundError and its like as they are.
        """
        coroutine = getattr(self._system, f"_{method}", None) if self._system.async_impl else None
        try:
            if coroutine is None:
                return getattr(self._system, method)(*arguments, **options)
            from fsspec.asyn import sync  # type: ignore[import-untyped]  # it has no annotations

            return sync(self._system.loop, coroutine, *arguments, timeout=seconds, **options)
        except TimeoutError as fault:
            raise TimeoutError(str(fault) or f"no answer within {seconds:.0f} s") from None
        except OSError:
            raise
        except Exception as fault:  # noqa: BLE001 - the libraries below have errors of their own
            raise OSError(first_line(fault)) from None


def first_line(fault: BaseException) -> str:
    """What an error says, in a few words."""
    text = str(fault).strip()
    return text.splitlines()[0][:200] if text else type(fault).__name__

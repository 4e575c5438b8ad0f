"""Files of a store, whole or not at all: on a local path, or behind any fsspec URL.

Locally a file is written beside its place, synced, and renamed; elsewhere it is one put, and atomic where the
service's are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from lipray.errors import StoreError, UsageError

STALE = 86400.0
"""Seconds after which a temporary file is nobody's any more."""


class Backend(Protocol):
    """Whole files by name, with ``/`` between folders."""

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put a file in its place, whole; one that is there is replaced. ``durable``: it outlives a loss of power."""

    def move(self, name: str, other: str) -> None:
        """Rename a file; nothing happens where it is gone."""

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder, in order; none where there is no such folder."""

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it; nothing happens where it is gone."""

    def below(self, folder: str) -> Backend:
        """The files of a folder, under their names in it; it need not be there yet."""


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

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write beside the place, and rename."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            Path(scratch).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()
            raise
        if durable:
            self._sync(path.parent)

    def move(self, name: str, other: str) -> None:
        """Rename within the folder."""
        there = self._folder / other
        there.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).replace(there)

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder, temporary files aside."""
        try:
            return sorted(path.name for path in (self._folder / folder).iterdir() if not path.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it."""
        shutil.rmtree(self._folder / folder, ignore_errors=True)

    def below(self, folder: str) -> LocalFiles:
        """The files of a folder."""
        return LocalFiles(self._folder / folder)

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

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put a whole file."""
        del durable  # what a service has accepted, it keeps
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

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder; listings that the file system remembers may be old."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found} - {""})

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(self._path(folder), recursive=True)

    def below(self, folder: str) -> RemoteFiles:
        """The files of a folder."""
        return RemoteFiles(self._system, self._path(folder))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_files(place: str) -> Backend:
    """The files at a local path or an fsspec URL such as ``s3://bucket/folder``.

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
        return LocalFiles(folder)
    import fsspec  # type: ignore[import-untyped]  # it has no annotations

    try:
        system, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as fault:
        hint = "Install the file system's package, such as lipray[s3]."
        raise UsageError("--store", f"{place}: {reason(fault)}", hint=hint) from None
    return RemoteFiles(system, str(root))


def reason(fault: BaseException) -> str:
    """Why a file system refused, in a few words."""
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    text = str(fault).strip()
    return text.splitlines()[0][:200] if text else type(fault).__name__

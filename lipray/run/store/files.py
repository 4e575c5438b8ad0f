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
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from lipray.errors import StoreError, UsageError
from lipray.run.store.remote import RemoteFiles, first_line

STALE = 86400.0
"""Seconds after which a temporary file is nobody's any more."""


class Backend(Protocol):
    """Whole files by name, with ``/`` between folders; what goes wrong is an OSError."""

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none."""

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put a file in its place, whole; one that is there is replaced. ``durable``: it outlives a loss of power."""

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file, which need not be there yet."""

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
        with whole_file(path, durable=durable) as file:
            file.write(content)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(content)

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


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes its place when all is in it, and leaves what was there where writing fails.

    Args:
        path: of the file, in a folder that is there.
        durable: whether it is to outlive a loss of power.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, scratch = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(scratch).unlink()
        raise
    if durable:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_files(place: str) -> Backend:
    """The files at a local path or an fsspec URL such as ``s3://bucket/folder``; nothing is made there yet.

    Raises:
        UsageError: the URL holds a password or names no folder, or its protocol is not installed or not known.
        StoreError: the place cannot be used.
    """
    if "://" not in place:
        return _local(place, Path(place))
    if urlsplit(place).password is not None:
        hint = "Put it where the file system looks for it: its own configuration, the environment, or fsspec's."
        raise UsageError("--store", "the URL holds a password, which would end in manifests", hint=hint)
    import fsspec  # type: ignore[import-untyped]  # it has no annotations

    try:
        system, root = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as fault:
        hint = "Install the file system's package, such as lipray[s3]."
        raise UsageError("--store", f"{place}: {reason(fault)}", hint=hint) from None
    if isinstance(system, fsspec.implementations.local.LocalFileSystem):
        return _local(place, Path(root))
    if not root.strip("/"):
        raise UsageError("--store", f"{place} names no bucket or folder", hint="For example s3://bucket/folder.")
    return RemoteFiles(system, str(root))


def _local(place: str, folder: Path) -> LocalFiles:
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StoreError(place, f"cannot be used ({there} is not a folder)")
    if not os.access(there, os.W_OK):
        raise StoreError(place, f"cannot be used ({there} cannot be written)")
    return LocalFiles(folder)


def reason(fault: BaseException) -> str:
    """Why a file system refused, in a few words."""
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return first_line(fault)

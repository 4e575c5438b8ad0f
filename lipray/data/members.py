"""Files of a folder, a tar or a zip by the names they are published under, read into memory.

Nothing is unpacked to disk. A member's path is compared with the names that are wanted, and never used as a path.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from lipray.errors import DataError

LARGEST = 2**29  # bytes of one file; the largest published one, of CIFAR-100, has 1.5e8


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of those of ``names`` that are there.

    Args:
        path: a folder that holds them, the last folder of their names itself, or a tar file, however compressed.
        names: such as ``cifar-10-batches-py/test_batch``.

    Raises:
        DataError: neither a folder nor a tar file, damaged, a file too large, or a name there twice.
    """
    if path.is_dir():
        places = {name: (path / name, path / name.rpartition("/")[2]) for name in names}
        found = {name: next((place for place in two if place.is_file()), None) for name, two in places.items()}
        return {name: _read_file(place) for name, place in found.items() if place is not None}
    return _read_tar(path, names)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}") from error
    return _bounded(content, str(path), LARGEST)


def _read_tar(path: Path, names: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in names or not member.isreg():
                    continue
                if name in found:
                    raise DataError(str(path), f"holds {name} twice")
                content = archive.extractfile(member)
                if content is not None:
                    found[name] = _bounded(content.read(LARGEST + 1), f"{path}: {name}", LARGEST)
            while archive.fileobj is not None and archive.fileobj.read(2**20):
                pass  # a compressed file has its checksum after the end of the archive
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file or folder") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            str(path), f"not a folder, and not readable as a tar archive: {error}", hint="Fetch the archive again."
        ) from error
    return found


def _bounded(content: bytes, name: str, largest: int) -> bytes:
    if len(content) > largest:
        raise DataError(name, f"larger than {largest} bytes, which nothing published is")
    return content


class Members(Protocol):
    """Files by their names, the root being where ``wnids.txt`` and the like are."""

    def names(self, below: str) -> list[str]:
        """Names of all files below a folder, in order."""

    def read(self, name: str, largest: int) -> bytes | None:
        """Content of a file, None where there is none; one of more bytes than ``largest`` is a DataError."""


class FolderMembers:
    """Files of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, below: str) -> list[str]:
        """Names of all files below a folder, in order."""
        found = (path for path in (self._root / below).rglob("*") if path.is_file())
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def read(self, name: str, largest: int) -> bytes | None:
        """Content of a file."""
        path = self._root / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return _bounded(file.read(largest + 1), str(path), largest)


class ZipMembers:
    """Files of an open zip archive, below one folder of it."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def names(self, below: str) -> list[str]:
        """Names of all files below a folder, in order."""
        prefix = f"{self._root}{below}/"
        return sorted(name.removeprefix(self._root) for name in self._infos if name.startswith(prefix))

    def read(self, name: str, largest: int) -> bytes | None:
        """Content of a file."""
        info = self._infos.get(self._root + name)
        if info is None:
            return None
        with self._archive.open(info) as member:
            return _bounded(member.read(largest + 1), f"{self._archive.filename}: {name}", largest)

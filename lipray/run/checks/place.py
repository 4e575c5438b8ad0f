"""The store: a file is written, read, moved, listed and removed there, and nothing stays."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lipray.errors import StoreError
from lipray.run.checks.findings import Finding, fault, good, warning
from lipray.run.store.files import Backend, LocalFiles, open_files, reason

LITTLE = 2**30
"""Bytes of free disk below which a warning is due."""

_CONTENT = b"lipray doctor\n" * 1000


def store(place: str) -> Iterator[Finding]:
    """Whether runs can keep their files at ``place``, a path or an fsspec URL.

    Raises:
        UsageError: the URL's file system is not installed or not known.
        StoreError: the place cannot be used.
    """
    folder = None if "://" in place else Path(place)
    missing = [] if folder is None else _missing(folder)
    try:
        files = open_files(place)
        yield _probe(place, files)
        if isinstance(files, LocalFiles) and folder is not None:
            yield _space(folder)
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _probe(place: str, files: Backend) -> Finding:
    name, inside = "store", f"doctor-{secrets.token_hex(8)}"
    began = time.monotonic()
    done: list[str] = []
    try:
        done.extend(_use(files, inside))
    except Exception as error:  # noqa: BLE001 - file systems raise what they like
        text = f"{place}: a file cannot be {_STEPS[len(done)]} ({reason(error)})"
        return fault(name, text, _remedy(place), code=StoreError.exit_code)
    finally:
        with contextlib.suppress(Exception):
            files.remove(inside)
    took = 1000 * (time.monotonic() - began)
    return good(name, f"{place}: {', '.join(done)} in {took:.0f} ms")


_STEPS = ("written", "read", "moved", "listed", "removed")


def _use(files: Backend, inside: str) -> Iterator[str]:
    """Use a file in every way that a run does; each step that was right."""
    one, other = f"{inside}/probe", f"{inside}/moved"
    files.write(one, _CONTENT)
    yield "written"
    _see(files.read(one) == _CONTENT, "it comes back changed")
    yield "read"
    files.move(one, other)
    _see(files.read(one) is None and files.read(other) == _CONTENT, "it is not in its new place")
    yield "moved"
    _see(files.names(inside) == ["moved"], "a file that is there is not listed")
    yield "listed"
    files.remove(inside)
    _see(not files.names(inside), "it is still there")
    yield "removed"


def _see(right: bool, why: str) -> None:
    if not right:
        raise OSError(why)


def _remedy(place: str) -> str:
    if "://" not in place:
        return "Choose another place with --store, or make room and permissions there."
    return "Check address and credentials; the bucket must exist, and allow to read, write, list and delete."


def _space(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:.1f} GiB free"
    if free >= LITTLE:
        return good("disk", text)
    return warning("disk", text, "Certificates of large networks take gigabytes: make room, or choose another --store.")


def _missing(folder: Path) -> list[Path]:
    """What making a folder would make too, innermost first."""
    whole = folder.absolute()
    return [path for path in (whole, *whole.parents) if not path.exists()]

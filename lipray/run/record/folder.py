"""Where the files of a run are: a folder on this machine, or behind the URL of a store.

``manifest.json`` and ``plan.json`` are written when the work begins, ``events.jsonl`` and ``progress.json`` while it
goes on, everything else at its end; the manifest, rewritten last, lists the digests of what is there. Every file
appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from lipray.errors import StoreError
from lipray.run.record.records import ManifestRecord, ResultRecord
from lipray.run.store.files import Backend, LocalFiles, open_files, reason

RUNS = "runs"
"""The store of a command that names none."""

MANIFEST, RESULT, PLAN, EVENTS, PROGRESS = "manifest.json", "result.json", "plan.json", "events.jsonl", "progress.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run; ``place`` is the path or URL that a user would name it by."""

    place: str
    files: Backend

    @property
    def name(self) -> str:
        """The run's identifier: the folder's name."""
        return self.place.rstrip("/").rpartition("/")[2]

    def read(self, name: str) -> bytes | None:
        """A file's content, ``None`` where there is none.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return self.files.read(name)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            raise StoreError(f"{self.place}/{name}", f"cannot be read ({reason(fault)})") from None

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Put a file in its place.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            self.files.write(name, content, durable=durable)
        except Exception as fault:  # noqa: BLE001 - file systems raise what they like
            raise StoreError(self.place, f"cannot be written ({reason(fault)})") from None


def choose_folder(out: Path | None, store: str | None, name: str, content: str, now: datetime) -> RunFolder:
    """Where a new run goes: ``out``, or ``<store>/<utc time>-<name>-<hash>``; checked before any work is done.

    Raises:
        StoreError: ``out`` holds something already, or its parent cannot be written.
    """
    if out is not None:
        return _new_folder(out, "--out")
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "model"
    chosen = wanted = f"{now.strftime('%Y%m%dT%H%M%SZ')}-{plain[:40]}-{content[:8]}"
    number = 1
    while _holds_files(folder := run_folder(store or RUNS, chosen)):
        number += 1
        chosen = f"{wanted}.{number}"
    return folder if "://" in folder.place else _new_folder(Path(folder.place), "--store")


def run_folder(store: str, name: str) -> RunFolder:
    """The folder of a run in a store, there or not.

    Raises:
        UsageError: the store's protocol is not known.
    """
    if "://" in store:
        return RunFolder(f"{store.rstrip('/')}/{name}", open_files(store).below(name))
    return RunFolder(str(Path(store) / name), LocalFiles(Path(store) / name))


def open_run(place: str | Path) -> RunFolder:
    """The folder of a run by its path or URL.

    Raises:
        UsageError: the URL's protocol is not known.
    """
    store, _, name = str(place).rstrip("/").rpartition("/")
    return run_folder(store or ".", name)


def read_manifest(folder: RunFolder) -> ManifestRecord:
    """What a run was asked to do, and how it stands.

    Raises:
        StoreError: there is none, it is damaged, or another version of lipray wrote it.
    """
    content = folder.read(MANIFEST)
    if content is None:
        hint = "lipray runs lists the runs of a store."
        raise StoreError(folder.place, "holds no run (manifest.json is missing)", hint=hint)
    try:
        return ManifestRecord.model_validate_json(content)
    except ValidationError as fault:
        why = f"is no manifest that this version reads ({fault.error_count()} faults)"
        raise StoreError(f"{folder.place}/{MANIFEST}", why) from None


def read_result(folder: Path | RunFolder, manifest: ManifestRecord | None = None) -> ResultRecord:
    """The result of a run, compared with the digest that its ``manifest`` has of it, if one is given.

    Raises:
        StoreError: there is none, it is damaged, or another version of lipray wrote it.
    """
    place = folder if isinstance(folder, RunFolder) else open_run(folder)
    path = f"{place.place}/{RESULT}"
    content = place.read(RESULT)
    if content is None:
        raise StoreError(path, "cannot be read (No such file or directory)")
    if manifest is not None and hashlib.sha256(content).hexdigest() != manifest.files.get(RESULT):
        raise StoreError(path, "is not the file that the run wrote", hint="Resume the run: it is written anew.")
    try:
        return ResultRecord.model_validate_json(content)
    except ValueError as fault:
        raise StoreError(path, f"is no result this version reads ({str(fault).splitlines()[0]})") from None


def _new_folder(out: Path, option: str) -> RunFolder:
    hint = f"Choose another place with {option}."
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise StoreError(str(out), "is not a folder", hint=hint)
    if out.is_dir() and any(out.iterdir()):
        raise StoreError(str(out), "holds files already", hint=f"Choose an empty or new folder with {option}.")
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StoreError(str(out), f"{parent} cannot be written", hint=hint)
    return RunFolder(str(out), LocalFiles(out))


def _holds_files(folder: RunFolder) -> bool:
    try:
        return bool(folder.files.names(""))
    except OSError as fault:
        raise StoreError(folder.place, f"cannot be read ({reason(fault)})") from None


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return parent

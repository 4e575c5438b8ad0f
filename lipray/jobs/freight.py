"""The files that a job needs from here: which they are, what they hold, and the folder that is shipped."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lipray.errors import CheckpointError, ModelNotFoundError, UsageError
from lipray.model.architectures import ARCHITECTURES
from lipray.model.load import FILE_SUFFIXES, unknown_model

LIMIT = 500 * 2**20
"""Bytes that may be shipped: Ray sends a package as one message of at most 512 MiB, and its head keeps it in memory."""

BESIDE = "lipray-files"
"""Where files from outside a working directory lie in it."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Freight:
    """What the driver reads: its words for the model and its files, and where the files come from.

    ``files`` are pairs of a file here and its place in the folder that is shipped. ``content`` tells by SHA-256, or by
    name where lipray or the cluster has it, what decides the result.
    """

    model: str
    name: str
    weights: str | None
    data: str | None
    content: dict[str, object]
    files: tuple[tuple[Path, str], ...] = field(repr=False)

    @contextmanager
    def loaded(self) -> Iterator[Path | None]:
        """The folder to ship, while inside; none where there is nothing to ship.

        Raises:
            UsageError: it is larger than Ray takes.
        """
        if not self.files:
            yield None
            return
        self._weigh()
        with tempfile.TemporaryDirectory(prefix="lipray-job-") as scratch:
            folder = Path(scratch)
            for source, place in self.files:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / place)
            yield folder

    def _weigh(self) -> None:
        sizes = sorted(((source.stat().st_size, place) for source, place in self.files), reverse=True)
        total = sum(size for size, _ in sizes)
        if total <= LIMIT:
            return
        largest = ", ".join(f"{place} ({size / 2**20:.0f} MiB)" for size, place in sizes[:_SHOWN])
        raise UsageError(
            "files of the job",
            f"{total / 2**20:.0f} MiB, and a job takes at most {LIMIT / 2**20:.0f}; the largest: {largest}",
            hint="Put large files where the cluster sees them, and name them by their paths there with --no-ship.",
        )


def pack(
    model: str,
    weights: Path | None,
    data: Path | None,
    *,
    working_dir: Path | None = None,
    ship: bool = True,
    leave: tuple[Path, ...] = (),
) -> Freight:
    """Find out what a model and its files are, and what of them has to be shipped.

    Args:
        model: MODEL, as ``lipray estimate`` takes it.
        weights: the checkpoint, if any.
        data: the points of the lower bound's search, if any.
        working_dir: a folder that is shipped whole: without hidden files, caches and virtual environments.
        ship: without it nothing is shipped, and every path is one on the cluster.
        leave: folders that are not shipped where they lie in ``working_dir``.

    Raises:
        ModelNotFoundError: there is no such file, or MODEL is nothing that lipray knows.
        CheckpointError: there is no such file.
        UsageError: a folder or a file is missing, or a module of this folder would not be found on the cluster.
    """
    place, _, attribute = model.rpartition(":")
    source = _model_file(model, place)
    if source is None and model not in ARCHITECTURES and not place:
        raise unknown_model(model)
    if source is not None and source.suffix == ".py" and not place:
        raise UsageError(
            "MODEL", f"{model} is Python code and the factory's name is missing", hint=f"Write {model}:FACTORY."
        )
    if not ship:
        return _there(model, source, attribute, weights, data)
    if source is not None and not source.is_file():
        raise ModelNotFoundError(str(source), "there is no such file", hint="Check the path.")
    if weights is not None and not weights.is_file():
        raise CheckpointError(str(weights), "there is no such file", hint="Check the path.")
    if data is not None and not data.is_file():
        raise UsageError("--data", f"{data}: there is no such file", hint="Check the path.")
    load = _Load(working_dir, leave)
    where = load.add(source, "model")
    if source is None and model not in ARCHITECTURES:
        _check_module(model, place, working_dir)
    content: dict[str, object] = {"model": _told(model, source, attribute)}
    if load.tree is not None:
        # Any file of the folder may be one that the model's code reads.
        content["working_dir"] = load.tree
        if where is not None:
            content["model"] = [where, attribute]
    for key, path in (("weights", weights), ("data", data)):
        content[key] = None if path is None else _digest(path)
    return Freight(
        model=model if where is None else f"{where}:{attribute}" if place else where,
        name=attribute if place else source.stem if source is not None else model,
        weights=load.add(weights, "weights"),
        data=load.add(data, "data"),
        content=content,
        files=tuple(load.files),
    )


class _Load:
    """Files to ship and their places; those of a working directory keep theirs."""

    def __init__(self, working_dir: Path | None, leave: tuple[Path, ...]) -> None:
        self.files: list[tuple[Path, str]] = []
        self.tree: str | None = None
        self._root = None if working_dir is None else working_dir.resolve()
        if self._root is None:
            return
        if not self._root.is_dir():
            raise UsageError("--working-dir", f"{working_dir} is no folder", hint="Check the path.")
        self.files = [(path, path.relative_to(self._root).as_posix()) for path in _walk(self._root, leave)]
        whole = hashlib.sha256()
        for path, place in self.files:
            whole.update(f"{place}\0{_digest(path)}\n".encode())
        self.tree = whole.hexdigest()

    def add(self, path: Path | None, kind: str) -> str | None:
        """The place of a file, which is put there unless it is there already."""
        if path is None:
            return None
        whole = path.resolve()
        place = f"{kind}/{path.name}"
        if self._root is not None:
            if any(source == whole for source, _ in self.files):
                return whole.relative_to(self._root).as_posix()
            place = f"{BESIDE}/{place}"
        self.files.append((whole, place))
        return place


def _model_file(model: str, place: str) -> Path | None:
    """The file that MODEL names, if it names one; it need not be there."""
    if model in ARCHITECTURES:
        return None
    if Path(model).suffix.lower() in FILE_SUFFIXES or Path(model).is_file():
        return Path(model)
    return Path(place) if place.endswith(".py") else None


def _there(model: str, source: Path | None, attribute: str, weights: Path | None, data: Path | None) -> Freight:
    """Files that the cluster has, at these paths: absolute, because a job has no folder of its own."""
    content: dict[str, object] = {"model": _told(model, source, attribute)}
    for key, path in (("MODEL", source), ("--weights", weights), ("--data", data)):
        if path is not None and not path.is_absolute():
            hint = "With --no-ship every path is one on the cluster; write it from the root."
            raise UsageError(key, f"{path} is no absolute path", hint=hint)
        if path is not None:
            # What the same path holds here, if anything, is taken for what it holds there.
            content[key] = [str(path), _digest(path) if path.is_file() else None]
    name = attribute if source is None or source.suffix == ".py" else source.stem
    return Freight(
        model=model,
        name=name,
        weights=None if weights is None else str(weights),
        data=None if data is None else str(data),
        content=content,
        files=(),
    )


def _check_module(model: str, place: str, working_dir: Path | None) -> None:
    """A module that is found because this is the current folder is not found on the cluster."""
    if working_dir is not None:
        return
    path = Path(*place.split("."))
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        raise UsageError(
            "MODEL",
            f"{model} is a module of this folder, and a job runs elsewhere",
            hint="Ship the folder with --working-dir . (or pass --no-ship if the module is installed on the cluster).",
        )


def _told(model: str, source: Path | None, attribute: str) -> object:
    """What a model is, wherever it lies: the bytes of its file, or its name."""
    if source is None or not source.is_file():
        return model
    return [_digest(source), attribute if source.suffix == ".py" else ""]


def _walk(root: Path, leave: tuple[Path, ...]) -> Iterator[Path]:
    """Files below ``root``, in order; linked folders are not followed."""
    left = {path.resolve() for path in leave}
    for folder, below, names in os.walk(root):
        here = Path(folder)
        below[:] = sorted(name for name in below if _wanted(name) and not _apart(here / name, left))
        yield from (here / name for name in sorted(names) if _wanted(name) and (here / name).is_file())


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _apart(folder: Path, left: set[Path]) -> bool:
    return folder.is_symlink() or (folder / "pyvenv.cfg").is_file() or folder.resolve() in left


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise UsageError(str(path), f"cannot be read ({fault.strerror})") from None

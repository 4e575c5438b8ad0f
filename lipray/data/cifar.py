"""CIFAR-10 and CIFAR-100 as their authors publish them: the Python and the binary version, archives and folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lipray.data.labelled import Labelled, labelled
from lipray.data.members import read_members
from lipray.data.restricted_pickle import load_pickle
from lipray.errors import DataError

SHAPE = (3, 32, 32)
PIXELS = 3072  # bytes of an image: all red ones row by row, then the green, then the blue


@dataclass(frozen=True, slots=True)
class _Version:
    """One of the published versions: its archive, its files and what reads one of them: pixels (N, 3072), labels."""

    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    decode: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]


def read_cifar(path: Path, split: str, *, classes: Literal[10, 100]) -> Labelled:
    """Images of shape (3, 32, 32) in [0, 1]; of CIFAR-100 the fine labels.

    Args:
        path: the archive, the folder it unpacks to, or the folder that one is in.
        split: ``train`` or ``test``.
        classes: which of the two.

    Raises:
        DataError: not one of the published versions, damaged, or incomplete.
    """
    versions = _VERSIONS[classes]
    wanted = {version.archive: version.train if split == "train" else version.test for version in versions}
    found = read_members(path, {name for names in wanted.values() for name in names})
    for version in versions:
        names = wanted[version.archive]
        missing = [name for name in names if name not in found]
        if len(missing) == len(names):
            continue
        if missing:
            raise DataError(str(path), f"lacks {', '.join(missing)}", hint=f"Fetch {version.archive} again.")
        parts = [version.decode(found[name], f"{path}: {name}") for name in names]
        x = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
        y = np.concatenate([labels for _, labels in parts])
        return labelled(x.astype(np.float32) / np.float32(255), y, f"{path} ({split})", classes=classes)
    raise DataError(
        str(path),
        f"holds no file of CIFAR-{classes}, such as {wanted[versions[0].archive][0]}",
        hint=f"Name {' or '.join(version.archive for version in versions)}, or the folder it unpacks to.",
    )


def _decode_pickle(content: bytes, source: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    held = load_pickle(content, source)
    if not isinstance(held, dict) or "data" not in held or key not in held:
        raise DataError(source, f"has no entries data and {key}")
    pixels, labels = held["data"], held[key]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise DataError(source, f"the entry data is not an array of bytes of shape (N, {PIXELS})")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(source, f"the entry {key} is not a list of whole numbers from 0 to 255")
    if len(labels) != len(pixels):
        raise DataError(source, f"{len(pixels)} images with {len(labels)} labels")
    return pixels, np.array(labels, np.int64)


def _decode_ten(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    return _decode_pickle(content, source, "labels")


def _decode_hundred(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    return _decode_pickle(content, source, "fine_labels")


def _decode_binary(content: bytes, source: str, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of ``labels`` bytes, the last of which is the class, and the pixels."""
    size = labels + PIXELS
    if not content or len(content) % size:
        raise DataError(source, f"its {len(content)} bytes are no whole number of records of {size}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, labels:], records[:, labels - 1].astype(np.int64)


def _decode_binary_ten(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    return _decode_binary(content, source, 1)


def _decode_binary_hundred(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    return _decode_binary(content, source, 2)  # the coarse label, then the fine one


_BATCHES = range(1, 6)
_VERSIONS: dict[int, tuple[_Version, ...]] = {
    10: (
        _Version(
            "cifar-10-python.tar.gz",
            tuple(f"cifar-10-batches-py/data_batch_{number}" for number in _BATCHES),
            ("cifar-10-batches-py/test_batch",),
            _decode_ten,
        ),
        _Version(
            "cifar-10-binary.tar.gz",
            tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in _BATCHES),
            ("cifar-10-batches-bin/test_batch.bin",),
            _decode_binary_ten,
        ),
    ),
    100: (
        _Version(
            "cifar-100-python.tar.gz",
            ("cifar-100-python/train",),
            ("cifar-100-python/test",),
            _decode_hundred,
        ),
        _Version(
            "cifar-100-binary.tar.gz",
            ("cifar-100-binary/train.bin",),
            ("cifar-100-binary/test.bin",),
            _decode_binary_hundred,
        ),
    ),
}

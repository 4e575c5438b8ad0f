"""Tiny-ImageNet as published: 200 classes of JPEG images of 64×64, in a zip archive or the folder it unpacks to."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lipray.data.labelled import Labelled
from lipray.data.members import FolderMembers, Members, ZipMembers
from lipray.errors import DataError

ROOT = "tiny-imagenet-200"
SIDE = 64
LARGEST_IMAGE = 2**20  # bytes; published ones have a few thousand
LARGEST_LIST = 2**24
HINT = f"Name {ROOT}.zip, or the folder it unpacks to."

_CLASS = re.compile(r"[A-Za-z0-9_]+")
_IMAGE = re.compile(r"[A-Za-z0-9_-]+\.JPEG")
_TRAINING = re.compile(r"train/([A-Za-z0-9_]+)/images/[A-Za-z0-9_-]+\.JPEG")


def read_tiny_imagenet(path: Path, split: str) -> Labelled:
    """Images of shape (3, 64, 64) in [0, 1]; grey ones get three equal channels.

    Classes are numbered in the order of their sorted identifiers. The published test images have no labels, so that
    ``test`` means the 10,000 validation images. The 100,000 training images take 5 GB.

    Args:
        path: the zip archive, the folder it unpacks to, or the folder that one is in.
        split: ``train`` or ``test``.

    Raises:
        DataError: Pillow is not installed, or the data are damaged or incomplete.
    """
    decode = _decoder()
    try:
        if path.is_dir():
            inner = path / ROOT
            return _read(FolderMembers(inner if inner.is_dir() else path), path, split, decode)
        with zipfile.ZipFile(path) as archive:
            root = f"{ROOT}/" if any(name.startswith(f"{ROOT}/") for name in archive.namelist()) else ""
            return _read(ZipMembers(archive, root), path, split, decode)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file or folder", hint=HINT) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise DataError(str(path), f"not readable as a zip archive or a folder: {error}", hint=HINT) from error


def _read(members: Members, path: Path, split: str, decode: Callable[[bytes, str], np.ndarray]) -> Labelled:
    numbers = _classes(members, path)
    examples = _training(members, path, numbers) if split == "train" else _validation(members, path, numbers)
    # Filled in place and known to be finite: a copy more of the training images would not fit a laptop.
    x = np.empty((len(examples), 3, SIDE, SIDE), np.float32)
    for row, (name, _) in enumerate(examples):
        content = members.read(name, LARGEST_IMAGE)
        if content is None:
            raise DataError(str(path), f"lacks {name}", hint="Fetch the archive again.")
        np.divide(decode(content, f"{path}: {name}"), np.float32(255), out=x[row])
    y = np.array([number for _, number in examples], np.int64)
    return Labelled(x, y, len(numbers), f"{path} ({split})")


def _classes(members: Members, path: Path) -> dict[str, int]:
    identifiers = sorted(set(_lines(members, path, "wnids.txt")))
    if not identifiers or not all(_CLASS.fullmatch(each) for each in identifiers):
        raise DataError(str(path), "wnids.txt is not a list of class identifiers", hint=HINT)
    return {identifier: number for number, identifier in enumerate(identifiers)}


def _training(members: Members, path: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    found = ((name, _TRAINING.fullmatch(name)) for name in members.names("train"))
    examples = [(name, numbers[match[1]]) for name, match in found if match and match[1] in numbers]
    empty = sorted(set(range(len(numbers))) - {number for _, number in examples})
    if empty:
        identifier = list(numbers)[empty[0]]
        raise DataError(
            str(path), f"no image train/{identifier}/images/*.JPEG ({len(empty)} of {len(numbers)} classes lack any)"
        )
    return examples


def _validation(members: Members, path: Path, numbers: dict[str, int]) -> list[tuple[str, int]]:
    name = "val/val_annotations.txt"
    examples = []
    for line, text in enumerate(_lines(members, path, name), 1):
        image, _, rest = text.partition("\t")
        identifier = rest.partition("\t")[0]
        if not _IMAGE.fullmatch(image) or identifier not in numbers:
            raise DataError(f"{path}: {name}", f"line {line} does not name an image and one of the classes")
        examples.append((f"val/images/{image}", numbers[identifier]))
    if not examples:
        raise DataError(f"{path}: {name}", "names no images")
    return examples


def _lines(members: Members, path: Path, name: str) -> list[str]:
    content = members.read(name, LARGEST_LIST)
    if content is None:
        raise DataError(str(path), f"lacks {name}", hint=HINT)
    return [line for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def _decoder() -> Callable[[bytes, str], np.ndarray]:
    """What makes (3, 64, 64) bytes of a JPEG file. Pillow is imported here, for nothing else needs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "tiny-imagenet",
            "its images are JPEG files, and Pillow, which reads them, is not installed",
            hint="pip install 'lipray[images]', or pip install pillow",
        ) from error

    def decode(content: bytes, source: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                if image.size != (SIDE, SIDE):
                    raise DataError(source, f"{image.size[0]}×{image.size[1]} pixels, not {SIDE}×{SIDE}")
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(source, f"not readable as a JPEG image: {error}") from error
        return pixels.transpose(2, 0, 1)

    return decode

"""Labelled data by a short text that a command line or a configuration holds."""

from __future__ import annotations

from pathlib import Path

from lipray.data.cifar import read_cifar
from lipray.data.digits import read_digits
from lipray.data.labelled import Labelled
from lipray.data.npz import read_npz
from lipray.data.tiny_imagenet import read_tiny_imagenet
from lipray.errors import DataError

SPLITS = ("train", "test")
ARCHIVES = frozenset({"cifar10", "cifar100", "tiny-imagenet"})
"""Kinds of data that are named before their path."""
KNOWN = "digits, FILE.npz, cifar10:PATH, cifar100:PATH, tiny-imagenet:PATH"


def read_data(spec: str, split: str) -> Labelled:
    """Examples with their labels.

    Args:
        spec: ``digits``, ``FILE.npz``, ``cifar10:PATH``, ``cifar100:PATH`` or ``tiny-imagenet:PATH``, the paths being
            archives as published or folders.
        split: ``train`` or ``test``. An ``.npz`` file has one split, which both give.

    Raises:
        DataError: an unknown specification, or data that cannot be read.
    """
    if split not in SPLITS:
        raise DataError(spec, f"no split {split!r}", hint=f"There are {' and '.join(SPLITS)}.")
    if spec == "digits":
        return read_digits(split)
    kind, colon, rest = spec.partition(":")
    if colon and kind in ARCHIVES:
        if not rest:
            raise DataError(spec, "no path after the colon", hint=f"Known are {KNOWN}.")
        path = Path(rest).expanduser()
        if kind == "tiny-imagenet":
            return read_tiny_imagenet(path, split)
        return read_cifar(path, split, classes=10 if kind == "cifar10" else 100)
    if spec.endswith(".npz"):
        return read_npz(Path(spec).expanduser())
    raise DataError(spec, "not a description of labelled data", hint=f"Known are {KNOWN}.")

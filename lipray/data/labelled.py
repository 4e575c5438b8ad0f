"""Labelled examples: what every reader returns, and what they are checked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipray.errors import DataError


@dataclass(frozen=True, slots=True)
class Labelled:
    """Examples with their classes.

    ``x`` (N, *shape) is float32, in the units that the radii are in: readers of images give pixels in [0, 1].
    ``y`` (N,) is int64 in 0 … ``classes`` - 1. ``source`` says where they are from, for messages.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int
    source: str

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    def take(self, index: np.ndarray | slice) -> Labelled:
        """Some of them, in the order given."""
        return Labelled(self.x[index], self.y[index], self.classes, self.source)


def labelled(x: np.ndarray, y: np.ndarray, source: str, *, classes: int | None = None) -> Labelled:
    """Examples checked: numbers, finite, as many labels as examples, labels that are classes.

    Args:
        x: (N, *shape), any real type; what has no exact float32 is rounded.
        y: (N,) whole numbers.
        source: what messages call the data.
        classes: their number; by default the largest label and one.

    Raises:
        DataError: says what is wrong and where.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating) and not np.issubdtype(x.dtype, np.integer):
        raise DataError(source, f"examples are of type {x.dtype}, not numbers")
    if x.ndim < 2 or len(x) == 0:
        raise DataError(source, f"examples have shape {x.shape}; they need a first axis of at least one, and a shape")
    if y.shape != (len(x),):
        raise DataError(source, f"labels have shape {y.shape}, where {len(x)} examples need ({len(x)},)")
    numbers = np.issubdtype(y.dtype, np.integer) or (np.issubdtype(y.dtype, np.floating) and np.isfinite(y).all())
    whole = y.astype(np.int64) if numbers else y
    if not numbers or not np.array_equal(whole, y):
        raise DataError(source, "labels are not whole numbers")
    converted = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(converted).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise DataError(source, f"example {bad[0]} has a NaN, an infinity, or an entry beyond float32 ({len(bad)} do)")
    count = int(whole.max()) + 1 if classes is None else classes
    out = np.flatnonzero((whole < 0) | (whole >= count))
    if len(out):
        raise DataError(source, f"the label of example {out[0]} is {whole[out[0]]}, outside 0 … {count - 1}")
    return Labelled(np.ascontiguousarray(converted), whole, count, source)

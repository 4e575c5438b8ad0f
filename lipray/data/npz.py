"""A NumPy archive with the arrays ``x`` and ``y``, and perhaps ``scale``: what x is multiplied by."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lipray.data.labelled import Labelled, labelled
from lipray.errors import DataError

HINT = "Write it by numpy.savez(PATH, x=examples, y=labels), examples of shape (N, channels, height, width) in [0, 1]."


def read_npz(path: Path) -> Labelled:
    """Examples of an ``.npz`` file; pickled objects in it are refused, other arrays are not looked at.

    Whole numbers as x need an entry ``scale``, one positive number: with 1/255 a byte of pixels lies in [0, 1]. Without
    it a radius would be in units that nobody meant.

    Raises:
        DataError: no such file, not an archive, an array missing, or data that :func:`labelled` refuses.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(source, "a single array, not an archive of the arrays x and y", hint=HINT)
            missing = [name for name in ("x", "y") if name not in arrays]
            if missing:
                held = ", ".join(arrays) or "nothing"
                raise DataError(source, f"no array {' and no array '.join(missing)}; it has {held}", hint=HINT)
            x, y = arrays["x"], arrays["y"]
            scale = arrays.get("scale")
    except FileNotFoundError as error:
        raise DataError(source, "no such file") from error
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(source, f"not readable as a NumPy archive of plain arrays: {error}", hint=HINT) from error
    return labelled(_scaled(x, scale, source), y, source)


def _scaled(x: np.ndarray, scale: np.ndarray | None, source: str) -> np.ndarray:
    if scale is None:
        if np.issubdtype(x.dtype, np.integer):
            raise DataError(
                source,
                f"x holds whole numbers ({x.dtype}) and nothing says in which units",
                hint="Add an entry scale (1/255 for bytes of pixels, 1 to take them as they are), or store floats.",
            )
        return x
    if scale.shape != () or not _numbers(scale):
        raise DataError(source, f"scale is an array of shape {scale.shape} and type {scale.dtype}, not one number")
    factor = float(scale)
    if not (np.isfinite(factor) and factor > 0):
        raise DataError(source, f"scale is {factor}, not a positive number")
    return (x * factor).astype(np.float32) if _numbers(x) else x  # what is not numbers is refused with the rest


def _numbers(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)

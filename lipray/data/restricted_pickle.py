"""Pickles of lists, numbers, bytes and arrays of bytes, read without running anything they name.

The published Python version of CIFAR is pickled. A pickle is a program: it names functions and calls them. This reader
takes the instructions that lists, dictionaries and arrays need and no others, and knows four names, those by which
NumPy writes down an array. It puts objects of its own in their place: no code of NumPy or of the file is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from lipray.errors import DataError


def load_pickle(content: bytes, source: str) -> Any:
    """What is pickled, with strings of Python 2 as bytes and arrays of uint8 as such.

    Raises:
        DataError: damaged, or it names something other than an array of uint8.
    """
    try:
        _look_through(content)
        return _plain(_Reader(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # what a damaged or hostile pickle makes of its reader is not foreseeable
        raise DataError(
            source,
            f"not the pickle that is published: {error or type(error).__name__}",
            hint="Nothing of it was run. Fetch the archive again, or take its binary version.",
        ) from error


INSTRUCTIONS = frozenset(
    """PROTO STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GLOBAL REDUCE BUILD
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT""".split()  # noqa: SIM905 - a list would be a page
)
REMEMBERED = 2**21  # values a pickle may refer back to; pickle makes room for as many as the largest number says


def _look_through(content: bytes) -> None:
    """Every instruction is one of the few, before any is followed."""
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name not in INSTRUCTIONS:
            raise pickle.UnpicklingError(f"the instruction {instruction.name}, which no data need")
        if instruction.name.endswith("PUT") and not 0 <= int(argument or 0) < REMEMBERED:
            raise pickle.UnpicklingError(f"a value numbered {argument}")


class _Called:
    """What stands for a name: it can be called and nothing else, and keeps nothing that a file could change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it changes what it may only call")


class _Bytes:
    """The type uint8, of which an array is to be."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """The byte order and the like, of no meaning for bytes."""


class _Array:
    """An array before and after its state is known."""

    __slots__ = ("value",)

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Bytes) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not of bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _array(*_: object) -> _Array:
    return _Array()


def _bytes(code: object, *_: object) -> _Bytes:
    if code not in {"u1", b"u1", "|u1", b"|u1"}:
        raise pickle.UnpicklingError(f"an array of type {code!r} instead of uint8")
    return _Bytes()


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", b"latin1"}:
        raise pickle.UnpicklingError("a text that is not in Latin-1")
    return text.encode("latin1")


def _never(*_: object) -> NoReturn:
    raise pickle.UnpicklingError("an array made otherwise than NumPy writes it")


NAMES: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _never,  # only ever an argument of the first
    ("numpy", "dtype"): _bytes,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no data need")
        return _Called(NAMES[module, name])


def _plain(value: object) -> object:
    """Arrays in the place of what stood for them, at the two levels where published files have any."""
    if isinstance(value, dict):
        return {_text(key): entry.value if isinstance(entry, _Array) else entry for key, entry in value.items()}
    return value


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key

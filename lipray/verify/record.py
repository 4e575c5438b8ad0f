"""The certificate file: what it holds, and how it is read without trusting it. See ``docs/certificate.md``."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lipray.errors import CertificateError

SCHEMA_VERSION = 1
NAME, ARRAYS = "certificate.json", "certificate.npz"

LARGEST_RECORD = 2**24
"""Bytes of ``certificate.json`` that are read at most."""
MOST_KEYS = 32
"""Of one JSON object that are looked at; no part has as many."""
OVERHEAD = 512
"""Bytes that a member of ``certificate.npz`` may take beside its numbers."""

Index = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Shape = Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Method = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
"""It is shown, and nothing depends on it; other characters could forge lines of the report."""
Claim = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Span = tuple[Index, Index]
Window = Annotated[tuple[Span, ...], Field(max_length=2)]
Sides = Annotated[tuple[Size, ...], Field(min_length=1, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelPart(_Part):
    """The network that is bounded, its outputs already selected."""

    input_shape: Shape
    output_shape: Shape
    graph: Hash
    weights: Hash


class SelectionPart(_Part):
    """Which outputs of the model are bounded: all, some rows, or differences of rows."""

    rows: Annotated[tuple[int, ...], Field(fail_fast=True)] | None = None
    pairs: Annotated[tuple[tuple[int, int], ...], Field(fail_fast=True)] | None = None


class LayerPart(_Part):
    """An activation layer and how many multipliers it has."""

    name: str
    width: Index


class ProblemPart(_Part):
    """A sub-problem: the content hash of its network, how its bound is proven, and the bound claimed.

    Its multipliers are the arrays ``<its number>-<the layer's number>``.
    """

    content: Hash
    method: Method
    kind: Literal["product", "dense", "torus", "metric"]
    cut: Index | None = None
    window: bool = False
    sides: tuple[Sides, ...] = Field((), fail_fast=True)
    windows: tuple[Window, ...] = Field((), fail_fast=True)
    layers: tuple[LayerPart, ...] = Field((), fail_fast=True)
    claim: Claim


class TilePart(_Part):
    """A tile: its window of the block's output map (empty: all of it), and the number of its sub-problem.

    ``restricted``: the sub-problem is the whole block's, which bounds every tile.
    """

    window: Window = ()
    problem: Index
    restricted: bool = False


class BlockPart(_Part):
    """The map from the signal of node ``first`` to that of node ``last``, and how its bound is composed."""

    first: Index
    last: Index
    composition: Literal["whole", "overlap", "sum", "diagonal"]
    tiles: tuple[TilePart, ...] = Field(min_length=1, fail_fast=True)
    claim: Claim


class CertificateRecord(_Part):
    """``certificate.json``. ``arrays`` is the SHA-256 of ``certificate.npz``, ``digest`` that of everything else."""

    schema_version: Literal[1] = 1
    lipray: str
    model: ModelPart
    selection: SelectionPart
    problems: tuple[ProblemPart, ...] = Field(fail_fast=True)
    blocks: tuple[BlockPart, ...] = Field(min_length=1, fail_fast=True)
    claim: Claim
    arrays: Hash
    digest: Hash


def array_name(problem: int, layer: int) -> str:
    """Name of the array that holds the multipliers of a sub-problem's layer."""
    return f"{problem}-{layer}"


def digest_of(values: Mapping[str, object]) -> str:
    """SHA-256 of the record's JSON without its ``digest``: keys sorted, no spaces, ASCII."""
    plain = {key: value for key, value in values.items() if key != "digest"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def encode(values: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """The two files of a certificate, from its fields but ``arrays`` and ``digest``, and its multipliers."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(array, dtype="<f8") for name, array in arrays.items()})
    packed = buffer.getvalue()
    full = {**values, "arrays": hashlib.sha256(packed).hexdigest(), "digest": "0" * 64}
    record = CertificateRecord.model_validate_json(json.dumps(full))
    record = record.model_copy(update={"digest": digest_of(record.model_dump(mode="json"))})
    return record.model_dump_json(indent=1).encode() + b"\n", packed


def read(path: Path) -> tuple[CertificateRecord, dict[str, np.ndarray]]:
    """A certificate and its multipliers, from ``certificate.json`` or the folder that holds it.

    Raises:
        CertificateError: a file is missing, damaged, too large, or of another version.
    """
    file = path / NAME if path.is_dir() else path
    record = decode(str(file), _bytes(file, LARGEST_RECORD))
    beside = file.with_name(ARRAYS)
    expected = expected_arrays(record)
    most = sum(8 * length + OVERHEAD for length in expected.values()) + OVERHEAD
    packed = _bytes(beside, most)
    if hashlib.sha256(packed).hexdigest() != record.arrays:
        raise CertificateError(str(beside), "its SHA-256 is not the one the certificate names")
    return record, unpack(str(beside), packed, expected)


def decode(name: str, content: bytes) -> CertificateRecord:
    """``certificate.json`` from its bytes.

    Raises:
        CertificateError: it is no certificate of this version, or its digest is not its content's.
    """
    try:
        values = _tuples(from_json(content))
    except ValueError as fault:
        raise CertificateError(name, f"is no certificate ({_line(str(fault))})") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise CertificateError(name, "is no certificate (it has no schema_version, a whole number)")
    if version != SCHEMA_VERSION:
        hint = "Verify it with the version of lipray that wrote it."
        raise CertificateError(name, f"has schema version {version}, and this reads {SCHEMA_VERSION}", hint=hint)
    try:
        record = CertificateRecord.model_validate(values)
    except ValidationError as fault:
        raise CertificateError(name, f"is no certificate ({_why(fault)})") from None
    if digest_of(record.model_dump(mode="json")) != record.digest:
        raise CertificateError(name, "was changed after it was written: its digest is not that of its content")
    return record


def expected_arrays(record: CertificateRecord) -> dict[str, int]:
    """Names and lengths of all arrays of a certificate."""
    return {
        array_name(number, layer): part.width
        for number, problem in enumerate(record.problems)
        for layer, part in enumerate(problem.layers)
    }


def unpack(name: str, packed: bytes, expected: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The arrays of ``certificate.npz``: exactly those expected, float64, never unpickled or written to disk.

    Raises:
        CertificateError: it is no archive of just these arrays, stored without compression.
    """
    found: dict[str, np.ndarray] = {}
    try:
        # Headers that numpy would repair, with a warning, are not those that it writes.
        with warnings.catch_warnings(action="error"), zipfile.ZipFile(io.BytesIO(packed)) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                found[key] = _member(archive, member, None if key in found else expected.get(key))
    except Exception as fault:  # noqa: BLE001 - whatever a damaged archive makes the standard library raise
        raise CertificateError(name, f"is damaged ({type(fault).__name__}: {_line(str(fault))})") from None
    missing = [key for key in expected if key not in found]
    if missing:
        raise CertificateError(name, f"lacks {missing[0]!r} and {len(missing) - 1} more arrays")
    return found


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, length: int | None) -> np.ndarray:
    if length is None or not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r} does not belong there")
    plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    if not plain or not 8 * length <= member.file_size <= 8 * length + OVERHEAD:
        raise ValueError(f"{member.filename!r} is not {length} float64 numbers, stored as they are")
    return _array(archive.read(member), length)


def _array(content: bytes, length: int) -> np.ndarray:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=OVERHEAD)
    rest = content[stream.tell() :]
    if shape != (length,) or fortran or dtype != np.dtype("<f8") or len(rest) != 8 * length:
        order = " in Fortran order" if fortran else ""
        raise ValueError(f"{len(rest)} bytes for {dtype} of shape {shape}{order}, not float64 of shape ({length},)")
    return np.frombuffer(rest, dtype="<f8").astype(np.float64)


def _bytes(file: Path, most: int) -> bytes:
    try:
        known = file.stat()
        if not stat.S_ISREG(known.st_mode):
            raise CertificateError(str(file), "is no plain file")
        if known.st_size > most:
            raise CertificateError(str(file), f"is larger than the {most} bytes it may have")
        with file.open("rb") as stream:
            return stream.read(known.st_size)
    except OSError as fault:
        raise CertificateError(str(file), f"cannot be read ({fault.strerror})") from None


def _tuples(value: object) -> object:
    """JSON values with arrays as tuples, which is what the strict record takes.

    Parsing first, and so few keys, keep memory in proportion to the file: a model that reads JSON itself copies the
    value that a fault is about for each of its faults, and every key too many is one.
    """
    if isinstance(value, dict):
        if len(value) > MOST_KEYS:
            raise ValueError(f"an object of {len(value)} keys")
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _why(fault: ValidationError) -> str:
    first = fault.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return _line(f"{where}: {first['msg']}" if where else str(first["msg"]))


def _line(text: str) -> str:
    """What a file made a library say, on one line and not longer than is read."""
    plain = "".join(mark if mark.isprintable() else " " for mark in text[:1000])
    return " ".join(plain.split())[:200]

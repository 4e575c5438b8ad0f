"""What a store keeps of a solved task: a JSON record under the task's key, and arrays under their own SHA-256.

Nothing is pickled. The record is written last and names its arrays, so that a record that is there speaks of arrays
that are, whoever else writes the same task. Whatever does not fit is damage: the task is done again.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lipray.certify.certificate import Certificate, Status
from lipray.errors import CertificateError
from lipray.partition.subproblem import Subproblem
from lipray.run.lower_bound import Ascent, Witness
from lipray.verify.prove import Kind, Proof
from lipray.verify.record import unpack

ALGORITHM = 1
"""Raised whenever a task may give another answer than before: older objects are then not found."""

Stored = Certificate | Witness


class DamagedError(ValueError):
    """An object that is not what it says."""


def _unbounded(value: object) -> object:
    return math.inf if value is None else value


Figure = Annotated[float, BeforeValidator(_unbounded), Field(ge=0.0)]
"""A bound; ``null`` is infinity, which JSON does not know."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _ProofPart(_Part):
    kind: Kind
    layers: tuple[tuple[str, int], ...]
    cut: int | None
    window: bool
    sides: tuple[tuple[int, ...], ...]
    windows: tuple[tuple[tuple[int, int], ...], ...] = ()


class _CertificatePart(_Part):
    key: str
    method: str
    bound: Figure
    status: Status
    proof: _ProofPart | None
    figures: dict[str, Figure]
    iterations: int
    seconds: float
    stages: tuple[tuple[str, Figure], ...]


class _WitnessPart(_Part):
    quotient: float = Field(ge=0.0, allow_inf_nan=False)


class _Object(_Part):
    schema_version: Literal[1] = 1
    algorithm: int
    key: str
    value: _CertificatePart | _WitnessPart
    shapes: dict[str, tuple[int, ...]]
    arrays: str


def object_key(work: Subproblem | Ascent, *, provisional: bool = False) -> str:
    """SHA-256 over what the answer depends on: kind of work, exact weights, settings, the algorithm's version.

    ``provisional``: the answer was cut short by more than the work says.
    """
    kind = f"{type(work).__name__}{' provisional' if provisional else ''}"
    digest = hashlib.sha256(f"lipray object {ALGORITHM} {kind}\n".encode())
    if isinstance(work, Subproblem):
        digest.update(work.key().encode())
        return digest.hexdigest()
    digest.update(f"{work.network.content_hash()} {work.first} {work.starts} {work.steps} {work.seed}\n".encode())
    if work.points is not None:
        points = np.ascontiguousarray(work.points)
        digest.update(f"{points.dtype.str} {points.shape}\n".encode())
        digest.update(points.tobytes())
    return digest.hexdigest()


def encode(key: str, value: Stored) -> tuple[bytes, str, bytes]:
    """The record of a value, and the SHA-256 and the bytes of its arrays."""
    arrays = _arrays(value)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.ravel(array) for name, array in arrays.items()})
    packed = buffer.getvalue()
    record = _Object(
        algorithm=ALGORITHM,
        key=key,
        value=_part(value),
        shapes={name: array.shape for name, array in arrays.items()},
        arrays=hashlib.sha256(packed).hexdigest(),
    )
    body = record.model_dump_json().encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body, record.arrays, packed


def record_of(key: str, content: bytes) -> _Object:
    """The record from its bytes, which begin with their own SHA-256.

    Raises:
        DamagedError: it is not whole, or another object's.
    """
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedError("its SHA-256 is not that of its content")
    try:
        record = _Object.model_validate_json(body)
    except ValidationError as fault:
        raise DamagedError(f"its record is not one of this version ({fault.error_count()} faults)") from None
    if record.key != key or record.algorithm != ALGORITHM:
        raise DamagedError("it is another object's")
    return record


def decode(record: _Object, packed: bytes | None) -> Stored:
    """A value from its record and its arrays.

    Raises:
        DamagedError: something is missing, changed, or another object's.
    """
    if packed is None:
        raise DamagedError("its arrays are gone")
    if hashlib.sha256(packed).hexdigest() != record.arrays:
        raise DamagedError("its arrays are not those of its record")
    try:
        flat = unpack("arrays", packed, {name: math.prod(shape) for name, shape in record.shapes.items()})
    except CertificateError as fault:
        raise DamagedError(str(fault.args[-1])) from None
    return _value(record, {name: flat[name].reshape(shape) for name, shape in record.shapes.items()})


def _arrays(value: Stored) -> dict[str, np.ndarray]:
    if isinstance(value, Witness):
        return {"x": value.x.astype("<f8"), "y": value.y.astype("<f8")}
    arrays = {f"lambda{layer}": np.asarray(lam, dtype="<f8") for layer, lam in enumerate(value.multipliers)}
    if value.gram is not None:
        arrays["gram"] = np.asarray(value.gram, dtype="<f8")
    return arrays


def _part(value: Stored) -> _CertificatePart | _WitnessPart:
    if isinstance(value, Witness):
        return _WitnessPart(quotient=value.quotient)
    proof = value.proof
    return _CertificatePart(
        key=value.key,
        method=value.method,
        bound=value.bound,
        status=value.status,
        proof=None if proof is None else _proof_part(proof),
        figures=dict(value.figures),
        iterations=value.iterations,
        seconds=value.seconds,
        stages=value.stages,
    )


def _proof_part(proof: Proof) -> _ProofPart:
    return _ProofPart(
        kind=proof.kind,
        layers=proof.layers,
        cut=proof.cut,
        window=proof.window,
        sides=proof.sides,
        windows=proof.windows,
    )


def _value(record: _Object, arrays: Mapping[str, np.ndarray]) -> Stored:
    part = record.value
    if isinstance(part, _WitnessPart):
        if set(arrays) != {"x", "y"} or arrays["x"].shape != arrays["y"].shape:
            raise DamagedError("it is no pair of points")
        return Witness(part.quotient, arrays["x"], arrays["y"])
    proof = None
    if part.proof is not None:
        multipliers = []
        for layer, (_, width) in enumerate(part.proof.layers):
            lam = arrays.get(f"lambda{layer}")
            if lam is None or lam.shape != (width,):
                raise DamagedError("its multipliers are not those of its layers")
            multipliers.append(lam)
        kept = part.proof
        proof = Proof(kept.kind, tuple(multipliers), kept.layers, kept.cut, kept.window, kept.sides, kept.windows)
    return Certificate(
        part.key,
        part.method,
        part.bound,
        part.status,
        proof,
        arrays.get("gram"),
        part.figures,
        part.iterations,
        part.seconds,
        part.stages,
    )

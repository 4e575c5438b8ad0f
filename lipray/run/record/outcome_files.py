"""The files that a run leaves at its end, as their contents."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from lipray.certify.certificate import Certificate
from lipray.compose.bound import Bound
from lipray.run.record.folder import RESULT
from lipray.run.record.records import ResultRecord, SubproblemRecord
from lipray.run.record.tables import csv_bytes, flatten
from lipray.verify.record import ARRAYS, NAME


def outcome_files(bound: Bound, result: ResultRecord, certificate: tuple[bytes, bytes] | None) -> dict[str, bytes]:
    """What goes into a run folder, by name.

    Args:
        bound: the bracket, with the pair of points that attains its lower end.
        result: the run in numbers.
        certificate: the two files of ``lipray.verify.record.encode``, where the bound is finite.
    """
    files = {
        "subproblems.csv": csv_bytes([flatten(row) for row in result.subproblems], list(SubproblemRecord.model_fields)),
        "shape_matrices.npz": _arrays(shape_matrices(bound.certificate)),
    }
    if certificate is not None:
        files |= dict(zip((NAME, ARRAYS), certificate, strict=True))
    if bound.witness is not None:
        files["witness.npz"] = _arrays({"x": bound.witness[0], "y": bound.witness[1]})
    return files | {RESULT: result.model_dump_json(indent=1).encode() + b"\n"}


def shape_matrices(certificates: Mapping[str, Certificate]) -> dict[str, np.ndarray]:
    """The output shape matrices of all certificates that have one, by key."""
    found = {key: certificates[key].gram for key in sorted(certificates)}
    return {key: np.asarray(gram) for key, gram in found.items() if gram is not None}


def _arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()

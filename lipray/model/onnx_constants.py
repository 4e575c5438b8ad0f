"""Constants of an ONNX graph: initialisers, external data, and what can be folded before any signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipray.errors import ModelError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_FOLDABLE = frozenset(
    {
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Floor",
        "Gather",
        "Identity",
        "Mul",
        "Neg",
        "Pow",
        "Range",
        "Reciprocal",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)
"""Deterministic operators that are computed at import time where all inputs are constants."""

_LARGEST_FOLD = 1 << 27
"""Entries of the largest array that folding may make: a graph must not fill the memory with nothing."""


def foldable(kind: str) -> bool:
    """Whether constants may pass through this operator."""
    return kind in _FOLDABLE


def fold(node: NodeProto, inputs: list[np.ndarray | None], opset: int) -> np.ndarray:
    """The value of a node whose inputs are all constants, by ONNX's reference implementation, in float64.

    Raises:
        ValueError: The result would be too large, or the inputs do not fit the operator.
    """
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    given = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in inputs if array is not None]
    if _size(node.op_type, given) > _LARGEST_FOLD:
        raise ValueError("the constant would be too large")
    names = [name for name, array in zip(node.input, inputs, strict=True) if array is not None]
    graph = helper.make_graph(
        [node],
        "fold",
        [helper.make_empty_tensor_value_info(name) for name in names],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        (value,) = ReferenceEvaluator(model).run(None, dict(zip(names, given, strict=True)))
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return np.asarray(value)


def _size(kind: str, given: list[np.ndarray]) -> int:
    if kind == "ConstantOfShape" and given:
        return math.prod(int(size) for size in given[0].ravel())
    if kind == "Range" and len(given) == 3:
        start, limit, delta = (float(array.ravel()[0]) for array in given)
        return abs(int((limit - start) / delta)) if delta else 0
    if kind == "Concat":
        return sum(array.size for array in given)
    if kind == "Gather" and len(given) == 2:
        return given[0].size * given[1].size
    if kind in ("Add", "Sub", "Mul", "Div", "Pow"):
        return math.prod(np.broadcast_shapes(*(array.shape for array in given)))
    return max((array.size for array in given), default=0)


def tensor_array(tensor: TensorProto, folder: Path, model: str) -> np.ndarray:
    """The numbers of a tensor; half-precision floats as float32, which is exact.

    Args:
        tensor: From an initialiser or an attribute.
        folder: Of the model's file; external data must lie inside it.
        model: The file, for errors.

    Raises:
        ModelError: The data are missing, outside the folder, or of the wrong size.
    """
    from onnx import TensorProto, numpy_helper

    name = tensor.name or "a constant"
    if any(size < 0 for size in tensor.dims):
        raise ModelError(model, f"tensor {name!r} has a negative size", hint="The file is damaged; export it again.")
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor = _with_external(tensor, folder, model)
    try:
        array: np.ndarray = numpy_helper.to_array(tensor)
    except Exception as error:  # noqa: BLE001 - damaged tensors raise several kinds
        raise ModelError(
            model, f"tensor {name!r} cannot be read ({error})", hint="The file is damaged; export it again."
        ) from None
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise ModelError(
            model, f"tensor {name!r} has the type {array.dtype}", hint="Export the model with float32 weights."
        )
    return array


def _with_external(tensor: TensorProto, folder: Path, model: str) -> TensorProto:
    """A copy of the tensor that holds its external data."""
    from onnx import TensorProto

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    hint = "Keep the weight file beside the model's file, as the exporter wrote it."
    path = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise ModelError(model, f"tensor {tensor.name!r} points outside the model's folder ({location!r})", hint=hint)
    if not path.is_file():
        raise ModelError(model, f"its weight file {location!r} is missing", hint=hint)
    width = _bytes_per_entry(tensor.data_type)
    if width is None:
        raise ModelError(model, f"tensor {tensor.name!r} has an unsupported type", hint="Export float32 weights.")
    expected = math.prod(tensor.dims) * width
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or expected)
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != expected or offset + length > path.stat().st_size:
        raise ModelError(
            model,
            f"tensor {tensor.name!r} does not fit into {location!r}",
            hint="The file is truncated; copy it again.",
        )
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    whole = TensorProto()
    whole.CopyFrom(tensor)
    whole.data_location = TensorProto.DEFAULT
    del whole.external_data[:]
    whole.raw_data = data
    return whole


def _bytes_per_entry(kind: int) -> int | None:
    from onnx import TensorProto

    return {
        TensorProto.FLOAT: 4,
        TensorProto.DOUBLE: 8,
        TensorProto.FLOAT16: 2,
        TensorProto.BFLOAT16: 2,
        TensorProto.INT32: 4,
        TensorProto.INT64: 8,
        TensorProto.BOOL: 1,
        TensorProto.INT8: 1,
        TensorProto.UINT8: 1,
    }.get(kind)


def constant_node(attributes: Mapping[str, Any], folder: Path, model: str) -> np.ndarray | None:
    """The array of a Constant node, or None for strings and sparse tensors."""
    from onnx import TensorProto

    if isinstance(attributes.get("value"), TensorProto):
        return tensor_array(attributes["value"], folder, model)
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attributes:
            return np.asarray(attributes[name], dtype)
    return None

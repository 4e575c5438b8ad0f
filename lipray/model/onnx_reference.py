"""A second opinion on an ONNX graph: ONNX's reference implementation, run in float64.

Some of the reference's operators are replaced:

- the pools walk through the output entry by entry in Python (minutes for an ImageNet network), and with
  ``ceil_mode`` they share the missing padding between both ends, where torch and onnxruntime put it at
  the end;
- erf is rounded to float32, and GELU and hard swish are functions whose bodies hold float32 constants;
- log-softmax is the logarithm of a softmax that underflows;
- padding by a negative number is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def run_reference(
    model: ModelProto, constants: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The graph's output in float64.

    Args:
        model: The graph; its own initialisers are not read.
        constants: The initialisers' arrays, without external data to be looked up.
        feeds: The input, float64, with the batch dimension.
    """
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    values = {key: _double(array) for key, array in {**constants, **feeds}.items()}
    graph = helper.make_graph(
        [_in_double(node) for node in model.graph.node],
        "reference",
        [helper.make_empty_tensor_value_info(name) for name in values],
        [helper.make_empty_tensor_value_info(model.graph.output[0].name)],
    )
    double = helper.make_model(graph, opset_imports=list(model.opset_import))
    (output,) = ReferenceEvaluator(double, new_ops=_replacements()).run(None, values)
    return np.asarray(output)


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _in_double(node: NodeProto) -> NodeProto:
    """The node with float constants and casts in float64."""
    from onnx import NodeProto, TensorProto, helper, numpy_helper

    if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT:
        return helper.make_node("Cast", node.input, node.output, name=node.name, to=TensorProto.DOUBLE)
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value" and value.data_type in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
            TensorProto.BFLOAT16,
        ):
            array = numpy_helper.to_array(value).astype(np.float64)
        elif attribute.name in ("value_float", "value_floats"):
            array = np.asarray(value, np.float64)
        else:
            continue
        attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
    return copy


def _replacements() -> list[type]:
    """Operators for the reference implementation, in numpy; the pools take one operation per kernel position."""
    from onnx.reference.op_run import OpRun

    erf = np.vectorize(math.erf, otypes=[np.float64])

    class MaxPool(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
            return (np.max(_windows(x, attributes, -np.inf), axis=0),)

    class AveragePool(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
            sums = np.sum(_windows(x, attributes, 0.0), axis=0)
            inside = np.ones((1, 1, *x.shape[2:]))
            if attributes.get("count_include_pad"):
                before, after = _declared(x.shape[2:], attributes)
                pads = [(0, 0), (0, 0), *zip(before, after, strict=True)]
                inside = np.pad(inside, pads, constant_values=1.0)
                counted = {**attributes, "pads": [0] * len(before) * 2, "auto_pad": "NOTSET"}
                counts = _windows(inside, counted, 0.0)
                # ceil_mode's last window is decided by the map, not by the map with its padding.
                cut = tuple(slice(size) for size in sums.shape[2:])
                return (sums / np.sum(counts, axis=0)[(slice(None), slice(None), *cut)],)
            return (sums / np.sum(_windows(inside, attributes, 0.0), axis=0),)

    class Gelu(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / math.sqrt(2))),)

    class Erf(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (erf(x),)

    class HardSwish(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (x * np.clip(x / 6 + 0.5, 0, 1),)

    class LogSoftmax(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray, axis: int = -1) -> tuple[np.ndarray]:
            shifted = x - x.max(axis=axis, keepdims=True)
            return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)),)

    class Pad(OpRun):  # type: ignore[misc]  # onnx is not typed
        def _run(self, x: np.ndarray, *constants: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray]:
            pads = [int(entry) for entry in attributes.get("pads") or np.ravel(np.asarray(constants[0]))]
            axes = constants[2] if len(constants) > 2 and constants[2] is not None else range(x.ndim)
            for position, axis in enumerate(axes):
                before, after = pads[position], pads[position + len(pads) // 2]
                widths = [(0, 0)] * x.ndim
                widths[axis] = (max(before, 0), max(after, 0))
                x = np.pad(x, widths)
                kept = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
                x = x[tuple(kept if index == axis % x.ndim else slice(None) for index in range(x.ndim))]
            return (x,)

    return [MaxPool, AveragePool, Erf, Gelu, HardSwish, LogSoftmax, Pad]


def _declared(sizes: Sequence[int], attributes: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Padding before and after each axis, without ceil_mode's."""
    rank = len(sizes)
    kernel, strides, dilations = (_per_axis(attributes, key, rank) for key in ("kernel_shape", "strides", "dilations"))
    mode = attributes.get("auto_pad") or "NOTSET"
    if mode == "NOTSET":
        pads = list(attributes.get("pads") or [0] * 2 * rank)
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    need = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = [n // 2 for n in need], [n - n // 2 for n in need]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _per_axis(attributes: Mapping[str, Any], key: str, rank: int) -> list[int]:
    return list(attributes.get(key) or [1] * rank)


def _windows(x: np.ndarray, attributes: Mapping[str, Any], fill: float) -> np.ndarray:
    """The entries of every window: (kernel positions, batch, channels, output positions...)."""
    sizes = x.shape[2:]
    rank = len(sizes)
    kernel, strides, dilations = (_per_axis(attributes, key, rank) for key in ("kernel_shape", "strides", "dilations"))
    before, after = _declared(sizes, attributes)
    starts: list[int] = []
    for axis in range(rank):
        last = sizes[axis] + before[axis] + after[axis] - (kernel[axis] - 1) * dilations[axis] - 1
        count = last // strides[axis] + 1
        if attributes.get("ceil_mode") and last % strides[axis] and count * strides[axis] < sizes[axis] + before[axis]:
            count += 1
        starts.append(count)
    reach = [
        (count - 1) * s + (k - 1) * d + 1 for count, s, k, d in zip(starts, strides, kernel, dilations, strict=True)
    ]
    pads = [(b, max(r - n - b, 0)) for b, r, n in zip(before, reach, sizes, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    return np.stack(
        [
            padded[
                (
                    slice(None),
                    slice(None),
                    *(
                        slice(o * d, o * d + (count - 1) * s + 1, s)
                        for o, d, count, s in zip(offset, dilations, starts, strides, strict=True)
                    ),
                )
            ]
            for offset in itertools.product(*(range(k) for k in kernel))
        ]
    )

"""Import of an ONNX file as a ``Network``. The file is data: nothing in it is executed.

The graph is read for one input (batch size 1), its constants are folded, every operator is translated,
and the result is compared with ONNX's reference implementation on random inputs, in float64. Constants
that ONNX stores as float32 attributes (slopes, epsilon) are taken as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipray.errors import ImportMismatchError, InputShapeError, ModelError, ModelNotFoundError, UnsupportedLayerError
from lipray.model.network import Network, Reshape, Softmax

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

    from lipray.model.onnx_values import Builder, Value

CHECK_TOLERANCE = 1e-9
"""Largest accepted difference from the reference, relative to the output's largest entry."""

SPELT_TOLERANCE = 1e-5
"""The same where an activation is spelt out with numbers such as sqrt(1/2), which float32 rounds."""

_EXPORT_AGAIN = "The file is damaged or not ONNX; export the model again."

_REASONS = {
    "Attention": "attention has no global Lipschitz constant",
    "ConvTranspose": "transposed convolution is not supported yet",
    "GroupNormalization": "it divides by the signal's own deviation, which has no global Lipschitz constant",
    "InstanceNormalization": "it divides by the signal's own deviation, which has no global Lipschitz constant",
    "LayerNormalization": "it divides by the signal's own deviation, which has no global Lipschitz constant",
    "LRN": "it divides by a function of the signal",
    "QuantizeLinear": "rounding has no Lipschitz constant",
    "Round": "rounding has no Lipschitz constant",
    "Sign": "it jumps at zero and has no Lipschitz constant",
    "Sqrt": "the square root has no global Lipschitz constant",
    "Exp": "the exponential has no global Lipschitz constant",
    "ThresholdedRelu": "it jumps and has no Lipschitz constant",
    "If": "control flow is not supported",
    "Loop": "control flow is not supported",
    "Scan": "control flow is not supported",
}


def import_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> Network:
    """Read an ONNX file.

    Args:
        path: The file; external data must lie in its folder.
        input_shape: Shape of one input without the batch dimension; None takes the graph's own.

    Returns:
        The network. Weights are float32 or float64 as in the file; batch norm is folded in float64.

    Raises:
        ModelNotFoundError: No such file.
        ModelError: The file is damaged, or onnx is not installed.
        InputShapeError: No shape is known, or the one given contradicts the graph's.
        UnsupportedLayerError: A node that lipray cannot bound.
        NonFiniteWeightsError: NaN or infinity among the weights.
        ImportMismatchError: The network and the reference implementation disagree.
    """
    if not path.is_file():
        raise ModelNotFoundError(str(path), "there is no such file", hint="Check the path.")
    model = _parse(path)
    shape, name = _input(model.graph, input_shape, str(path))
    constants = _initialisers(model.graph, path)
    network, spelt = _translate(model, constants, name, shape, path)
    _check(model, constants, name, network, str(path), SPELT_TOLERANCE if spelt else CHECK_TOLERANCE)
    return network


def _parse(path: Path) -> ModelProto:
    try:
        import onnx
    except ImportError:
        raise ModelError(str(path), "reading it needs onnx", hint="Run: pip install lipray[onnx]") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's errors have no public base without another import
        raise ModelError(str(path), f"it cannot be read as ONNX ({error})", hint=_EXPORT_AGAIN) from None
    if not model.graph.node or not model.graph.output:
        raise ModelError(str(path), "it holds no graph", hint=_EXPORT_AGAIN)
    if model.functions:
        raise ModelError(
            str(path), "its graph calls local functions", hint="Inline them with onnx.inliner.inline_local_functions."
        )
    if len(model.graph.output) != 1:
        count = len(model.graph.output)
        raise ModelError(str(path), f"the graph has {count} outputs", hint="Export a model with one output.")
    return model


def _opset(model: ModelProto, path: str) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise ModelError(path, "it does not say which operator set it uses", hint=_EXPORT_AGAIN)
    return int(versions[0])


def _input(graph: GraphProto, given: tuple[int, ...] | None, path: str) -> tuple[tuple[int, ...], str]:
    """Shape of one input, without the batch dimension, and the input's name."""
    known = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in known]
    if len(inputs) != 1:
        raise ModelError(path, f"the graph has {len(inputs)} inputs", hint="Export a model with one input.")
    declared = _declared(inputs[0])
    if declared is None:
        if given is None:
            raise InputShapeError("none", f"{path} does not say the shape of its input")
        return given, inputs[0].name
    if declared and declared[0] not in (None, 1) and (given is None or len(declared) == len(given) + 1):
        raise ModelError(
            path,
            f"the graph is made for batches of {declared[0]}",
            hint="Export it with batch size 1 or a free batch size.",
        )
    if given is None:
        if len(declared) < 2 or any(size is None for size in declared[1:]):
            raise InputShapeError("none", f"{path} leaves the shape of its input open: {_told(declared)}")
        return tuple(size for size in declared[1:] if size is not None), inputs[0].name
    if len(declared) != len(given) + 1 or any(
        size not in (None, want) for size, want in zip(declared[1:], given, strict=True)
    ):
        raise InputShapeError(
            ",".join(map(str, given)), f"the graph's input is {_told(declared)}, the first size being the batch"
        )
    return given, inputs[0].name


def _declared(entry: ValueInfoProto) -> tuple[int | None, ...] | None:
    if not entry.type.HasField("tensor_type") or not entry.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(size.dim_value) if size.HasField("dim_value") and size.dim_value > 0 else None
        for size in entry.type.tensor_type.shape.dim
    )


def _told(declared: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("free" if size is None else str(size) for size in declared) + ")"


def _initialisers(graph: GraphProto, path: Path) -> dict[str, np.ndarray]:
    from lipray.model.onnx_constants import tensor_array

    if graph.sparse_initializer:
        raise ModelError(str(path), "it holds sparse weights", hint="Export dense weights.")
    return {tensor.name: tensor_array(tensor, path.parent, str(path)) for tensor in graph.initializer}


def _translate(
    model: ModelProto, constants: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], path: Path
) -> tuple[Network, bool]:
    """The network, and whether one of its activations was spelt out in the graph."""
    from lipray.model.onnx_values import Builder, Constant, Signal

    opset = _opset(model, str(path))
    builder = Builder()
    values: dict[str, Value] = {key: Constant(key, array) for key, array in constants.items()}
    values[name] = builder.start(name, shape)
    used = {entry for node in model.graph.node for entry in node.input} | {model.graph.output[0].name}
    for position, node in enumerate(model.graph.node):
        label = node.name or (node.output[0] if node.output else f"node {position}")
        if any(output in used for output in node.output[1:] if output):
            raise UnsupportedLayerError(f"{label} ({node.op_type})", "a second output is used", hint=_ADVICE)
        value = _value(node, label, values, builder, opset, path)
        if node.output:
            values[node.output[0]] = value
    output = values.get(model.graph.output[0].name)
    if not isinstance(output, Signal):
        raise ModelError(str(path), "the output does not depend on the input", hint="Check what was exported.")
    if output.index == 0:
        output = builder.emit("output", Reshape(), (output,), shape)
    network = builder.finish(output)
    for entry in network.nodes[:-1]:
        if isinstance(entry.op, Softmax):
            raise UnsupportedLayerError(entry.name, "softmax is supported as the last layer only", hint=_ADVICE)
    return network, builder.spelt


_ADVICE = "Replace the layer, or bound the part of the network before or after it."


def _value(node: NodeProto, label: str, values: Mapping[str, Value], builder: Builder, opset: int, path: Path) -> Value:
    from lipray.model import onnx_elementwise, onnx_linear, onnx_pools, onnx_shapes
    from lipray.model.onnx_constants import constant_node, fold, foldable
    from lipray.model.onnx_step import Converter, Step
    from lipray.model.onnx_values import Constant, Signal

    place = f"{label} ({node.op_type})"
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedLayerError(place, f"its operator set is {node.domain}, not ONNX's own", hint=_ADVICE)
    if missing := [entry for entry in node.input if entry and entry not in values]:
        raise ModelError(str(path), f"node {place} reads {missing[0]!r}, which nothing computes", hint=_EXPORT_AGAIN)
    inputs = tuple(values[entry] if entry else None for entry in node.input)
    attributes = _attributes(node)
    if node.op_type == "Constant":
        array = constant_node(attributes, path.parent, str(path))
        if array is None:
            raise UnsupportedLayerError(place, "this kind of constant is not supported", hint=_ADVICE)
        return Constant(node.output[0], array)
    if node.op_type in ("Shape", "Size") and isinstance(inputs[0], Signal):
        return _shape_of(inputs[0].shape, node.op_type, attributes, node.output[0])
    if foldable(node.op_type) and not any(isinstance(value, Signal) for value in inputs):
        try:
            array = fold(node, [value.array if isinstance(value, Constant) else None for value in inputs], opset)
        except ValueError as error:
            raise UnsupportedLayerError(
                place, f"its constant cannot be computed: {error}", hint=_EXPORT_AGAIN
            ) from None
        return Constant(node.output[0], array)
    if node.op_type == "Cast" and isinstance(inputs[0], Signal):
        return _cast(inputs[0], attributes, place)
    rules: dict[str, Converter] = {}
    for file in (onnx_elementwise, onnx_linear, onnx_pools, onnx_shapes):
        rules.update(file.CONVERTERS)
    convert = rules.get(node.op_type)
    if convert is None:
        raise UnsupportedLayerError(place, _REASONS.get(node.op_type, "this operator is not supported"), hint=_ADVICE)
    try:
        return convert(Step(node.op_type, label, attributes, inputs, opset, builder))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        # A node without an attribute or input that the standard demands.
        raise ModelError(
            str(path), f"node {place} is malformed ({type(error).__name__}: {error})", hint=_EXPORT_AGAIN
        ) from None


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper

    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for key, value in values.items()
    }


def _shape_of(shape: tuple[int, ...], kind: str, attributes: Mapping[str, Any], name: str) -> Value:
    from lipray.model.onnx_values import Constant

    if kind == "Size":
        return Constant(name, np.asarray(np.prod(shape), np.int64))
    return Constant(name, np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64))


def _cast(value: Value, attributes: Mapping[str, Any], place: str) -> Value:
    from onnx import TensorProto

    if attributes.get("to") in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return value
    raise UnsupportedLayerError(place, "rounding a signal has no Lipschitz constant", hint="Keep signals in float32.")


def _check(
    model: ModelProto, constants: Mapping[str, np.ndarray], name: str, network: Network, path: str, tolerance: float
) -> None:
    """Compare with ONNX's reference implementation in float64, at several scales of the input."""
    import torch

    from lipray.model.evaluate import evaluate
    from lipray.model.onnx_reference import run_reference

    random = np.random.default_rng(0)
    inputs = [scale * random.standard_normal(network.input_shape) for scale in (1.0, 0.05)]
    for x in inputs:
        with torch.no_grad():
            ours = evaluate(network, torch.from_numpy(x[None])).numpy().ravel()
        try:
            theirs = run_reference(model, constants, {name: x[None]}).astype(np.float64).ravel()
        except Exception as error:  # noqa: BLE001 - numpy inside onnx raises whatever it meets
            raise ModelError(
                path,
                f"ONNX's reference implementation cannot run it ({type(error).__name__}: {error})",
                hint="Nothing was bounded, because the import could not be checked; export with a newer operator set.",
            ) from None
        if ours.shape != theirs.shape:
            raise ImportMismatchError(path, f"it has {theirs.size} outputs and the graph {ours.size}")
        scale = max(float(np.abs(theirs).max()), 1e-30)
        difference = float(np.abs(ours - theirs).max()) / scale
        if not difference <= tolerance:
            raise ImportMismatchError(path, f"outputs on a random input differ by {difference:.2g} of their size")

"""From a trace of ATen operations to the typed graph.

``lower`` walks the trace once. A value is a ``Signal`` (depends on the input), a ``Constant`` (does not: such
operations are carried out in float64, so weights computed in the forward pass are folded), a Python value, or
a tuple of these. Each operation on a signal has a rule in one of the ``lower_*`` files; without a rule it is
refused by name.

Rounding: weights are kept exactly as stored. Folded values (the scale γ/√(var + ε) of batch norm, 1/std of a
normalisation, weights computed in forward) are computed in float64, relative error a few 1e-16; the network
that is bounded is the one with the folded numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lipray.errors import InputShapeError, LiprayError, ModelError, NonFiniteWeightsError, UnsupportedLayerError
from lipray.model.network import Input, Network, Node, Op, Reshape, Shape, Softmax, array_keys
from lipray.model.refusals import CUT_HINT, EVAL_HINT, MissingRuleError, is_random, refuse_operation
from lipray.model.tracing import BATCH, Constant, Trace


@dataclass(frozen=True, slots=True)
class Signal:
    """A value that depends on the input: the index of its node and its shape without the batch."""

    index: int
    shape: Shape


@dataclass(slots=True)
class Builder:
    """The graph under construction, and which layer is being lowered (for names and errors)."""

    model: str
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    layer: str = ""
    source: str = ""

    def add(self, op: Op, inputs: Sequence[Signal], shape: Iterable[int]) -> Signal:
        """Append a node; its name is the layer's, made unique."""
        shape = tuple(int(n) for n in shape)
        if min(shape, default=1) < 1:
            raise InputShapeError(
                ",".join(map(str, self.nodes[0].shape)),
                f"layer {self.layer!r} receives a signal of shape {inputs[0].shape} and would give {shape}",
            )
        self.nodes.append(Node(self._unique(self.layer, self.names), op, tuple(s.index for s in inputs), shape))
        return Signal(len(self.nodes) - 1, shape)

    def reshape(self, x: Signal, shape: Iterable[int]) -> Signal:
        """The signal under another shape, itself when the shape is its own."""
        shape = tuple(int(n) for n in shape)
        return x if shape == x.shape else self.add(Reshape(), [x], shape)

    def array(self, value: Constant | torch.Tensor | np.ndarray, suffix: str = "weight") -> str:
        """Key of an array: the stored tensor's own name, or one made from the layer's name.

        Raises:
            NonFiniteWeightsError: when an entry is NaN or infinite.
        """
        if isinstance(value, Constant) and np.issubdtype(value.stored.dtype, np.floating):
            self.weights[value.name] = value.stored
            return value.name
        if isinstance(value, Constant):
            value = value.value
        plain = np.array(value.detach().numpy() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
        wanted = f"{self.layer}.{suffix}"
        check_finite(wanted, plain)
        for key in (k for k in self.weights if k == wanted or k.startswith(f"{wanted}_")):
            if self.weights[key].dtype == plain.dtype and np.array_equal(self.weights[key], plain):
                return key  # a layer used again
        key = self._unique(wanted, set(self.weights))
        self.weights[key] = plain
        return key

    def refuse(self, why: str, hint: str | None = None) -> UnsupportedLayerError:
        """The error for this layer."""
        return UnsupportedLayerError(self.layer, f"{why}{self.source}", hint=hint or CUT_HINT)

    @staticmethod
    def _unique(wanted: str, taken: set[str]) -> str:
        name, count = wanted, 0
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        taken.add(name)
        return name


UNUSABLE = object()
"""A result that no rule can use, such as the indices of a max-pool."""

Rule = Callable[..., Any]
"""Called with the builder, the shape torch gives the result, and the operation's own arguments."""

_SILENT = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async"}
_SHAPE_ONLY = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


def lower(trace: Trace, input_shape: Shape, name: str, rules: dict[str, Rule]) -> Network:
    """The typed graph of a trace.

    Args:
        trace: the traced module.
        input_shape: shape of one input.
        name: the model's name, for errors about the whole.
        rules: operation name without its overload → rule.

    Raises:
        UnsupportedLayerError: for an operation without a rule, by qualified name.
        NonFiniteWeightsError: for a NaN or infinite weight, by name.
        InputShapeError: where a signal would become empty.
    """
    builder = Builder(name)
    builder.nodes.append(Node("input", Input(), (), input_shape))
    builder.names.add("input")
    values: dict[torch.fx.Node, Any] = {}
    leaves = {path for path, part in trace.module.named_modules() if _is_layer(part)}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            values[node] = Signal(0, input_shape) if node.name == trace.input else trace.constants.get(node.name)
        elif node.op == "get_attr":
            values[node] = UNUSABLE  # the sub-graph of an operation that is refused by its own name
        elif node.op == "call_function":
            _locate(builder, node, leaves)
            args = [_resolve(a, values) for a in node.args]
            kwargs = {k: _resolve(a, values) for k, a in node.kwargs.items()}
            values[node] = _call(builder, node, args, kwargs, rules)
    result = values[trace.output]
    if not isinstance(result, Signal):
        raise ModelError(name, "the output does not depend on the input", hint="Its Lipschitz constant is 0.")
    return _finish(builder, result)


def _is_layer(module: torch.nn.Module) -> bool:
    """Whether a module is one of torch's own layers: its one operation then bears its name."""
    bases = [kind for kind in type(module).__mro__ if kind is not torch.nn.Module]
    return not any(module.children()) and any(kind.__module__.startswith("torch.nn.modules") for kind in bases)


def _locate(builder: Builder, node: torch.fx.Node, leaves: set[str]) -> None:
    """Set the builder's layer to the operation's qualified name and remember its source line."""
    stack = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
    path = stack[-1].partition("@")[0] if stack else ""  # a module called again is marked path@1
    if path and path in leaves:
        builder.layer, builder.source = path, ""
        return
    operation = node.name if node.target is operator.getitem else _operation(node)
    builder.layer = f"{path}.{operation}" if path else operation
    code = (node.meta.get("stack_trace") or "").strip().splitlines()
    builder.source = f" (in `{code[-1].strip()}`)" if code else ""


def _operation(node: torch.fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001  (the public name of a graph's operations)
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def _call(
    builder: Builder, node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any], rules: dict[str, Rule]
) -> Any:
    operation = _operation(node)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if operation in _SILENT:
        return None
    leaves = list(_flat([args, kwargs]))
    for value in leaves:
        if value is UNUSABLE and operation in rules:
            raise builder.refuse("it uses the indices of a maximum, which jump")
        if isinstance(value, Constant):
            check_finite(value.name, value.stored)
    if operation in _SHAPE_ONLY or not any(isinstance(value, Signal) for value in leaves):
        if is_random(node.target):
            raise builder.refuse("its output is random", EVAL_HINT)
        try:
            return _fold(node, args, kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise builder.refuse(f"lipray cannot compute {operation!r} of constants: {error}") from error
    if operation not in rules:
        raise refuse_operation(builder.layer, operation, node.target, builder.source)
    meta = node.meta.get("val")
    shape = tuple(int(n) for n in meta.shape) if isinstance(meta, torch.Tensor) else ()
    try:
        return rules[operation](builder, shape, *args, **kwargs)
    except LiprayError:
        raise
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        why = f"lipray cannot express this form of {operation!r}: {error}{builder.source}"
        raise MissingRuleError(builder.layer, why, hint=CUT_HINT) from error


def _fold(node: torch.fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operation on constants in float64."""
    target = node.target
    assert callable(target)  # noqa: S101  (call_function nodes have callable targets)
    with torch.no_grad():
        result = target(*_tensors(args), **_tensors(kwargs))

    def wrap(value: Any, index: str = "") -> Any:
        if isinstance(value, torch.Tensor):
            plain = value.double() if value.is_floating_point() else value
            return Constant(f"{node.name}{index}", plain, plain.numpy())
        if isinstance(value, tuple | list):
            return tuple(wrap(v, f"{index}.{i}") for i, v in enumerate(value))
        return value

    return wrap(result)


def _tensors(value: Any) -> Any:
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Signal):  # only its shape matters: zeros_like(x)
        return torch.zeros(BATCH, *value.shape, dtype=torch.float64)
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    return type(value)(_tensors(v) for v in value) if isinstance(value, tuple | list) else value


def _resolve(value: Any, values: dict[torch.fx.Node, Any]) -> Any:
    if isinstance(value, torch.fx.Node):
        return values[value]
    if isinstance(value, tuple | list):
        return [_resolve(v, values) for v in value]
    return value


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise NonFiniteWeightsError when an array has a NaN or an infinity."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise NonFiniteWeightsError(name, f"{bad} of {array.size} entries are NaN or infinite")


def _finish(builder: Builder, result: Signal) -> Network:
    """Keep what the output depends on, renumbered, and check that softmax comes last."""
    needed = {result.index}
    for index in range(result.index, -1, -1):
        if index in needed:
            needed.update(builder.nodes[index].inputs)
    if 0 not in needed:
        raise ModelError(builder.model, "the output does not depend on the input", hint="Its Lipschitz constant is 0.")
    order = {old: new for new, old in enumerate(sorted(needed))}
    nodes = tuple(
        Node(node.name, node.op, tuple(order[i] for i in node.inputs), node.shape)
        for node in (builder.nodes[i] for i in sorted(needed))
    )
    for node in nodes[:-1]:
        if isinstance(node.op, Softmax):
            raise UnsupportedLayerError(
                node.name, "softmax is supported as the last layer only", hint="Bound the part before the softmax."
            )
    used = array_keys(Network(nodes, builder.weights))
    return Network(nodes, {key: builder.weights[key] for key in used})

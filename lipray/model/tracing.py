"""A live torch module as a graph of ATen operations, without touching the module.

The module is copied, its parametrisations are replaced by the weights they stand for, and the copy is
converted to float64. The copy is run once on real numbers, which names the layer at fault when the input
shape does not fit, and then exported by ``torch.export``, which inlines Python code, makes in-place
operations functional and refuses control flow that depends on the data. Exported operations carry the
qualified name of the module that made them.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lipray.errors import InputShapeError, LiprayError, ModelError, UnsupportedLayerError
from lipray.model.network import Shape
from lipray.model.refusals import CUT_HINT, EVAL_HINT, refuse_module

BATCH = 2
"""Inputs per batch while tracing: more than one, so that mixing the inputs of a batch shows in the shapes."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A parameter, buffer or constant tensor of the module: its name, float64 value and stored array."""

    name: str
    value: torch.Tensor
    stored: np.ndarray


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced module.

    ``graph`` holds ATen calls; ``constants`` maps its placeholders to the module's tensors; ``input`` and
    ``output`` name the placeholder of the signal and the value returned; ``module`` is the float64 copy,
    ``stored`` its arrays as they were, by qualified name. ``functional`` says that in-place operations and
    composite ones without a kernel of their own have been rewritten.
    """

    graph: torch.fx.Graph
    constants: dict[str, Constant]
    input: str
    output: torch.fx.Node
    functional: bool
    program: torch.export.ExportedProgram = field(repr=False)
    module: torch.nn.Module = field(repr=False)
    stored: dict[str, np.ndarray] = field(repr=False)


def trace(module: torch.nn.Module, input_shape: Shape, name: str) -> Trace:
    """Copy the module, run the copy once, export it.

    Raises:
        ModelError: when the module cannot be copied, run or exported.
        InputShapeError: when the input shape does not fit; names the layer and both shapes.
        UnsupportedLayerError: when a layer is known to have no global Lipschitz constant, is in training
            mode, or the forward pass depends on the data in ways a graph cannot hold.
    """
    if not isinstance(module, torch.nn.Module):
        raise ModelError(name, f"it is of type {type(module).__name__}, not a torch.nn.Module")
    original = getattr(module, "_orig_mod", module)  # torch.compile wraps the module and changes nothing
    if isinstance(original, torch.jit.ScriptModule):
        raise ModelError(
            name, "TorchScript modules cannot be traced", hint="Give the torch.nn.Module it was made from, or ONNX."
        )
    twin, stored = _float64_copy(original, name)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(BATCH, *input_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        result = _run(twin, batch, input_shape, name)
    if not isinstance(result, torch.Tensor):
        raise ModelError(
            name,
            f"the forward pass returns {type(result).__name__}, not one tensor",
            hint="Wrap the module so that forward returns the one output to bound.",
        )
    with _tracing(name):
        program = torch.export.export(twin, (batch,), strict=False)
    changes = any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001
        for node in program.graph.nodes
    )
    first = _read(program, twin, stored, name, functional=False)
    return functional(first, name) if changes else first


def functional(first: Trace, name: str) -> Trace:
    """The trace without in-place operations (slower to make, so only where they occur or a rule is missing).

    Raises:
        ModelError: when the forward pass changes the module's state or its input.
    """
    with _tracing(name):
        program = first.program.run_decompositions({})
    return _read(program, first.module, first.stored, name, functional=True)


def _read(
    program: torch.export.ExportedProgram,
    module: torch.nn.Module,
    stored: dict[str, np.ndarray],
    name: str,
    *,
    functional: bool,
) -> Trace:
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
    if changed:  # a changed input is no matter: it is the caller's copy
        raise ModelError(
            name,
            f"the forward pass changes {changed[0]!r}, so it is not a fixed function",
            hint=f"{EVAL_HINT}, and keep state out of forward.",
        )
    constants = {}
    for spec in signature.input_specs:
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT or spec.target is None:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
            array = stored.get(spec.target)
            constants[spec.arg.name] = Constant(spec.target, tensor, _to_numpy(tensor) if array is None else array)
    (user_input,) = signature.user_inputs
    kinds = [spec.kind for spec in signature.output_specs]
    output = program.graph.output_node().args[0][kinds.index(torch.export.graph_signature.OutputKind.USER_OUTPUT)]
    if not isinstance(output, torch.fx.Node):
        raise ModelError(name, "the forward pass returns a constant")
    return Trace(program.graph, constants, str(user_input), output, functional, program, module, stored)


def _float64_copy(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """A float64 copy on the CPU without parametrisations, and the arrays as stored, by qualified name."""
    for path, parameter in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(parameter):
            raise ModelError(name, f"{path!r} is not initialised", hint="Run the module once on an input first.")
        if parameter.is_meta:
            raise ModelError(name, f"{path!r} is on the meta device", hint="Load the weights first.")
        if parameter.is_complex():
            layer = path.rpartition(".")[0]
            raise UnsupportedLayerError(layer or name, f"the tensor {path!r} is complex", hint=CUT_HINT)
    for path, part in module.named_modules():
        refuse_module(path or name, part, executed=False)
    # Tensors that autograd made (the effective weight of weight_norm) cannot be deep-copied; their values can.
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        twin = copy.deepcopy(module, memo)
    except Exception as error:
        raise ModelError(name, f"the module cannot be copied: {_first_line(error)}") from error
    twin = twin.cpu()
    with torch.no_grad():
        _bake(twin)
    stored = {
        path: _to_numpy(tensor.detach())
        for path, tensor in (
            *twin.named_parameters(remove_duplicate=False),
            *twin.named_buffers(remove_duplicate=False),
        )
    }
    twin.double()
    for part in twin.modules():  # plain tensor attributes are not converted by .double()
        for key, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                plain = value.detach().cpu()
                part.__dict__[key] = plain.double() if plain.is_floating_point() else plain
    return twin, stored


def _bake(module: torch.nn.Module) -> None:
    """Replace every parametrisation by the weight it stands for now."""
    for part in list(module.modules()):
        held = getattr(part, "parametrizations", None)
        if isinstance(held, torch.nn.ModuleDict):
            effective = {key: getattr(part, key).detach().clone() for key in held}
            # Not parametrize.remove_parametrizations: it changes the class, which the copy shares with the original.
            part.__class__ = type(part).__bases__[0]
            del part._modules["parametrizations"]  # noqa: SLF001  (as torch itself does)
            for key, value in effective.items():
                part.register_parameter(key, torch.nn.Parameter(value))
    for part in module.modules():  # the older, hook-based weight_norm and spectral_norm
        for handle, hook in list(part._forward_pre_hooks.items()):  # noqa: SLF001  (torch has no public list of hooks)
            remove = getattr(hook, "remove", None)
            if callable(remove) and type(hook).__module__.startswith("torch.nn.utils"):
                remove(part)
                del part._forward_pre_hooks[handle]  # noqa: SLF001


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return np.array(plain.numpy())


def _run(module: torch.nn.Module, batch: torch.Tensor, input_shape: Shape, name: str) -> object:
    """One forward pass on real numbers; faults are reported with the layer where they happen."""
    running: list[tuple[str, torch.nn.Module, tuple[Any, ...]]] = []

    def enter(path: str, part: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        running.append((path, part, inputs))
        refuse_module(path, part, executed=True)

    handles = []
    for path, part in module.named_modules():
        label = path or name
        handles += [
            part.register_forward_pre_hook(lambda m, i, label=label: enter(label, m, i)),
            part.register_forward_hook(lambda *_: (running.pop(), None)[1]),
        ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module(batch)
    except LiprayError:
        raise
    except Exception as error:
        if len(batch) > 1 and _runs(module, batch[:1]):
            raise ModelError(
                name,
                "the forward pass works for a batch of one input only",
                hint="Use x.flatten(1) or x.view(x.size(0), -1) in place of a fixed batch size.",
            ) from error
        raise _forward_error(error, running[-1] if running else (name, module, (batch,)), input_shape, name) from error
    finally:
        for handle in handles:
            handle.remove()


def _runs(module: torch.nn.Module, batch: torch.Tensor) -> bool:
    try:
        module(batch)
    except Exception:  # noqa: BLE001  (whatever it is, the first error is the one to report)
        return False
    return True


def _forward_error(
    error: Exception, at: tuple[str, torch.nn.Module, tuple[Any, ...]], input_shape: Shape, name: str
) -> LiprayError:
    path, part, inputs = at
    text = _first_line(error)
    if "dtype" in text or "scalar type" in text or "Double" in text:
        return ModelError(
            name,
            f"the forward pass fails in float64 in layer {path!r}: {text}",
            hint="Let constants and casts in forward follow x.dtype, or register tensors as buffers.",
        )
    if not isinstance(error, RuntimeError | ValueError | IndexError):
        return ModelError(name, f"the forward pass fails in layer {path!r}: {text}")
    received = ", ".join(str(tuple(v.shape[1:])) for v in inputs if isinstance(v, torch.Tensor)) or "no signal"
    needs = _expectation(part)
    what = f"layer {path!r} ({type(part).__name__}) receives a signal of shape {received}"
    return InputShapeError(",".join(map(str, input_shape)), f"{what} and {needs or f'fails: {text}'}")


def _expectation(part: torch.nn.Module) -> str:
    """What the layer says about its input, for the error about a signal that does not fit."""
    if isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        axes = {torch.nn.Conv1d: "length", torch.nn.Conv2d: "height, width"}
        kernel = "x".join(map(str, part.kernel_size))
        spatial = next((text for kind, text in axes.items() if isinstance(part, kind)), "depth, height, width")
        return f"expects ({part.in_channels}, {spatial}) with a map no smaller than its {kernel} kernel"
    if isinstance(part, torch.nn.Linear):
        return f"expects ({part.in_features},)"
    if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
        return f"expects {part.num_features} channels"
    return ""


@contextlib.contextmanager
def _tracing(name: str) -> Iterator[None]:
    """Turn what torch.export raises into errors of lipray."""
    try:
        with _quiet(), torch.no_grad():
            yield
    except Exception as error:
        if "data-dependent" in str(error) or "DataDependent" in type(error).__name__:
            raise UnsupportedLayerError(
                name,
                "its forward pass branches on the values of a signal (data-dependent control flow)",
                hint="A global bound needs one fixed graph; split the model at the branch and bound each side.",
            ) from error
        raise ModelError(
            name,
            f"torch.export cannot trace the forward pass: {type(error).__name__}: {_first_line(error)}",
            hint="Keep forward to tensor operations on its one input.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export, which explains failed traces on both standard streams."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled, logger.disabled = logger.disabled, True
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as sink,  # noqa: PTH123  (a path object gains nothing here)
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""Import of a live torch module as a ``Network``, checked against the module itself."""

from __future__ import annotations

import torch

from lipray.errors import ImportMismatchError, InputShapeError
from lipray.model import lower_activations, lower_linear, lower_pools, lower_shapes
from lipray.model.evaluate import evaluate
from lipray.model.lowering import lower
from lipray.model.network import Activation, Network, Shape
from lipray.model.refusals import MissingRuleError
from lipray.model.tracing import functional, trace

CHECK_TOLERANCE = 1e-9
"""Largest accepted difference between graph and module, relative to each output's largest entry."""

SOFTPLUS_TOLERANCE = 1e-7
"""The same where lipray leaves out torch's switch of softplus to the identity, a jump of 1e-10 per layer."""

LARGE = 10_000_000
"""Signals of more entries than this in total are checked on two inputs instead of four."""

_BATCH_HINT = "Make forward treat each input of a batch on its own, without state or randomness."


def import_module(module: torch.nn.Module, input_shape: Shape, *, name: str = "model") -> Network:
    """The typed graph of a torch module in eval mode.

    The module is not changed; a float64 copy is traced, lowered and, on random inputs of several scales,
    compared with the result.

    Args:
        module: a feed-forward network of one input and one output, in eval mode.
        input_shape: shape of one input without the batch: (channels, height, width), (channels, length) or
            (features,).
        name: what errors about the whole model call it.

    Returns:
        The network; its weights keep their stored type, under their qualified names. Batch norm is a
        ``ChannelAffine`` with scale and shift computed in float64.

    Raises:
        UnsupportedLayerError: for a layer without a known global Lipschitz constant, or in training mode.
        InputShapeError: when the input shape does not fit.
        NonFiniteWeightsError: for a NaN or infinite weight.
        ImportMismatchError: when graph and module disagree, or outputs depend on the rest of the batch.
        ModelError: when the module cannot be copied, run or traced.
    """
    shape = tuple(int(n) for n in input_shape)
    if not shape or min(shape) < 1:
        raise InputShapeError(",".join(map(str, input_shape)) or "()", "every size must be at least 1")
    if len(shape) > 3:
        raise InputShapeError(
            ",".join(map(str, shape)), "inputs have one to three axes: (channels, height, width) at most"
        )
    rules = {**lower_linear.RULES, **lower_shapes.RULES, **lower_pools.RULES, **lower_activations.RULES}
    traced = trace(module, shape, name)
    try:
        network = lower(traced, shape, name, rules)
    except MissingRuleError:
        if traced.functional:
            raise
        network = lower(functional(traced, name), shape, name, rules)  # in its simplest operations
    _check(network, traced.module, name)
    return network


def _check(network: Network, module: torch.nn.Module, name: str) -> None:
    """Compare graph and module on inputs of different scales, and the module with itself in another batch."""
    generator = torch.Generator().manual_seed(1)
    shape = network.input_shape
    noise = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    scales = torch.tensor([1.0, 0.01, 100.0], dtype=torch.float64).reshape(3, *(1 for _ in shape))
    image = torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    batch = torch.cat([noise * scales, image])
    if sum(node.size for node in network.nodes) > LARGE:
        batch = batch[[0, 3]]
    try:
        with torch.no_grad():
            together = _rows(module(batch.clone()), len(batch))
            other = _rows(module(batch[[-1, -1]]), 2)  # the last input in other company
    except Exception as error:
        raise ImportMismatchError(
            name, f"the forward pass fails for a batch of another size: {error}", hint=_BATCH_HINT
        ) from error
    if not together.isfinite().all():
        raise ImportMismatchError(name, "the module's output on random inputs is not finite", hint="")
    if other.shape[1:] != together.shape[1:] or not _difference(other, together[[-1, -1]]) <= CHECK_TOLERANCE:
        raise ImportMismatchError(
            name,
            "the output for one input depends on the other inputs of its batch, or changes from call to call",
            hint=_BATCH_HINT,
        )
    with torch.no_grad():
        ours = _rows(evaluate(network, batch), len(batch))
    if ours.shape != together.shape:
        raise ImportMismatchError(
            name, f"outputs have {ours.shape[1]} entries where the module's have {together.shape[1]}"
        )
    difference = _difference(ours, together)
    smooth = any(isinstance(node.op, Activation) and node.op.function == "softplus" for node in network.nodes)
    if not difference <= (SOFTPLUS_TOLERANCE if smooth else CHECK_TOLERANCE):
        raise ImportMismatchError(name, f"outputs on random inputs differ by {difference:.2g} relative to their size")


def _rows(output: torch.Tensor, count: int) -> torch.Tensor:
    return output.to(torch.float64).reshape(count, -1)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two batches of rows, relative to each row's largest entry."""
    size = b.abs().amax(dim=1, keepdim=True)
    floor = max(float(size.max()) * 1e-3, torch.finfo(torch.float64).tiny)
    return float(((a - b).abs() / size.clamp(min=floor)).max())

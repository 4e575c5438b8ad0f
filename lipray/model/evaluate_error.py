"""Evaluation of a ``Network`` in float64 with a bound of the rounding in it, node by node.

Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3): an error of the inputs is
carried on by the absolute values of a linear map, or by the steepest slope of an element-wise one, and every node
adds its own. Terms of second order are covered by a factor.

Absolute values forget cancellation: through many layers they grow far beyond what rounding does. With a constant for
every node the norm of the error is carried on beside its entries, as ‖error‖ <= constant · ‖error of the inputs‖ + ‖own
error‖, own being that of the computed inputs, so that no term of second order is left. No entry is off by more than the
norm, and the smaller of the two goes on. For networks of small constants, however deep, that is what bounds the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from lipray.model.evaluate import Weights, evaluate_node
from lipray.model.network import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Dense,
    MaxPool,
    Network,
    Node,
    Pad,
    Reshape,
    Softmax,
    Sum,
)

UNIT = 2.0**-53
ELEMENTARY = 16.0
"""Units of an element-wise function's result, and of its argument, that its evaluation may be off by."""
SECOND_ORDER = 1.01
"""Times the first-order bound."""
RAISED = 1.0 + 1e-9
"""More than the rounding of a norm of millions of entries, and of what is done with it."""
LEAST = 1e-149
"""More than the root of 1e8 squares that underflow."""


def evaluate_with_error(
    network: Network, x: torch.Tensor, weights: Weights, constants: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's outputs on a batch, and how far each entry may be from the exact ones.

    Args:
        network: the network.
        x: float64 batch of shape (N, *input_shape), taken as exact.
        weights: what ``prepare(network)`` returned.
        constants: for every node with one input a bound of its l2 Lipschitz constant (the others are not looked at).

    Returns:
        Two float64 batches of shape (N, *output_shape).
    """
    sizes = {key: value.abs() for key, value in weights.items()}
    last_use = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
    signals = {0: (x, torch.zeros_like(x))}
    norms = {0: torch.zeros(len(x), dtype=x.dtype, device=x.device)}
    for index, node in enumerate(network.nodes[1:], start=1):
        sources = [signals[i] for i in node.inputs]
        value = evaluate_node(node, [source for source, _ in sources], weights)
        error = _error(node, sources, value, sizes)
        if constants is not None:
            exact = [(source, torch.zeros_like(source)) for source, _ in sources]
            own = _norm(_error(node, exact, value, sizes))
            carried = own + _carried(node, [norms[i] for i in node.inputs], constants[index])
            norms[index] = torch.fmin(RAISED * carried, RAISED * _norm(error))
            error = torch.fmin(error, norms[index].reshape(-1, *[1] * (error.dim() - 1)))
        signals[index] = value, error
        for i in set(node.inputs):
            if last_use[i] == index:
                del signals[i]
    value, error = signals[len(network.nodes) - 1]
    return value, SECOND_ORDER * error


def _carried(node: Node, norms: list[torch.Tensor], constant: float) -> torch.Tensor:
    """The norm of what becomes of the inputs' errors."""
    if isinstance(node.op, Sum):
        terms = [abs(factor) * norm for factor, norm in zip(node.op.coefficients, norms, strict=True)]
        return torch.stack(terms).sum(dim=0)
    if isinstance(node.op, Concat):
        joined: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        return joined
    return constant * norms[0]


def _norm(error: torch.Tensor) -> torch.Tensor:
    """Norms of a batch; squares that underflow are allowed for."""
    flat = error.flatten(1)
    norms: torch.Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms + torch.where((flat != 0.0).any(dim=1), LEAST, 0.0)


def _error(
    node: Node, sources: list[tuple[torch.Tensor, torch.Tensor]], value: torch.Tensor, sizes: Weights
) -> torch.Tensor:
    op = node.op
    if isinstance(op, Activation):
        source, error = sources[0]
        slope = max(map(abs, (*op.lower, *op.upper)))
        return slope * error + ELEMENTARY * UNIT * (value.abs() + source.abs())
    if isinstance(op, Softmax):
        source, error = sources[0]
        largest = error.amax(dim=1, keepdim=True)
        most = source.abs().amax(dim=1, keepdim=True)
        return 2.0 * largest + ELEMENTARY * source.shape[1] * UNIT * (1.0 + most + value.abs())
    if isinstance(op, MaxPool | Pad | Reshape | Concat):
        return evaluate_node(node, [error for _, error in sources], sizes)
    relative = 2.0 * UNIT * (_terms(node, sources[0][0], sizes) + 4)
    plain = replace(op, coefficients=tuple(map(abs, op.coefficients))) if isinstance(op, Sum) else op
    given = [error + relative * source.abs() for source, error in sources]
    return evaluate_node(replace(node, op=plain), given, _biased(node, sizes, relative))


def _terms(node: Node, source: torch.Tensor, sizes: Weights) -> int:
    """Terms that are added up for one entry."""
    op = node.op
    if isinstance(op, Conv | Dense):
        return math.prod(sizes[op.weight].shape[1:]) + 1
    if isinstance(op, AvgPool):
        return math.prod(op.kernel) + 1
    if isinstance(op, AdaptiveAvgPool):
        return math.prod(source.shape[2:]) + 1
    return len(node.inputs) + 1


def _biased(node: Node, sizes: Weights, relative: float) -> Weights:
    """Absolute weights, with what is added to the result only as far as it rounds."""
    op = node.op
    keys = {key for key in (getattr(op, "bias", None), op.shift if isinstance(op, ChannelAffine) else None) if key}
    return {**sizes, **{key: relative * sizes[key] for key in keys}} if keys else sizes

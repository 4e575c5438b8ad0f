"""Evaluation of a ``Network`` in float64 with a bound of the rounding in it, node by node.

Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3): an error of the inputs is
carried on by the absolute values of a linear map, or by the steepest slope of an element-wise one, and every node
adds its own. Terms of second order are covered by a factor.
"""

from __future__ import annotations

import math
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


def evaluate_with_error(network: Network, x: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's outputs on a batch, and how far each entry may be from the exact ones.

    Args:
        network: the network.
        x: float64 batch of shape (N, *input_shape), taken as exact.
        weights: what ``prepare(network)`` returned.

    Returns:
        Two float64 batches of shape (N, *output_shape).
    """
    sizes = {key: value.abs() for key, value in weights.items()}
    last_use = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
    signals = {0: (x, torch.zeros_like(x))}
    for index, node in enumerate(network.nodes[1:], start=1):
        sources = [signals[i] for i in node.inputs]
        value = evaluate_node(node, [source for source, _ in sources], weights)
        signals[index] = value, _error(node, sources, value, sizes)
        for i in set(node.inputs):
            if last_use[i] == index:
                del signals[i]
    value, error = signals[len(network.nodes) - 1]
    return value, SECOND_ORDER * error


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

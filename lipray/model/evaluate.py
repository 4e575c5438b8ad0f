"""Evaluation of a ``Network`` in float64, differentiable in its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from lipray.errors import InputShapeError
from lipray.model.activations import apply_activation
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
    Op,
    Pad,
    Padding,
    Reshape,
    Softmax,
    Sum,
    array_keys,
)

Weights = Mapping[str, torch.Tensor]


def prepare(network: Network) -> dict[str, torch.Tensor]:
    """The network's arrays as float64 tensors (an exact conversion), for many calls of ``evaluate``."""
    return {key: torch.from_numpy(network.weights[key].astype("float64")) for key in array_keys(network)}


def evaluate(network: Network, x: torch.Tensor, weights: Weights | None = None) -> torch.Tensor:
    """The network's outputs on a batch.

    Args:
        network: the network.
        x: float64 batch of shape (N, *input_shape).
        weights: what ``prepare(network)`` returned; made anew when absent.

    Returns:
        float64 batch of shape (N, *output_shape), differentiable in x.

    Raises:
        InputShapeError: when the batch does not have the network's input shape.
    """
    if tuple(x.shape[1:]) != network.input_shape:
        raise InputShapeError(
            ",".join(map(str, x.shape[1:])), f"the network takes inputs of shape {network.input_shape}"
        )
    weights = prepare(network) if weights is None else weights
    last_use = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
    signals: dict[int, torch.Tensor] = {0: x.to(torch.float64)}
    for index, node in enumerate(network.nodes[1:], start=1):
        sources = [signals[i] for i in node.inputs]
        signals[index] = evaluate_node(node, sources, weights)
        for i in set(node.inputs):
            if last_use[i] == index:
                del signals[i]
    return signals[len(network.nodes) - 1]


def evaluate_node(node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    """One node's signal on a batch, from those of the nodes that it reads."""
    return _EVALUATORS[type(node.op)](node, sources, weights)


def _conv(node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    op = node.op
    assert isinstance(op, Conv)  # noqa: S101  (the dispatch below guarantees it)
    x, weight = sources[0], weights[op.weight]
    bias = None if op.bias is None else weights[op.bias]
    symmetric = all(a == b >= 0 for a, b in op.padding)
    padding = [a if symmetric else 0 for a, _ in op.padding]
    if not symmetric:
        x = pad_spatial(x, op.padding)
    function = F.conv1d if len(op.stride) == 1 else F.conv2d
    return function(x, weight, bias, op.stride, padding, op.dilation, op.groups)


def pad_spatial(x: torch.Tensor, padding: Padding, value: float = 0.0) -> torch.Tensor:
    """A batch with its spatial axes padded by ``value`` (negative amounts crop)."""
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _dense(node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    op = node.op
    assert isinstance(op, Dense)  # noqa: S101
    return F.linear(sources[0], weights[op.weight], None if op.bias is None else weights[op.bias])


def _affine(node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    op = node.op
    assert isinstance(op, ChannelAffine)  # noqa: S101
    ones = (1,) * (len(node.shape) - 1)
    scale, shift = (weights[key].reshape(-1, *ones) for key in (op.scale, op.shift))
    return sources[0] * scale + shift


def _pad(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    assert isinstance(node.op, Pad)  # noqa: S101
    return pad_spatial(sources[0], node.op.padding)


def _avg_pool(node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    op = node.op
    assert isinstance(op, AvgPool)  # noqa: S101
    x = pad_spatial(sources[0], op.padding)
    # One spatial axis is a map of height 1: only the two-dimensional pool can leave the sums undivided.
    flat = len(op.kernel) == 1
    x = x.unsqueeze(-2) if flat else x
    sums = F.avg_pool2d(x, (1, *op.kernel)[-2:], (1, *op.stride)[-2:], divisor_override=1)
    sums = sums.squeeze(-2) if flat else sums
    return sums / (math.prod(op.kernel) if op.divisor is None else weights[op.divisor])


def _adaptive_avg_pool(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    if len(node.shape) == 2:
        return F.adaptive_avg_pool1d(sources[0], node.shape[1])
    return F.adaptive_avg_pool2d(sources[0], (node.shape[1], node.shape[2]))


def _max_pool(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    op = node.op
    assert isinstance(op, MaxPool)  # noqa: S101
    x = pad_spatial(sources[0], op.padding, -math.inf)
    function = F.max_pool1d if len(op.kernel) == 1 else F.max_pool2d
    pooled: torch.Tensor = function(x, op.kernel, op.stride, 0, op.dilation)
    return pooled


def _activation(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    assert isinstance(node.op, Activation)  # noqa: S101
    return apply_activation(node.op, sources[0])


def _softmax(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    assert isinstance(node.op, Softmax)  # noqa: S101
    return F.log_softmax(sources[0], dim=1) if node.op.log else F.softmax(sources[0], dim=1)


def _sum(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    assert isinstance(node.op, Sum)  # noqa: S101
    total = sources[0] * node.op.coefficients[0]
    for coefficient, source in zip(node.op.coefficients[1:], sources[1:], strict=True):
        total = total + coefficient * source
    return total


def _concat(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    assert isinstance(node.op, Concat)  # noqa: S101
    return torch.cat(sources, dim=node.op.axis + 1)


def _reshape(node: Node, sources: list[torch.Tensor], _weights: Weights) -> torch.Tensor:
    return sources[0].reshape(sources[0].shape[0], *node.shape)


_EVALUATORS: dict[type[Op], Callable[[Node, list[torch.Tensor], Weights], torch.Tensor]] = {
    Conv: _conv,
    Dense: _dense,
    ChannelAffine: _affine,
    Pad: _pad,
    AvgPool: _avg_pool,
    AdaptiveAvgPool: _adaptive_avg_pool,
    MaxPool: _max_pool,
    Activation: _activation,
    Softmax: _softmax,
    Sum: _sum,
    Concat: _concat,
    Reshape: _reshape,
}

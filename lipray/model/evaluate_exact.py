"""The difference of the images of two points in long fixed-point arithmetic (``lipray.model.fixed_point``).

For networks of so many layers that a running error analysis of float64 (``lipray.model.evaluate_error``) allows for
more than there is. Here less than one unit is lost in each operation that multiplies or divides and for each bias, of
points too; ``_units`` carries that through the network by absolute weights and largest slopes, as ``evaluate_error``
does with rounding. The unit is chosen so small that what arrives is 2^-40 of the difference, or so. The choice rests on
an estimate; the bound that is returned does not.

Not for networks with operations that are not exact in such numbers (smooth activations, softmax), or whose own numbers
carry rounding (the folded scales of a ``ChannelAffine``, which stand for a root and a quotient).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lipray.model.evaluate import Weights, evaluate_node
from lipray.model.fixed_point import ACTIVATIONS, FINEST, TERMS, Grid, divisor, fitting, windows
from lipray.model.network import (
    Activation,
    AvgPool,
    Concat,
    Conv,
    Dense,
    MaxPool,
    Network,
    Node,
    Pad,
    Reshape,
    Sum,
)

UNIT = 2.0**-53
SPARE = 40
"""Bits of the difference that are to be right."""
RAISED = 1.0 + 1e-9
"""More than the rounding of a sum of ``TERMS`` terms that are not negative."""
WORK = 4e10
"""Multiply-adds an evaluation may take: some ten seconds on one core."""
MEMORY = 2**30


def difference(
    network: Network, x: torch.Tensor, y: torch.Tensor, weights: Weights, expected: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """f(x) - f(y), and how far each entry may be from the exact one.

    Args:
        network: the network.
        x: float64 point of shape input_shape, taken as exact.
        y: another.
        weights: what ``prepare(network)`` returned.
        expected: about the norm of the difference, from which the number of digits is worked out; positive.

    Returns:
        Two float64 tensors of shape output_shape, or ``None`` where the network has operations that are not exact in
        such numbers, or its evaluation would take too long or too much memory.
    """
    points = torch.stack([x, y])
    if not _suits(network, weights) or not points.isfinite().all():
        return None
    bits = fitting(_terms(network, weights))
    units = 2.0 * _units(network, {key: value.abs() for key, value in weights.items()})
    if not units.isfinite().all():
        return None
    needed = math.log2(max(float(units.norm()), 1.0)) - math.log2(expected) + SPARE
    if needed > FINEST - bits:
        return None
    grid = Grid(bits, -max(math.ceil(needed / bits), 1))
    if _dear(network, weights, 4 - grid.low):
        return None
    images = grid.images(network, points, weights)
    apart = grid.total(images[:, 0], -images[:, 1])
    negative = apart[-1] < 0
    size = grid.carried(torch.where(negative, -apart, apart))
    if bits * (grid.low + len(size)) > 1000:
        return None
    value = torch.zeros(network.output_shape, dtype=torch.float64)
    for position, digit in enumerate(size, start=grid.low):  # nothing is negative, so nothing cancels
        value = value + digit.double() * math.ldexp(1.0, bits * position)
    error = RAISED * units * math.ldexp(1.0, bits * grid.low) + 2.0 * len(size) * UNIT * value
    return torch.where(negative, -value, value), error


def _suits(network: Network, weights: Weights) -> bool:
    """Whether every operation is exact in whole numbers, and every number within range."""
    for node in network.nodes[1:]:
        op = node.op
        if isinstance(op, Activation):
            numbers = [torch.tensor((0.0, *op.parameters), dtype=torch.float64)]
            if op.function not in ACTIVATIONS:
                return False
        elif isinstance(op, Conv | Dense):
            numbers = [weights[key] for key in (op.weight, op.bias) if key is not None]
        elif isinstance(op, Sum):
            numbers = [torch.tensor(op.coefficients, dtype=torch.float64)]
        elif isinstance(op, AvgPool):
            numbers = [divisor(op, weights)]
            if not ((numbers[0] == numbers[0].round()) & (numbers[0] >= 1) & (numbers[0] < TERMS)).all():
                return False
        elif isinstance(op, MaxPool | Pad | Reshape | Concat):
            numbers = []
            if isinstance(op, MaxPool) and (windows(op, network.nodes[node.inputs[0]].shape[1:]) < 0).any():
                return False
        else:
            return False
        sizes = torch.cat([number.abs().flatten() for number in numbers]) if numbers else torch.zeros(0)
        if not ((sizes == 0) | (sizes >= 2.0**-FINEST) & (sizes <= 2.0**FINEST)).all():
            return False
    return network.nodes[-1].size > 0 and _terms(network, weights) <= TERMS


def _taps(node: Node, weights: Weights) -> int:
    if isinstance(node.op, Conv | Dense):
        return math.prod(weights[node.op.weight].shape[1:])
    return math.prod(node.op.kernel) if isinstance(node.op, AvgPool) else 1


def _terms(network: Network, weights: Weights) -> int:
    """Products that are added up for one entry of any signal."""
    return max(1, *(_taps(node, weights) for node in network.nodes))


def _dear(network: Network, weights: Weights, digits: int) -> bool:
    """Whether an evaluation takes too much time (with weights of four digits) or memory."""
    work = sum(node.size * _taps(node, weights) for node in network.nodes)
    return 2 * 4 * digits * work > WORK or 2 * digits * max(node.size for node in network.nodes) * 48 > MEMORY


def _units(network: Network, sizes: Weights) -> torch.Tensor:
    """How many units each entry of an image may be off by, from absolute weights."""
    signals = [torch.ones((1, *network.input_shape), dtype=torch.float64)]
    for node in network.nodes[1:]:
        sources, op = [signals[i] for i in node.inputs], node.op
        if isinstance(op, Activation):
            units = max((1.0, *map(abs, op.parameters))) * sources[0] + 1.0
        else:
            if isinstance(op, Sum):
                op = replace(op, coefficients=tuple(map(abs, op.coefficients)))
            elif isinstance(op, Conv | Dense):
                op = replace(op, bias=None)
            added = 0.0 if isinstance(op, MaxPool | Pad | Reshape | Concat) else 1.0 + len(sources)
            units = evaluate_node(replace(node, op=op), sources, sizes) + added
        signals.append(RAISED * units)
    return signals[-1][0]

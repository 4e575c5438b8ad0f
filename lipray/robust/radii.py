"""Certified radii: how far an input may be moved, in any direction, before another class can be the largest.

Let j be the class that the network gives x, and K_ij >= Lip(f_i - f_j). For every δ and i ≠ j

    f_j(x + δ) - f_i(x + δ) >= f_j(x) - f_i(x) - K_ij ‖δ‖₂,

which is positive while ‖δ‖ < (f_j(x) - f_i(x)) / K_ij (Tsuzuku et al. 2018; pairwise, Leino et al. 2021). The radius
of x is the least of these over i. Where f_j - f_i > 0 and K_ij = 0 the difference never changes, and i is no limit.

What is computed is below what is meant: the rounding in the float64 evaluation of both logits is subtracted
(``evaluate_with_error``), and every operation after it steps downward, past the exact result. So the class is j, and
no other ties with it, for all ‖δ‖ <= radius, the end included. Where the largest logits cannot be told apart the
radius is 0, and nothing is claimed, not even of x itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lipray.model.evaluate import Weights
from lipray.model.evaluate_error import evaluate_with_error
from lipray.model.network import Concat, Conv, Network, Sum
from lipray.robust.rounding import margins_down, quotients_down
from lipray.verify.layer_norms import MATRIX_BELOW, operation_constant
from lipray.verify.outward import sum_up
from lipray.verify.spectral import spectral_norm_bound

BATCH_BYTES = 2**29
"""What a batch may take, with gradients and the columns of its convolutions."""
MOST = 512
"""Inputs of a batch at most."""
BLUR = 1e-6


@dataclass(frozen=True, slots=True)
class Radii:
    """Of N inputs: the class of each, the radius that is certified, and the class that limits it.

    ``margins`` are proven lower bounds of f_prediction - f_rival, minus infinity where the evaluation overflows;
    ``order`` (N, K - 1) are the other classes, that of the least radius first.
    """

    predictions: np.ndarray
    rivals: np.ndarray
    margins: np.ndarray
    radii: np.ndarray
    order: np.ndarray = field(repr=False)


def certified_radii(values: np.ndarray, errors: np.ndarray, pairwise: np.ndarray) -> Radii:
    """Radii from logits.

    Args:
        values: logits (N, K).
        errors: how far each may be from the exact one, (N, K).
        pairwise: upper bounds of Lip(f_i - f_j), (K, K).
    """
    rows = np.arange(len(values))
    predictions = np.where(np.isfinite(values), values, -math.inf).argmax(axis=1)
    top, doubt = values[rows, predictions][:, None], errors[rows, predictions][:, None]
    margins = margins_down(top, values, doubt + errors)
    radii = quotients_down(margins, pairwise[predictions])
    radii[rows, predictions] = math.nan  # sorted to the end
    order = np.lexsort((np.where(np.isnan(radii), math.inf, margins), radii), axis=1)[:, :-1]
    rivals = order[:, 0]
    return Radii(predictions, rivals, margins[rows, rivals], radii[rows, rivals], order)


def logits(
    network: Network, weights: Weights, x: torch.Tensor, constants: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a float64 batch, and how far each may be from the exact ones, both (N, K)."""
    with torch.no_grad():
        values, errors = evaluate_with_error(network, x, weights, constants)
    return values.numpy(), errors.numpy()


def sharp_enough(network: Network, weights: Weights, x: torch.Tensor) -> tuple[float, ...] | None:
    """The cheapest constants of nodes with which the bound of the rounding is small on a batch; the best if none is.

    ``None`` where entries alone suffice; then constants by taps, then those that an estimate would use.
    """
    if not is_blurred(*logits(network, weights, x)):
        return None
    quick = node_constants(network, quick=True)
    return node_constants(network) if is_blurred(*logits(network, weights, x, quick)) else quick


def node_constants(network: Network, *, quick: bool = False) -> tuple[float, ...]:
    """Certified constants of the nodes with one input, for ``logits`` of deep networks; 0 in the place of others.

    Args:
        network: a map to logits.
        quick: bound a large convolution by the sum over its taps of their matrices' norms: every tap is a shift, a
            crop and that matrix at every position.
    """
    constants = [0.0]
    for node in network.nodes[1:]:
        op, source = node.op, network.nodes[node.inputs[0]].shape
        if isinstance(op, Sum | Concat):
            constants.append(0.0)
        elif quick and isinstance(op, Conv) and min(math.prod(source), node.size) > MATRIX_BELOW:
            constants.append(_taps_constant(np.asarray(network.weights[op.weight], dtype=np.float64), op.groups))
        else:
            constants.append(operation_constant(op, network.weights, source, node.shape))
    return tuple(constants)


def _taps_constant(weight: np.ndarray, groups: int) -> float:
    """The sum over taps of the norms of the matrices (out, in), of a grouped one that of its largest block."""
    taps = weight.reshape(*weight.shape[:2], -1)
    blocks = np.split(taps, groups)
    return sum_up(max(spectral_norm_bound(block[:, :, tap]) for block in blocks) for tap in range(taps.shape[2]))


def is_blurred(values: np.ndarray, errors: np.ndarray) -> bool:
    """Whether the bound of the rounding takes more than a millionth of one margin in a hundred."""
    best = np.sort(values, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        sharp = 2.0 * errors.max(axis=1) <= BLUR * (best[:, 1] - best[:, 0])
    return bool(sharp.mean() < 0.99)


def batch_size(network: Network) -> int:
    """Inputs that are worked on at a time, so that memory stays bounded.

    A convolution on the CPU lays out its input in columns, one entry per weight and position; one does so at a time.
    """
    columns = [
        math.prod(network.weights[node.op.weight].shape[1:]) * node.op.groups * math.prod(node.shape[1:])
        for node in network.nodes
        if isinstance(node.op, Conv)
    ]
    entries = 6 * sum(node.size for node in network.nodes) + 2 * max(columns, default=0)
    return int(np.clip(BATCH_BYTES // (8 * entries), 1, MOST))

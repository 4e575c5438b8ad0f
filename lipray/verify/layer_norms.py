"""Certified spectral norms of single layers, at any size.

Layers whose smaller side is a few thousand go through their matrix. Larger convolutions go through the
torus: with zero padding p and input extent H, the convolution is a restriction of the circular one on a
torus of side N >= H + max(p), because a read at -j (j <= p) wraps to N - j >= H and a read at H - 1 + j stays below
N, both zeros. (Padding wider than the kernel lets outputs at -j and N - j meet on one position. The second is an
output only if N - j + d(k-1) <= H - 1 + p, so d(k-1) < j, and both read nothing but zeros.) Restricting to outputs
of one residue modulo the stride s, s dividing N, aliases frequencies, so the norm squared is at most the largest
eigenvalue over coarse frequencies of s^-D Σ_aliases K(ω) K(ω)*.
Where no two windows of a convolution meet, d(k-1) < s on every axis, ‖y‖² = Σ_t ‖K x_t‖² <= ‖K‖² Σ_t ‖x_t‖²
<= ‖K‖² ‖x‖² with the kernel as one matrix K (out, in · taps) and x_t what the window at t reads, zeros in the padding:
one matrix instead of one per frequency. Where windows meet, an entry counts in several x_t, and ‖K‖ is too small:
[1, 1] along a line has ‖K‖ = √2 and the norm 2.
At the image's own size the transform is not a bound: for [-1, 2, -1] ⊗ [-1, 2, -1] with padding 1 on 3 x 3 it gives
9.0 and the norm is 11.66.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from lipray.model import network as net
from lipray.verify import linear_maps as lm
from lipray.verify.spectral import largest_eigenvalues_bound, spectral_norm_bound
from lipray.verify.underflow import LOST, TINY, least, power_of_two, raised, times_power

MATRIX_BELOW = 2048
"""Smaller side up to which a convolution is bounded through its matrix."""

LARGE = 2**18
"""Entries from which on a layer's bound is kept for when it is asked for again."""

MOST = 10_000
"""Bounds that are kept; one is a number, and the digest of its layer."""
_KNOWN: dict[bytes, float] = {}

CHUNK = 2**24
"""Complex entries of frequency blocks held at a time."""


def operation_constant(op: net.Op, weights: Mapping[str, np.ndarray], source: net.Shape, target: net.Shape) -> float:
    """Upper bound of the l2 Lipschitz constant of one operation with one input."""
    match op:
        case net.Conv():
            return convolution_constant(np.asarray(weights[op.weight], dtype=np.float64), op, source, target)
        case net.Dense():
            weight = np.asarray(weights[op.weight], dtype=np.float64)
            return _remembered(weight, "dense", lambda: spectral_norm_bound(weight))
        case net.ChannelAffine():
            largest = float(np.abs(np.asarray(weights[op.scale], dtype=np.float64)).max(initial=0.0))
            return raised(largest * (1.0 + 16.0 * lm.UNIT))
        case net.Pad() | net.Reshape() | net.Input():
            return 1.0
        case net.AvgPool() | net.AdaptiveAvgPool():
            one = lm.operation_matrix(op, weights, (1, *source[1:]), (1, *target[1:]))
            lost = 0.0 if least(one) >= TINY else lm.norm_bound(one != 0) * LOST
            return lm.norm_bound(one) * (1.0 + 16.0 * lm.UNIT) + lost
        case net.MaxPool():
            return math.nextafter(math.sqrt(_windows_over_an_entry(op, source, target)), math.inf)
        case net.Activation():
            return max(0.0, *(abs(slope) for slope in (*op.lower, *op.upper)))
        case net.Softmax():
            return math.nextafter(math.sqrt(math.prod(target)), math.inf) if op.log else 0.5
        case _:
            raise TypeError(f"{type(op).__name__} has several inputs")


def convolution_constant(weight: np.ndarray, op: net.Conv, source: net.Shape, target: net.Shape) -> float:
    """Upper bound of a convolution's norm with ``weight`` (out, in / groups, k...) in place of its own."""
    if min(math.prod(source), math.prod(target)) <= MATRIX_BELOW:
        return spectral_norm_bound(lm.convolution(weight, op, source, target))
    if _windows_are_disjoint(op, weight):
        return _remembered(weight, f"windows {op.groups}", lambda: _window_norm(weight, op))
    geometry = f"torus {op.stride} {op.padding} {op.dilation} {op.groups} {source}"
    return _remembered(weight, geometry, lambda: torus_norm(weight, op, source))


def _remembered(weight: np.ndarray, what: str, work: Callable[[], float]) -> float:
    """The bound of a large layer, worked out once in a process: driver, solver and verifier ask for the same ones."""
    if weight.size < LARGE:
        return work()
    about = f"{weight.dtype} {weight.shape} {what}".encode()
    key = hashlib.sha256(about + b"\0" + np.ascontiguousarray(weight).tobytes()).digest()
    if key not in _KNOWN:
        if len(_KNOWN) >= MOST:
            _KNOWN.clear()
        _KNOWN[key] = work()
    return _KNOWN[key]


def scaled_convolution_constant(
    node: net.Node, scale: np.ndarray, weights: Mapping[str, np.ndarray], source: net.Shape
) -> float:
    """Upper bound of the norm of a convolution's node followed by a scaling of its channels (a batch norm).

    Scaling the kernel rounds, and the stored scale is itself rounded: |W' - exact| <= 10 u |W'| entrywise, and
    the norm of |W'| is at most that of its sum over taps, sqrt(norm_1 norm_inf); where a product may underflow,
    ``LOST`` is added to each.
    """
    op = node.op
    if not isinstance(op, net.Conv):
        raise TypeError(f"{node.name} is not a convolution")
    stored = np.asarray(weights[op.weight], dtype=np.float64)
    factors = np.asarray(scale, dtype=np.float64).reshape(-1, *[1] * (stored.ndim - 1))
    weight = stored * factors
    absolute = lm.norm_bound(_over_taps(np.abs(weight)))
    value = convolution_constant(weight, op, source, node.shape)
    lost = 0.0
    if least(stored) * least(factors) < TINY:
        lost = lm.norm_bound(_over_taps((stored != 0.0) & (factors != 0.0))) * LOST
    if value == 0.0 and absolute == 0.0 and lost == 0.0:
        return 0.0
    return math.nextafter(value + 16.0 * lm.UNIT * absolute + lost, math.inf) * (1.0 + 4.0 * lm.UNIT)


def _over_taps(kernel: np.ndarray) -> np.ndarray:
    total: np.ndarray = kernel.reshape(*kernel.shape[:2], -1).sum(axis=2)
    return total


def _windows_are_disjoint(op: net.Conv, weight: np.ndarray) -> bool:
    """Whether no two outputs read the same entry: of one tap, or of patches."""
    taps = weight.shape[2:]
    return all(d * (k - 1) < step for k, d, step in zip(taps, op.dilation, op.stride, strict=True))


def _window_norm(weight: np.ndarray, op: net.Conv) -> float:
    """The norm of the kernel as a matrix (out, in · taps), largest over the groups."""
    groups = np.split(weight.reshape(weight.shape[0], -1), op.groups)
    return max(spectral_norm_bound(group) for group in groups)


def _windows_over_an_entry(op: net.MaxPool, source: net.Shape, target: net.Shape) -> int:
    """Largest number of windows one entry belongs to: |max a - max b|² <= Σ over its window, summed over windows."""
    count = 1
    for axis in range(len(op.kernel)):
        reads = np.concatenate(lm.pool_candidates(op, axis, source[axis + 1], target[axis + 1])).reshape(
            op.kernel[axis], -1
        )
        touched = [np.unique(window) for window in reads.T]
        count *= int(np.bincount(np.concatenate(touched)).max())
    return count


def torus_norm(weight: np.ndarray, op: net.Conv, source: net.Shape) -> float:
    """Upper bound of a large convolution's norm, over the frequencies of a torus that fits its padding."""
    magnitude = float(np.abs(weight).max(initial=0.0))
    if magnitude == 0.0:
        return 0.0
    if not math.isfinite(magnitude):
        return math.inf
    scale = power_of_two(magnitude)
    weight = weight / scale
    sides = []
    for extent, pad, stride in zip(source[1:], op.padding, op.stride, strict=True):
        least = extent + max(0, *pad)
        sides.append(-(-least // stride) * stride)
    per_group = weight.shape[0] // op.groups
    best = 0.0
    for group in range(op.groups):
        part = weight[group * per_group : (group + 1) * per_group]
        absolute = lm.norm_bound(_over_taps(np.abs(part)))
        # The Gram matrix is the smaller of two: its inner dimension is the larger.
        terms = math.prod(part.shape[2:]) + max(per_group, part.shape[1] * math.prod(op.stride)) + 8
        rounding = 16.0 * terms * lm.UNIT * absolute**2
        top = 0.0
        for gram in _frequency_grams(part, tuple(sides), op.stride, op.dilation):
            top = largest_eigenvalues_bound(gram, top)
        best = max(best, top + rounding)
    return times_power(math.nextafter(math.sqrt(best), math.inf), scale) * (1.0 + 4.0 * lm.UNIT)


def _frequency_grams(
    weight: np.ndarray, sides: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Iterator[torch.Tensor]:
    """s^-D Σ_aliases K K* over coarse frequencies, in chunks; the smaller of the two equal-norm Gram matrices.

    The kernel is real, so a coarse frequency and its negative have conjugate blocks: half of the first
    axis is enough.
    """
    outputs, inputs = weight.shape[:2]
    taps = torch.from_numpy(weight).to(torch.complex128)
    coarse = [side // step for side, step in zip(sides, stride, strict=True)]
    aliases = math.prod(stride)
    phases = []
    for axis, (side, step) in enumerate(zip(sides, dilation, strict=True)):
        offset = torch.arange(weight.shape[2 + axis], dtype=torch.float64) * step
        # Reduced modulo the side first: the argument of the exponential stays below 2 pi.
        turns = torch.outer(torch.arange(side, dtype=torch.float64), offset).remainder(side)
        phases.append(torch.exp(2j * math.pi * turns / side))
    firsts = range(coarse[0] // 2 + 1)
    grid = list(itertools.product(firsts, *(range(n) for n in coarse[1:])))
    step = max(1, CHUNK // (outputs * inputs * aliases + 1))
    shifts = list(itertools.product(*(range(s) for s in stride)))
    for start in range(0, len(grid), step):
        index = torch.tensor(grid[start : start + step])
        blocks = []
        for shift in shifts:
            table = [phases[a][index[:, a] + shift[a] * coarse[a]] for a in range(len(sides))]
            blocks.append(torch.einsum("oiab,fa,fb->foi" if len(sides) == 2 else "oia,fa->foi", taps, *table))
        wide = torch.cat(blocks, dim=2)
        gram = wide @ wide.mH if outputs <= wide.shape[2] else wide.mH @ wide
        yield gram / aliases

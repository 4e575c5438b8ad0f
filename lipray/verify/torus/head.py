"""From the torus to vectors: the linear stage that reads the last map's window.

Where the torus is left, the increments of the map have the block-circulant shape matrix of symbol Γ(ω). Rows
y_r = Σ_c Σ_i W_rci x_c[i] over the window's positions i have the shape matrix

    Q = N^-D Σ_ω Ŵ(ω) Γ(ω) Ŵ(ω)*,     Ŵ_rc(ω) = Σ_i W_rci e^{iω·i},

real because frequencies come in conjugate pairs. The rows are a dense layer behind a flatten, pools of
each channel (a global average), both, or the window itself, entry by entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lipray.model import network as net
from lipray.verify import linear_maps as lm
from lipray.verify.cuts import cut_positions
from lipray.verify.linear_maps import UNIT
from lipray.verify.torus.layout import Torus
from lipray.verify.torus.symbols import Frequencies, on_device, turns
from lipray.verify.underflow import SAFE, TINY, frobenius, least

CHUNK = 2**24
"""Complex entries of Ŵ held at a time."""


@dataclass(frozen=True, slots=True)
class Head:
    """Rows over a map's window: ``pool`` (m, positions) per channel, then ``weight`` (rows, channels * m).

    Either may be ``None``, the identity. ``node`` is the node whose value the rows are, ``window`` the map's extents.
    ``composed`` counts the terms summed where pools that follow each other were multiplied.
    """

    node: int
    channels: int
    window: tuple[int, ...]
    pool: torch.Tensor | None
    weight: torch.Tensor | None
    composed: int = 0

    @property
    def places(self) -> int:
        """Numbers per channel after pooling."""
        return math.prod(self.window) if self.pool is None else int(self.pool.shape[0])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.channels * self.places if self.weight is None else int(self.weight.shape[0])


def find_head(network: net.Network, torus: Torus, *, window: bool) -> Head | None:
    """The head after the torus' cut, or ``None`` where the network's output is the map itself.

    With ``window`` the head is the window itself; otherwise a pool per channel and the dense layer that follow are
    part of it.
    """
    index = torus.cut
    shape = network.nodes[index].shape
    extents = tuple(shape[1:])
    if window:
        return Head(index, shape[0], extents, None, None)
    if index == len(network.nodes) - 1:
        return None
    # Where another branch reads one of these nodes too, the head must end before it.
    cuts = frozenset(cut_positions(network))
    pool: torch.Tensor | None = None
    composed = 0
    found = Head(index, shape[0], extents, None, None)
    for follower in range(index + 1, len(network.nodes)):
        node, before = network.nodes[follower], network.nodes[follower - 1].shape
        op = node.op
        places = math.prod(extents) if pool is None else int(pool.shape[0])
        if node.inputs != (follower - 1,):
            break
        if isinstance(op, net.AvgPool | net.AdaptiveAvgPool) and before[0] == shape[0]:
            one = (1, *before[1:]), (1, *node.shape[1:])
            matrix = on_device(lm.operation_matrix(op, network.weights, *one).toarray())
            if pool is not None and least(matrix.cpu().numpy()) * least(pool.cpu().numpy()) < TINY:
                break
            composed += 0 if pool is None else matrix.shape[1]
            pool = matrix if pool is None else matrix @ pool
        elif isinstance(op, net.Dense) and len(before) == 1:
            weight = on_device(network.weights[op.weight])
            if weight.shape[0] < shape[0] * places and follower in cuts:
                return Head(follower, shape[0], extents, pool, weight, composed)
            break
        elif not isinstance(op, net.Reshape):
            break
        if follower in cuts:
            found = Head(follower, shape[0], extents, pool, None, composed)
    return found


def waves(head: Head, frequencies: Frequencies, sides: tuple[int, ...]) -> torch.Tensor:
    """ĝ(ω) of the pool (or e^{iω·i} of the window), (F, m)."""
    table = torch.ones(frequencies[0].shape[0], 1, dtype=torch.complex128)
    for axis, extent in enumerate(head.window):
        wave = torch.stack([turns(frequencies[axis], sides[axis], i) for i in range(extent)], dim=1)
        table = (table[:, :, None] * wave[:, None, :]).reshape(table.shape[0], -1)
    return table if head.pool is None else table @ head.pool.T.to(torch.complex128)


def read(
    head: Head, shape: torch.Tensor, counts: torch.Tensor, frequencies: Frequencies, sides: tuple[int, ...]
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """The rows' share of Q from some frequencies, a bound on the 2-norm of its rounding error, and each one's trace.

    Args:
        head: the rows.
        shape: Γ(ω), (F, channels, channels).
        counts: how often each frequency counts, (F,).
        frequencies: indices on the coarsest torus.
        sides: its sides.
    """
    shares = counts / math.prod(sides)
    g = waves(head, frequencies, sides)
    size = frobenius(shape)
    taps = math.prod(head.window) + head.places + head.composed
    wave_error = 4.0 * (taps + 40) * UNIT
    if head.weight is None:
        A = (shape * shares[:, None, None]).reshape(shape.shape[0], -1)
        B = (g[:, :, None] * g[:, None, :].conj()).reshape(g.shape[0], -1)
        total = A.real.T @ B.real - A.imag.T @ B.imag
        c, m = head.channels, head.places
        total = total.reshape(c, c, m, m).transpose(1, 2).reshape(c * m, c * m)
        magnitude = math.prod(head.window) if head.pool is None else float(head.pool.abs().sum(dim=1).square().sum())
        magnitude = max(magnitude, TINY)
        error = (2.0 * wave_error + 8.0 * (shape.shape[0] + 8) * UNIT) * magnitude * float((size * shares).sum())
        traces = shape.diagonal(dim1=-2, dim2=-1).real.sum(dim=1) * g.abs().square().sum(dim=1) * shares
        return (total + total.T) / 2, error, traces
    weight = head.weight.reshape(head.rows, head.channels, head.places)
    gain = torch.ones(head.places, dtype=torch.float64) if head.pool is None else head.pool.abs().sum(dim=1)
    # Norms below it are raised to what has a square.
    largest = max(float(torch.linalg.matrix_norm(weight.abs() @ gain)), SAFE)
    total = torch.zeros(head.rows, head.rows, dtype=torch.float64)
    error = 0.0
    loads: list[torch.Tensor] = []
    step = max(1, CHUNK // (head.rows * head.channels))
    for start in range(0, g.shape[0], step):
        part = slice(start, start + step)
        W = _transform(weight, g[part])
        product = (W @ shape[part]) * shares[part, None, None]
        loads.append((product * W.conj()).real.sum(dim=(1, 2)))
        # Frequencies are summed by one product of wide matrices.
        left = product.transpose(0, 1).reshape(head.rows, -1)
        right = W.transpose(0, 1).reshape(head.rows, -1)
        total += left.real @ right.real.T + left.imag @ right.imag.T
        norm = torch.linalg.matrix_norm(W).clamp(min=SAFE) + wave_error * largest
        terms = 8.0 * (head.channels * W.shape[0] + 16) * UNIT
        error += float(((2.0 * wave_error * largest * norm + terms * norm**2) * size[part] * shares[part]).sum())
    return (total + total.T) / 2, error, torch.cat(loads)


def _transform(weight: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Ŵ(ω), (F, rows, channels)."""
    rows, channels, places = weight.shape
    flat = weight.reshape(rows * channels, places)
    values = torch.complex(flat @ g.real.T, flat @ g.imag.T)
    return values.reshape(rows, channels, -1).permute(2, 0, 1).contiguous()

"""What follows the torus, densely: the head's rows come with a shape matrix Q, and the rest is a sector form.

With Q ⪯ F Fᵀ the increments of the rows are F times a vector of norm at most one, so that the bound of the network is
that of the tail after the linear map F, and ``lipray.verify.elimination`` proves it, one multiplier per
neuron. In the hybrid method the rows are a whole window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lipray.model.network import Network
from lipray.verify.cuts import sub_network
from lipray.verify.elimination import Blocks, Evaluation, evaluate, prepare
from lipray.verify.linear_maps import UNIT
from lipray.verify.sector import lower
from lipray.verify.underflow import TINY, least


def tail_blocks(network: Network, node: int) -> tuple[Blocks, tuple[str, ...]]:
    """The sector form of what follows ``node``, in blocks, and its layers' names."""
    form = lower(sub_network(network, node, len(network.nodes) - 1))
    return prepare(form), tuple(layer.name for layer in form.layers)


def factor_of(gram: torch.Tensor, error: float) -> torch.Tensor | None:
    """A lower triangular F with F Fᵀ ⪰ every matrix within ``error`` (2-norm) of ``gram``, positive semidefinite.

    Floating-point Cholesky of A completes with F Fᵀ = A + Δ, |Δ_ij| <= γ_{n+1} |f_i||f_j|, so ‖Δ‖ <= γ tr(A) / (1 - γ)
    (Higham 2002, theorem 10.3); A is ``gram`` with twice that, and the error, added to its diagonal. ``None`` where the
    numbers are not finite.
    """
    n = gram.shape[0]
    trace = float(gram.diagonal().clamp(min=0.0).sum()) + n * error
    gamma = 4.0 * (n + 2) * UNIT
    raised = error * (1.0 + 1e-9) + 4.0 * gamma * trace + 1e-300
    while math.isfinite(raised):
        A = gram.clone()
        A.diagonal().add_(raised)
        F, info = torch.linalg.cholesky_ex(A)
        if int(info) == 0:
            return torch.tril(F)
        raised *= 10.0
    return None


def with_input(blocks: Blocks, factor: torch.Tensor, *, proof: bool) -> Blocks:
    """The tail after the linear map ``factor``; with ``proof`` the rounding of the products is accounted for."""
    n = factor.shape[0]
    maps, errors, grams = [], [], []
    read: dict[int, torch.Tensor] = {}
    gamma = 2.0 * (n + 2) * UNIT
    for j, row in enumerate(blocks.maps):
        own, doubt = dict(row), dict(blocks.errors[j])
        if 0 in row:
            own[0] = read[j] = row[0] @ factor
            if proof:
                doubt[0] = _doubt(gamma, row[0].abs(), doubt.get(0), factor.abs()) * (1.0 + 1e-9)
        maps.append(own)
        errors.append(doubt if proof else {})
        grams.append({k: read[j] @ read[k].T for k in read} if 0 in row else {})
    return replace(blocks, maps=tuple(maps), errors=tuple(errors), grams=tuple(grams), taps=n)


def _doubt(gamma: float, row: torch.Tensor, error: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor:
    """(γ |B| + E) |F|, in the order in which γ |B| does not underflow."""
    if least(row.numpy()) < TINY:
        rounding = gamma * (row @ factor)
        return rounding if error is None else rounding + error @ factor
    bound = gamma * row
    return (bound if error is None else bound + error) @ factor


def certify_tail(
    blocks: Blocks, gram: torch.Tensor, error: float, multipliers: Sequence[np.ndarray]
) -> Evaluation | None:
    """The certified bound of the whole network from the rows' shape matrix and the tail's multipliers."""
    factor = factor_of(gram, error)
    return None if factor is None else evaluate(with_input(blocks, factor, proof=True), multipliers)

"""The bounds that come to mind first, in floating point: products of norms of whole layers, and LipLT.

LipLT is Fazlyab, Entesari, Roy and Chellappa (2023), as written there and without the rounding: lipray's own adds it,
which at a depth of a hundred layers is larger than the bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from lipray.model import network as net
from lipray.verify import linear_maps as lm
from lipray.verify.sector import lower
from peers.answer import FLOATING, Answer, NotHereError

LARGEST = 4096
"""Rows or columns of a layer's matrix, beyond which it is not written out."""

Norm = Callable[[np.ndarray], float]


def spectral(matrix: np.ndarray) -> float:
    """The largest singular value by torch's SVD."""
    return float(torch.linalg.matrix_norm(torch.from_numpy(np.ascontiguousarray(matrix)), 2))


def frobenius(matrix: np.ndarray) -> float:
    """The Frobenius norm."""
    return float(torch.linalg.matrix_norm(torch.from_numpy(np.ascontiguousarray(matrix))))


def product(network: net.Network, norm: Norm) -> Answer:
    """Norms of the full linear maps multiplied along the graph; at a sum the branches add up.

    Raises:
        NotHereError: a layer's matrix is too large to be written out.
    """
    constants: list[float] = []
    for node in network.nodes:
        inputs = [constants[i] for i in node.inputs]
        match node.op:
            case net.Input():
                value = 1.0
            case net.Sum():
                value = sum(abs(c) * x for c, x in zip(node.op.coefficients, inputs, strict=True))
            case net.Concat():
                value = float(np.hypot.reduce(inputs))
            case net.Activation():
                value = max(abs(slope) for slope in (*node.op.lower, *node.op.upper)) * inputs[0]
            case net.Reshape():
                value = inputs[0]
            case net.Dense() | net.Conv() | net.AvgPool() | net.ChannelAffine():
                before = network.nodes[node.inputs[0]]
                if max(before.size, node.size) > LARGEST:
                    raise NotHereError(f"not tried: a matrix beyond {LARGEST:,} rows or columns")
                matrix = lm.operation_matrix(node.op, network.weights, before.shape, node.shape)
                value = norm(matrix.toarray()) * inputs[0]
            case _:
                raise NotHereError(f"not written for {type(node.op).__name__}")
        constants.append(value)
    return Answer(constants[-1], FLOATING, None, "done")


def liplt(network: net.Network) -> Answer:
    """L_j <= ‖D_j0‖ + Σ_i ‖D_ji‖ L_i, where v_j = D_j0 x + Σ_i D_ji w_i and w is twice the activation less its input.

    Raises:
        NotHereError: a signal is too large for its dense matrices.
    """
    form = lower(network)
    if max(form.input_size, *form.widths, form.output_size) > LARGEST or len(form.widths) > 200:
        raise NotHereError(f"not tried: signals beyond {LARGEST:,}, or more than 200 layers")
    rows: list[dict[int, np.ndarray]] = []
    constants = [1.0]
    for terms in (*(layer.terms for layer in form.layers), form.output):
        row: dict[int, np.ndarray] = {}
        for term in terms:
            if term.source == 0:
                row[0] = row.get(0, 0.0) + term.matrix.toarray()
                continue
            half = sp.csr_array(term.matrix / 2.0)
            row[term.source] = row.get(term.source, 0.0) + half.toarray()
            for source, matrix in rows[term.source - 1].items():
                row[source] = row.get(source, 0.0) + half @ matrix
        rows.append(row)
        constants.append(sum(spectral(matrix) * constants[source] for source, matrix in row.items()))
    return Answer(constants[-1] * form.factor, FLOATING, None, "done")

"""Closed forms: the product of layer norms, and beside it LipLT and ECLipsE-Fast.

The product bound walks the graph: L(node) = (constant of the operation) L(input), a sum adds, a
concatenation takes the root of the sum of squares. Where the sector form is small it is the tighter
``L_j <= Σ_k ‖B_jk‖ L_k``, which folds batch norms and pools into their neighbours; for a chain both are the
product of the norms. LipLT is Fazlyab, Entesari, Roy & Chellappa 2023 ("Certified robustness via dynamic
margin maximization and improved Lipschitz regularization"), in the sector form: with u = (v + w) / 2 and
|Δw| <= |Δv|, v_j = D_j0 x + Σ_i D_ji w_i gives L_j <= ‖D_j0‖ + Σ_i ‖D_ji‖ L_i. All norms are from above.
"""

from __future__ import annotations

import math
import time

import numpy as np
import scipy.sparse as sp

from lipray.certify import linear_maps as lm
from lipray.certify.certificate import Certificate, Status
from lipray.certify.elimination import closed_form, evaluate, prepare
from lipray.certify.layer_norms import operation_constant, scaled_convolution_constant
from lipray.certify.sector import SectorForm, lower
from lipray.certify.spectral import spectral_norm_bound
from lipray.model import network as net
from lipray.partition.subproblem import Subproblem

SECTOR_BELOW = 6000
"""Largest signal for which the sector form is worked out."""

CLOSED_FORMS_BELOW = 3000
"""Largest signal for which LipLT, and most neurons for which ECLipsE-Fast, are worked out beside the product."""


def solve_product(problem: Subproblem) -> Certificate:
    """Certify by the product of layer norms; ``figures`` has LipLT and ECLipsE-Fast where they are cheap."""
    start = time.monotonic()
    network = problem.network
    largest = max(node.size for node in network.nodes)
    figures: dict[str, float] = {}
    bound = graph_product(network)
    if largest <= SECTOR_BELOW:
        form = lower(network)
        bound = min(bound, sector_product(form))
        if max((form.input_size, *form.widths, form.output_size)) <= CLOSED_FORMS_BELOW:
            figures["liplt"] = liplt(form)
        if sum(form.widths) <= CLOSED_FORMS_BELOW:
            blocks = prepare(form)
            certified = evaluate(blocks, closed_form(blocks))
            if certified is not None:
                figures["eclipse_fast"] = certified.bound
    figures["product"] = bound
    seconds = time.monotonic() - start
    return Certificate(problem.key(), "product", bound, Status.CLOSED_FORM, figures=figures, seconds=seconds)


def graph_product(network: net.Network) -> float:
    """Product of operation constants along the graph, rounded outward; batch norms join their convolution."""
    nodes = network.nodes
    # Where a constant is read from: through a batch norm's convolution, straight to what that reads.
    origins = [_origins(network, node) for node in nodes]
    needed = {len(nodes) - 1}
    for index in reversed(range(len(nodes))):
        if index in needed:
            needed.update(origins[index])
    constants: dict[int, float] = {}
    for index in sorted(needed):
        node = nodes[index]
        inputs = [constants[i] for i in origins[index]]
        match node.op:
            case net.Input():
                value = 1.0
            case net.Sum():
                value = _up(
                    sum(_times(abs(c), x) for c, x in zip(node.op.coefficients, inputs, strict=True)), len(inputs)
                )
            case net.Concat():
                value = _up(math.hypot(*inputs), len(inputs) + 4)
            case net.ChannelAffine() if origins[index] != node.inputs:
                before = nodes[node.inputs[0]]
                scale, source = network.weights[node.op.scale], nodes[origins[index][0]].shape
                value = _times(scaled_convolution_constant(before, scale, network.weights, source), inputs[0])
            case _:
                own = operation_constant(node.op, network.weights, nodes[node.inputs[0]].shape, node.shape)
                value = _times(own, inputs[0])
        constants[index] = value
    return constants[len(nodes) - 1]


def _origins(network: net.Network, node: net.Node) -> tuple[int, ...]:
    if isinstance(node.op, net.ChannelAffine) and isinstance(network.nodes[node.inputs[0]].op, net.Conv):
        return network.nodes[node.inputs[0]].inputs
    return node.inputs


def sector_product(form: SectorForm) -> float:
    """L_j <= Σ_k ‖B_jk‖ L_k over the sector form, rounded outward."""
    constants = [1.0]
    for terms in (*(layer.terms for layer in form.layers), form.output):
        total = 0.0
        for term in terms:
            error = 0.0 if term.error is None else lm.norm_bound(term.error)
            total += _times(spectral_norm_bound(term.matrix, error), constants[term.source])
        constants.append(_up(total, len(terms)))
    return constants[-1] if form.factor == 1.0 else _times(constants[-1], form.factor)


def liplt(form: SectorForm) -> float:
    """LipLT over the sector form, norms from above and the rounding of the products included."""
    rows: list[dict[int, tuple[np.ndarray, float]]] = []
    constants = [1.0]
    for terms in (*(layer.terms for layer in form.layers), form.output):
        row: dict[int, tuple[np.ndarray, float]] = {}
        for term in terms:
            error = 0.0 if term.error is None else lm.norm_bound(term.error)
            norm = lm.norm_bound(term.matrix)
            if term.source == 0:
                _accumulate(row, 0, term.matrix.toarray(), error)
                continue
            _accumulate(row, term.source, term.matrix.toarray() / 2.0, error / 2.0)
            half = sp.csr_array(term.matrix / 2.0)
            gamma = 2.0 * (term.matrix.shape[1] + 2) * lm.UNIT
            for source, (matrix, doubt) in rows[term.source - 1].items():
                other = lm.norm_bound(matrix)
                rounding = (gamma * norm * other + (norm + error) * doubt + error * other) / 2.0
                _accumulate(row, source, half @ matrix, rounding)
        rows.append(row)
        total = 0.0
        for source, (matrix, doubt) in row.items():
            total += _times(spectral_norm_bound(matrix, doubt), constants[source])
        constants.append(_up(total, len(row)))
    return constants[-1] if form.factor == 1.0 else _times(constants[-1], form.factor)


def _accumulate(row: dict[int, tuple[np.ndarray, float]], source: int, matrix: np.ndarray, doubt: float) -> None:
    if source in row:
        old, old_doubt = row[source]
        joined = old + matrix
        row[source] = (joined, (old_doubt + doubt + 2.0 * lm.UNIT * lm.norm_bound(joined)) * (1.0 + 1e-12))
    else:
        row[source] = (matrix, doubt)


def _times(a: float, b: float) -> float:
    """A product outward: zero only where a factor is, even where it underflows; zero times infinity is zero."""
    return 0.0 if a == 0.0 or b == 0.0 else math.nextafter(a * b * (1.0 + 2.0 * lm.UNIT), math.inf)


def _up(value: float, operations: int = 1) -> float:
    """Outward by one ulp for each rounded operation."""
    return value if value == 0.0 else math.nextafter(value * (1.0 + 2.0 * operations * lm.UNIT), math.inf)

"""The product of layer norms: the cheap bound that every network has.

It walks the graph: L(node) = (constant of the operation) L(input), a sum adds, a concatenation takes the root of the
sum of squares. Where the sector form is small it is the tighter ``L_j <= Σ_k ‖B_jk‖ L_k``, which folds batch norms
and pools into their neighbours; for a chain both are the product of the norms. All norms are from above.
"""

from __future__ import annotations

import math

from lipray.model import network as net
from lipray.verify import linear_maps as lm
from lipray.verify.layer_norms import operation_constant, scaled_convolution_constant
from lipray.verify.sector import SectorForm, lower
from lipray.verify.spectral import spectral_norm_bound

SECTOR_BELOW = 6000
"""Largest signal for which the sector form is worked out."""


def product_bound(network: net.Network, form: SectorForm | None = None) -> float:
    """The smaller of both products; ``form`` is ``sector_form(network)`` where it is at hand."""
    bound = graph_product(network)
    form = form or sector_form(network)
    return bound if form is None else min(bound, sector_product(form))


def sector_form(network: net.Network) -> SectorForm | None:
    """The sector form, ``None`` where it is too large to be worked out."""
    return lower(network) if max(node.size for node in network.nodes) <= SECTOR_BELOW else None


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
                value = widened(
                    sum(times_up(abs(c), x) for c, x in zip(node.op.coefficients, inputs, strict=True)), len(inputs)
                )
            case net.Concat():
                value = widened(math.hypot(*inputs), len(inputs) + 4)
            case net.ChannelAffine() if origins[index] != node.inputs:
                before = nodes[node.inputs[0]]
                scale, source = network.weights[node.op.scale], nodes[origins[index][0]].shape
                value = times_up(scaled_convolution_constant(before, scale, network.weights, source), inputs[0])
            case _:
                own = operation_constant(node.op, network.weights, nodes[node.inputs[0]].shape, node.shape)
                value = times_up(own, inputs[0])
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
            total += times_up(spectral_norm_bound(term.matrix, error), constants[term.source])
        constants.append(widened(total, len(terms)))
    return constants[-1] if form.factor == 1.0 else times_up(constants[-1], form.factor)


def times_up(a: float, b: float) -> float:
    """A product outward: zero only where a factor is, even where it underflows; zero times infinity is zero."""
    return 0.0 if a == 0.0 or b == 0.0 else math.nextafter(a * b * (1.0 + 2.0 * lm.UNIT), math.inf)


def widened(value: float, operations: int = 1) -> float:
    """Outward by one ulp for each rounded operation."""
    return value if value == 0.0 else math.nextafter(value * (1.0 + 2.0 * operations * lm.UNIT), math.inf)

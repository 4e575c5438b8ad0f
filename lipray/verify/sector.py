"""A network in sector form: activations with slopes in [0, 1] between linear maps.

With u_j the outputs of activation layer j (j = 1, 2, ...) and u_0 the input, every layer reads
``v_j = sum_k B_jk u_k`` over k < j, ``u_j = phi(v_j)`` element-wise with difference quotients in [0, 1], and the
output is ``y = sum_k C_k u_k``. Skips, joins and concatenations only fill more of B. Lowering is exact:

- an activation with slopes in [a, b] is ``z = a v + (b - a) u``;
- ``max(p, q) = q + relu(p - q)``, a max-pool a separable tree of these;
- a neuron whose pre-activation never changes (a zero row) is left out.

Products of matrices (batch norm into a convolution, an average pool into a dense layer) round; each
term carries an entrywise bound on its error, which the certificate accounts for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from lipray.model import network as net
from lipray.verify import linear_maps as lm
from lipray.verify.underflow import LOST, TINY, least, pattern

Matrix: TypeAlias = sp.csr_array


@dataclass(frozen=True, slots=True)
class Term:
    """``matrix`` applied to signal ``source``; |matrix - exact| <= ``error`` entrywise (``None``: exact)."""

    source: int
    matrix: Matrix
    error: Matrix | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One activation layer: its pre-activation as a sum of terms over earlier signals."""

    name: str
    size: int
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class SectorForm:
    """The lowered network; signal 0 is the input, signal j the outputs of ``layers[j - 1]``.

    ``factor`` multiplies the constant of the map (a final softmax contributes its own constant).
    """

    input_size: int
    layers: tuple[Layer, ...]
    output: tuple[Term, ...]
    output_size: int
    factor: float = 1.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons of each activation layer."""
        return tuple(layer.size for layer in self.layers)

    @property
    def neurons(self) -> tuple[tuple[str, int], ...]:
        """Name and number of neurons of each activation layer."""
        return tuple((layer.name, layer.size) for layer in self.layers)


Linear = tuple[Matrix, Matrix | None]
Expression = dict[int, Linear]
"""A vector as a linear combination of signals: matrix and error bound per signal."""


def lower(network: net.Network) -> SectorForm:
    """Lower a network to sector form.

    Raises:
        TypeError: an operation the sector form cannot express.
    """
    layers: list[Layer] = []
    values: list[Expression] = []
    factor = 1.0
    for node in network.nodes:
        inputs = [values[i] for i in node.inputs]
        shapes = [network.nodes[i].shape for i in node.inputs]
        match node.op:
            case net.Input():
                value: Expression = {0: (_eye(node.size), None)}
            case net.Activation():
                value = _activation(layers, node, inputs[0], shapes[0])
            case net.MaxPool():
                value = _max_pool(layers, node, inputs[0], shapes[0])
            case net.Sum():
                value = _add([_scale(c, e) for c, e in zip(node.op.coefficients, inputs, strict=True)])
            case net.Concat():
                places = lm.concatenation(shapes, node.op.axis)
                value = _add([_apply(m, None, e) for m, e in zip(places, inputs, strict=True)])
            case net.Softmax():
                value = inputs[0]
                factor = math.nextafter(math.sqrt(node.size), math.inf) if node.op.log else 0.5
            case _:
                matrix = lm.operation_matrix(node.op, network.weights, shapes[0], node.shape)
                value = _apply(matrix, _stored_error(node.op, matrix), inputs[0])
        values.append(value)
    last = network.nodes[-1]
    return SectorForm(network.nodes[0].size, tuple(layers), _terms(values[-1]), last.size, factor)


def _terms(value: Expression) -> tuple[Term, ...]:
    return tuple(Term(source, matrix, error) for source, (matrix, error) in sorted(value.items()))


def _slope(layers: list[Layer], name: str, value: Expression, size: int) -> Expression:
    """Push u = phi(v), slopes in [0, 1]; entries of v whose difference is exactly zero are left out."""
    moving = np.zeros(size, dtype=bool)
    for matrix, error in value.values():
        for part in (matrix, error):
            if part is not None:
                part.eliminate_zeros()
                moving |= np.diff(part.indptr) > 0
    kept = np.flatnonzero(moving)
    if kept.size == 0:
        return {}
    if kept.size < size:
        value = {
            source: (sp.csr_array(matrix[kept]), None if error is None else sp.csr_array(error[kept]))
            for source, (matrix, error) in value.items()
        }
    layers.append(Layer(name, kept.size, _terms(value)))
    scatter = sp.csr_array((np.ones(kept.size), (kept, np.arange(kept.size))), shape=(size, kept.size))
    return {len(layers): (scatter, None)}


def _activation(layers: list[Layer], node: net.Node, value: Expression, shape: net.Shape) -> Expression:
    """Write z = a v + (b - a) u for slopes in [a, b]."""
    op = node.op
    assert isinstance(op, net.Activation)  # noqa: S101 (narrows the type)
    low, high = (_per_entry(bounds, shape) for bounds in (op.lower, op.upper))
    width = high - low
    # The width is a rounded difference: one more ulp keeps [a, a + width] a cover of [a, b].
    width = np.where((low == 0.0) | (width == 0.0), width, np.nextafter(width, np.inf))
    curved = _slope(layers, node.name, _rows_where(width != 0.0, value), node.size) if width.any() else {}
    return _add([_apply(_diagonal(width), None, curved), _apply(_diagonal(low), None, value)])


def _rows_where(mask: np.ndarray, value: Expression) -> Expression:
    return value if mask.all() else _apply(_diagonal(mask.astype(np.float64)), None, value)


def _max_pool(layers: list[Layer], node: net.Node, value: Expression, shape: net.Shape) -> Expression:
    """Separable tree of max(p, q) = q + relu(p - q), one spatial axis after the other.

    A tap outside the map leaves its partner the maximum, without a neuron: one whose pre-activation is zero but for
    rounding would cost tightness.
    """
    op = node.op
    assert isinstance(op, net.MaxPool)  # noqa: S101 (narrows the type)
    current = list(shape)
    for axis in range(len(op.kernel)):
        source, target = current[axis + 1], node.shape[axis + 1]
        reads = lm.pool_candidates(op, axis, source, target)
        start = np.arange(target) * op.stride[axis] - op.padding[axis][0]
        before = list(current)
        current[axis + 1] = target
        size = math.prod(current)
        along = [target if i == axis + 1 else 1 for i in range(len(current))]
        field = []
        for tap, index in enumerate(reads):
            inside = np.broadcast_to((index == start + tap * op.dilation[axis]).reshape(along), current).ravel()
            field.append((_apply(lm.selection(before, axis, index), None, value), inside))
        turn = 0
        while len(field) > 1:
            winners = []
            for (p, p_inside), (q, q_inside) in zip(field[::2], field[1::2], strict=False):
                name = f"{node.name}.max{axis}.{turn}"
                ahead = _rows_where(p_inside & q_inside, _add([p, _scale(-1.0, q)]))
                winner = _add([_either(q_inside, q, p), _slope(layers, name, ahead, size)])
                winners.append((winner, p_inside | q_inside))
                turn += 1
            field = winners + (field[-1:] if len(field) % 2 else [])
        value = field[0][0]
    return value


def _either(mask: np.ndarray, p: Expression, q: Expression) -> Expression:
    """Rows of p where the mask is true, of q elsewhere; nothing is rounded."""
    if mask.all():
        return p
    result = _rows_where(mask, p)
    for source, other in _rows_where(~mask, q).items():
        if source not in result:
            result[source] = other
            continue
        errors = [error for _, error in (result[source], other) if error is not None]
        joined = sp.csr_array(sum(errors[1:], errors[0])) if errors else None
        result[source] = (sp.csr_array(result[source][0] + other[0]), joined)
    return result


def _eye(size: int) -> Matrix:
    return sp.csr_array(sp.eye_array(size))


def _diagonal(entries: np.ndarray) -> Matrix:
    matrix = sp.csr_array(sp.diags_array(entries))
    matrix.eliminate_zeros()
    return matrix


def _per_entry(bounds: tuple[float, ...], shape: net.Shape) -> np.ndarray:
    if len(bounds) == 1:
        return np.full(math.prod(shape), bounds[0])
    return np.repeat(np.asarray(bounds), math.prod(shape[1:]))


def _stored_error(op: net.Op, matrix: Matrix) -> Matrix | None:
    """Error of a matrix whose stored numbers are themselves rounded: folded norms, pool divisors."""
    if isinstance(op, net.ChannelAffine | net.AvgPool | net.AdaptiveAvgPool):
        error = sp.csr_array(abs(matrix) * (8.0 * lm.UNIT))
        return error if least(matrix) >= TINY else sp.csr_array(error + pattern(matrix) * LOST)
    return None


def _apply(matrix: Matrix, error: Matrix | None, value: Expression) -> Expression:
    """Matrix times expression, with the rounding of the product bounded entrywise.

    |fl(AB) - AB| <= gamma_k |A||B| with k the largest number of products summed into one entry (Higham
    2002, section 3.5). A product is exact where nothing is added up: on the left a selection (rows of at most one
    entry, 1 or -1), on the right one that reads no signal twice (columns of at most one).

    Where a product of entries, or of an entry and an error, may underflow, ``LOST`` is added for each.
    """
    result: Expression = {}
    left_exact = error is None and _is_selection(matrix)
    count = int(np.max(np.diff(matrix.indptr), initial=1))
    smallest = least(matrix)
    for source, (factor, factor_error) in value.items():
        product = _product(matrix, factor)
        parts = []
        if factor_error is not None:
            parts.append(_product(abs(matrix), factor_error))
        right_exact = _is_selection(sp.csr_array(factor.T))
        if not left_exact and not (error is None and right_exact):
            gamma = 0.0 if right_exact else 1.01 * (count + 1) * lm.UNIT
            magnitude = sp.csr_array(abs(factor) if factor_error is None else abs(factor) + factor_error)
            if smallest >= TINY:
                total = abs(matrix) * gamma
                parts.append(_product(sp.csr_array(total if error is None else total + error), magnitude))
            else:
                # γ|A| would underflow itself.
                parts.append(sp.csr_array(_product(abs(matrix), magnitude) * gamma))
                if error is not None:
                    parts.append(_product(error, magnitude))
        multiplies = not left_exact and not (right_exact and factor_error is None)
        if multiplies and min(smallest, least(error)) * least(factor, factor_error) < TINY:
            parts.append(sp.csr_array(_product(pattern(matrix, error), pattern(factor, factor_error)) * LOST))
        joined = None
        if parts:
            joined = sp.csr_array(sum(parts[1:], parts[0]))
            joined = sp.csr_array(joined * (1.0 + 1e-9))
            joined.eliminate_zeros()
        if product.nnz or (joined is not None and joined.nnz):
            result[source] = (product, joined)
    return result


def _product(a: Matrix, b: Matrix) -> Matrix:
    dense = a.nnz > 0.2 * math.prod(a.shape) and b.nnz > 0.2 * math.prod(b.shape)
    product = sp.csr_array(a.toarray() @ b.toarray()) if dense else sp.csr_array(a @ b)
    product.eliminate_zeros()
    return product


def _is_selection(matrix: Matrix) -> bool:
    return bool((np.diff(matrix.indptr) <= 1).all()) and bool((np.abs(matrix.data) == 1.0).all())


def _scale(coefficient: float, value: Expression) -> Expression:
    if coefficient == 1.0:
        return value
    size = abs(coefficient)
    # The next double where the factor 1 + 1e-9 is lost on a coefficient that has few bits.
    wider = max(size * (1.0 + 1e-9), math.nextafter(size, math.inf)) if size else 0.0
    result: Expression = {}
    for source, (matrix, error) in value.items():
        scaled = sp.csr_array(matrix * coefficient)
        bound = None if error is None else sp.csr_array(error * wider)
        if size not in {0.0, 1.0}:
            rounding = sp.csr_array(abs(scaled) * lm.UNIT)
            bound = rounding if bound is None else sp.csr_array(bound + rounding)
            if size * least(matrix, error) < TINY:
                bound = sp.csr_array(bound + pattern(matrix, error) * LOST)
        for part in (scaled, bound):
            if part is not None:
                part.eliminate_zeros()
        if scaled.nnz or (bound is not None and bound.nnz):
            result[source] = (scaled, bound)
    return result


def _add(values: list[Expression]) -> Expression:
    total: Expression = {}
    for value in values:
        for source, (matrix, error) in value.items():
            if source not in total:
                total[source] = (matrix, error)
                continue
            old, old_error = total[source]
            joined = sp.csr_array(old + matrix)
            joined.eliminate_zeros()
            bounds = [part for part in (old_error, error) if part is not None]
            if not (_integral(old) and _integral(matrix)):
                bounds.append(sp.csr_array(abs(joined) * (1.01 * lm.UNIT)))
            bound = sp.csr_array(sum(bounds[1:], bounds[0]) * (1.0 + 1e-9)) if bounds else None
            total[source] = (joined, bound)
    return total


def _integral(matrix: Matrix) -> bool:
    """Small whole numbers (selections and their differences) add without rounding."""
    return bool((matrix.data == np.rint(matrix.data)).all()) and float(np.abs(matrix.data).max(initial=0.0)) < 2**20

"""The verified bounds' exact values in ball arithmetic: an independent reference, for small networks.

B and C of the sector form are exact rationals, worked out entry by entry from the graph (``Exact``), or on the tori
those of one dense circular inequality (``tests.circular``). M is then eliminated in balls of 200 bits, of more where
the sign of a pivot stays open. Of lipray's verifier only the figure under test is used, and which neurons it has
multipliers for.

The verifier widens slopes [a, b] by an ulp of b - a; here b - a is exact. What it allows for rounding is far above an
ulp of any entry of M, so that its bound must be above this value too.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import flint
import hypothesis
import numpy as np
import torch
from flint import arb, fmpq
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lipray.certify.closed_form import closed_form
from lipray.certify.frequency.start import closed_start
from lipray.errors import PlanError
from lipray.model.network import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Dense,
    Input,
    MaxPool,
    Network,
    Pad,
    Reshape,
    Softmax,
    Sum,
)
from lipray.verify.cuts import sub_network
from lipray.verify.elimination import prepare
from lipray.verify.prove import Proof, pose
from lipray.verify.torus.layout import torus_cuts
from lipray.verify.torus.proof import Means, set_up
from tests.circular import Circular, inequality, numbers
from tests.map_networks import map_networks
from tests.maps import Maps
from tests.networks import PIECEWISE, SMOOTH, networks
from tests.tori import lower_and_keep

BITS = (200, 400, 1600)
LARGEST = 150
"""Order of an inequality beyond which it takes seconds."""
NEARLY_ZERO = 1e-140
"""Squares of what is smaller underflow: where the exact value is zero, the bound is at most this."""


def rational(value):
    """The number that a float is."""
    return fmpq(*float(value).as_integer_ratio())


def decided(work):
    """What ``work`` finds, with as many bits as that takes; what none of them finds is ``None``."""
    for bits in BITS:
        with flint.ctx.workprec(bits):
            found = work()
        if found is not None:
            return found
    return None


# -- the sector form, entry by entry


class Exact:
    """Layers and output as rows {(signal, place): rational}, one per entry; signal 0 is the input.

    ``kept`` tells for every layer how many neurons it could have, and which of them have multipliers. The others must
    have a row of exact zeros.
    """

    def __init__(self, network, kept):
        self.network, self.kept = network, kept
        self.layers, self.squared_factor = [], fmpq(1)
        values = []
        for node in network.nodes:
            values.append(self.value(node, [values[i] for i in node.inputs]))
            assert values[-1].shape == node.shape
        self.output = list(values[-1].ravel())

    def stored(self, key):
        return numbers(self.network.weights[key], rational)

    def value(self, node, inputs):
        op = node.op
        match op:
            case Input():
                index = np.arange(node.size).reshape(node.shape)
                return made(node.shape, lambda *place: {(0, int(index[place])): fmpq(1)})
            case Conv():
                return self.convolved(op, node.shape, inputs[0])
            case Dense():
                weight = self.stored(op.weight)
                return made(
                    node.shape, lambda *place: combined(zip(weight[place[-1]], inputs[0][place[:-1]], strict=True))
                )
            case ChannelAffine():
                scale = self.stored(op.scale)
                return made(node.shape, lambda *place: combined([(scale[place[0]], inputs[0][place])]))
            case Pad():
                befores = [0, *(before for before, _ in op.padding)]
                return made(
                    node.shape, lambda *place: entry(inputs[0], [i - b for i, b in zip(place, befores, strict=True)])
                )
            case AvgPool():
                return self.averaged(op, node.shape, inputs[0])
            case AdaptiveAvgPool():
                return made(node.shape, lambda *place: mean(inputs[0][place[0]], node.shape[1:], place[1:]))
            case MaxPool():
                return self.maximum(node, inputs[0])
            case Activation():
                return self.activated(node, inputs[0])
            case Softmax():
                self.squared_factor = fmpq(node.size) if op.log else fmpq(1, 4)
                return inputs[0]
            case Sum():
                factors = [rational(c) for c in op.coefficients]
                return made(node.shape, lambda *place: combined(zip(factors, (v[place] for v in inputs), strict=True)))
            case Concat():
                return np.concatenate(inputs, axis=op.axis)
            case Reshape():
                return inputs[0].reshape(node.shape)
        raise TypeError(op)

    def convolved(self, op, shape, value):
        weight = self.stored(op.weight)
        outputs, per_group, *kernel = weight.shape

        def row(channel, *place):
            first = channel // (outputs // op.groups) * per_group
            return combined(
                (weight[(channel, c, *tap)], entry(value[first + c], read))
                for tap, read in taps(kernel, op.stride, op.padding, op.dilation, place)
                for c in range(per_group)
            )

        return made(shape, row)

    def averaged(self, op, shape, value):
        divisor = np.full(1, math.prod(op.kernel)) if op.divisor is None else self.network.weights[op.divisor]
        shares = 1 / numbers(np.broadcast_to(divisor, shape[1:]), rational)
        one = (1,) * len(op.kernel)

        def row(channel, *place):
            reads = (read for _, read in taps(op.kernel, op.stride, op.padding, one, place))
            return combined((shares[place], entry(value[channel], read)) for read in reads)

        return made(shape, row)

    def activated(self, node, value):
        """Write z = a v + (b - a) u."""
        channels = node.shape[0]
        low, high = (numbers(np.broadcast_to(end, channels), rational) for end in (node.op.lower, node.op.upper))
        if (low == high).all():
            curved = value
        else:
            curved = self.slopes(node.name, made(node.shape, lambda c, *i: value[(c, *i)] if low[c] != high[c] else {}))
        return made(node.shape, lambda c, *i: combined([(low[c], value[(c, *i)]), (high[c] - low[c], curved[(c, *i)])]))

    def maximum(self, node, value):
        """One axis after the other, q + (p - q) u; what a tap finds outside the map is ``None`` and never wins."""
        op = node.op
        for axis, count in enumerate(op.kernel):
            extent = value.shape[axis + 1]
            shape = (*value.shape[: axis + 1], node.shape[axis + 1], *value.shape[axis + 2 :])

            def found(*place, tap, axis=axis, extent=extent, value=value):
                read = place[axis + 1] * op.stride[axis] - op.padding[axis][0] + tap * op.dilation[axis]
                return value[(*place[: axis + 1], read, *place[axis + 2 :])] if 0 <= read < extent else None

            field = [made(shape, lambda *place, tap=tap: found(*place, tap=tap)) for tap in range(count)]
            turns = itertools.count()
            while len(field) > 1:
                winners = [
                    self.winner(f"{node.name}.max{axis}.{next(turns)}", p, q)
                    for p, q in zip(field[::2], field[1::2], strict=False)
                ]
                field = winners + (field[-1:] if len(field) % 2 else [])
            value = field[0]
        return value

    def winner(self, name, p, q):
        def ahead(*place):
            return {} if p[place] is None or q[place] is None else combined([(1, p[place]), (-1, q[place])])

        slopes = self.slopes(name, made(p.shape, ahead))

        def row(*place):
            if p[place] is None or q[place] is None:
                return q[place] if p[place] is None else p[place]
            return combined([(1, q[place]), (1, slopes[place])])

        return made(p.shape, row)

    def slopes(self, name, rows):
        """The outputs of a layer that reads ``rows``; nothing where these are zero."""
        flat = rows.ravel()
        size, index = self.kept.get(name, (rows.size, np.zeros(0, dtype=int)))
        assert size == rows.size
        assert not any(flat[i] for i in set(range(size)) - set(index.tolist())), f"{name} lacks a neuron that moves"
        if len(index):
            self.layers.append((name, [flat[i] for i in index]))
        moving = dict(zip(index.tolist(), range(len(index)), strict=True))
        number = len(self.layers)
        result = made(flat.shape, lambda i: {(number, moving[i]): fmpq(1)} if i in moving else {})
        return result.reshape(rows.shape)

    def inequality(self, multipliers):
        """M and C."""
        sizes = [self.network.nodes[0].size, *(len(rows) for _, rows in self.layers)]
        layers = [
            (numbers(lam, rational), matrices(rows, sizes))
            for lam, (_, rows) in zip(multipliers, self.layers, strict=True)
        ]
        return inequality(sizes[0], layers, matrices(self.output, sizes), len(self.output))


def made(shape, rule):
    """An array of rows, one for every place."""
    result = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        result[place] = rule(*place)
    return result


def combined(pairs):
    """Σ factor · row; entries that cancel are left out."""
    total = {}
    for factor, row in pairs:
        if factor:
            for key, number in row.items():
                total[key] = total.get(key, 0) + factor * number
    return {key: number for key, number in total.items() if number}


def entry(value, place):
    """A row, nothing outside the map."""
    return value[tuple(place)] if all(0 <= i < n for i, n in zip(place, value.shape, strict=True)) else {}


def taps(kernel, stride, padding, dilation, place):
    """What a window reads, tap by tap."""
    for tap in np.ndindex(*kernel):
        axes = zip(place, stride, padding, tap, dilation, strict=True)
        yield tap, [i * s - before + a * d for i, s, (before, _), a, d in axes]


def mean(value, targets, place):
    """torch's adaptive average: of n entries, place i of m averages those from ⌊i n / m⌋ to ⌈(i + 1) n / m⌉."""
    spans = [range(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(place, value.shape, targets, strict=True)]
    share = fmpq(1, math.prod(len(span) for span in spans))
    return combined((share, value[read]) for read in itertools.product(*spans))


def matrices(rows, sizes):
    """The rows as one matrix for every signal that they read."""
    value = {}
    for i, row in enumerate(rows):
        for (signal, place), number in row.items():
            if signal not in value:
                value[signal] = np.zeros((len(rows), sizes[signal]), dtype=object)
            value[signal][i, place] = number
    return value


# -- proofs in balls


def balls(matrix):
    return np.vectorize(arb, otypes=[object])(matrix) if matrix.size else np.zeros(matrix.shape, dtype=object)


def eliminated(matrix, count):
    """The Schur complement of the first ``count`` rows, ``None`` unless all of their pivots are positive."""
    left = matrix.copy()
    for i in range(count):
        pivot = left[i, i]
        if not pivot > 0:
            return None
        below = [j for j in range(i + 1, len(left)) if not left[j, i].is_zero()]
        column = left[below, i]
        left[np.ix_(below, below)] -= np.outer(column, column / pivot)
    return left[count:, count:]


def gram(M, C, inputs, shape=None):
    """Balls around C M⁻¹ Cᵀ; ``None`` unless M ≻ 0 is proven.

    ``shape`` is Q of the input, in the place of the identity; its inverse is not needed.
    """
    joint = balls(np.block([[M, C.T], [C, np.zeros((len(C), len(C)), dtype=int)]]))
    if shape is not None:
        reads = joint[inputs:, :inputs]
        joint = joint[inputs:, inputs:] - reads @ shape @ reads.T
    left = eliminated(joint, len(joint) - len(C))
    return None if left is None else -left


def positive(matrix):
    return eliminated(matrix, len(matrix)) is not None


def above(bound, shape):
    """Whether bound² I ≻ Γ is proven; where Γ is exactly zero, there is nothing to prove."""
    return is_zero(shape) or positive(arb(bound) ** 2 * np.eye(len(shape), dtype=int) - shape)


def dominates(verified, shape):
    """Whether the verified shape matrix is proven to be ≻ Γ."""
    return is_zero(shape) or positive(balls(verified) - shape)


def is_zero(shape):
    return all(ball.is_zero() for ball in shape.ravel())


def largest_below(shape):
    """A ball below λmax of Γ, and nearly there: the Rayleigh quotient of an eigenvector from floating point."""
    peak = max(ball.mid() for ball in shape.diagonal())
    if not peak > 0:
        return arb(0)
    plain = np.array([[float((ball / peak).mid()) for ball in row] for row in shape])
    vector = balls(np.linalg.eigh((plain + plain.T) / 2)[1][:, -1])
    return vector @ shape @ vector / (vector @ vector)


def largest(shape):
    """A ball that λmax of Γ is in; ``None`` where it is not proven."""
    low = largest_below(shape)
    for bits in (100, 80, 60, 40):
        high = low * (1 + arb(2) ** -bits)
        if low.is_zero() or positive(high * np.eye(len(shape), dtype=int) - shape):
            return low.union(high)
    return None


# -- a bound under test, and its exact value


class Case:
    """A network, a kind of proof, and the exact Γ of any multipliers (without the factor of a last softmax)."""

    squared_factor = fmpq(1)

    def __init__(self, network, proof):
        self.network, self.proof = network, proof
        self.posed = pose("test", network, proof)

    def figure(self, multipliers):
        """What is verified, ``None`` where the multipliers are refused, or what they prove is not finite."""
        found = self.posed.work(multipliers, Means())
        return None if found is None or not math.isfinite(found.bound) else found

    def excess(self, multipliers):
        """How far the verified bound is above the exact value, relatively and from above; ``None`` where refused.

        The bound must be above, and so must the verified shape matrix.
        """
        figure = self.figure(multipliers)
        if figure is None:
            return None

        def compared():
            shape = self.shape(multipliers)
            if shape is None or not above(figure.bound, shape * arb(self.squared_factor)):
                return None
            if figure.gram is not None and not dominates(figure.gram, shape):
                return None
            least = (largest_below(shape) * arb(self.squared_factor)).sqrt()
            if least.is_zero():
                return 0.0 if figure.bound <= NEARLY_ZERO else math.inf
            return float((figure.bound / least - 1).upper())

        found = decided(compared)
        assert found is not None, f"{figure} of the proof {self.proof.kind} is not above the exact value"
        return found


class DenseCase(Case):
    """The sector form of a whole network."""

    def __init__(self, network):
        super().__init__(network, Proof("dense"))
        form, kept = lower_and_keep(network)
        self.blocks, self.exact = prepare(form), Exact(network, kept)
        self.squared_factor = self.exact.squared_factor
        assert [(name, len(rows)) for name, rows in self.exact.layers] == list(form.neurons)

    def base(self):
        lam = closed_form(self.blocks)
        return lam if len(lam) == self.blocks.depth else None

    def shape(self, multipliers):
        return gram(*self.exact.inequality(multipliers), self.network.nodes[0].size)


class TorusCase(Case):
    """Tori as one dense circular inequality; behind them the dense rest, which reads the window of the last map."""

    def __init__(self, network, *, cut=None, window=False):
        super().__init__(network, Proof("torus", cut=cut, window=window))
        self.setup = set_up(network, cut, window=window)
        torus = self.setup.problem.torus
        self.circular = Circular(network, torus, rational)
        self.tail = None
        if self.setup.tail is not None:
            last = len(network.nodes) - 1
            kept = lower_and_keep(sub_network(network, self.setup.problem.head.node, last))[1]
            self.tail = Exact(sub_network(network, torus.cut, last), kept)
            self.squared_factor = self.tail.squared_factor
            assert tuple(name for name, _ in self.tail.layers) == self.setup.tail_names

    @property
    def order(self):
        return self.circular.order

    def base(self):
        found = closed_start(self.setup, Means())
        return None if found is None else found.multipliers

    def shape(self, multipliers):
        ahead, behind = self.setup.split(multipliers)
        by_name = dict(zip(self.setup.names, map(torch.from_numpy, ahead), strict=False))
        whole = gram(*self.circular.inequality(by_name), self.circular.input)
        if self.tail is None or whole is None:
            return whole
        index = self.circular.window()
        window = whole[np.ix_(index, index)]
        return gram(*self.tail.inequality(behind), len(index), window)


class ProductCase(Case):
    """A chain of linear maps with activations between, none of them with a slope interval above 0.

    The smaller of the verifier's two products is then this one: of the largest slopes, and of the norms of the maps
    without what reads a neuron that never moves. (With an interval above 0 the verifier's may be smaller still.)
    """

    def __init__(self, network):
        super().__init__(network, Proof("product"))
        joints = [i for i, node in enumerate(network.nodes) if isinstance(node.op, Activation)]
        ends = [network.nodes[i].op for i in joints]
        assert all(max(op.lower) <= 0.0 for op in ends)
        self.slopes = [rational(max(map(abs, (*op.lower, *op.upper)))) for op in ends]
        runs = [(a, b - 1) for a, b in itertools.pairwise((0, *joints, len(network.nodes)))]
        self.maps = [Exact(sub_network(network, a, b), {}) for a, b in runs if b > a]

    def base(self):
        return ()

    def shape(self, multipliers):
        assert not multipliers
        total = arb(1)
        for slope in self.slopes:
            total *= arb(slope) ** 2
        moving = slice(None)
        for linear in self.maps:
            _, C = linear.inequality(())
            norm = largest(balls(C[:, moving] @ C[:, moving].T))
            if norm is None:
                return None
            total *= norm
            moving = [bool(row) for row in linear.output]
        return np.array([[total]], dtype=object)


# -- random cases


@dataclass(frozen=True)
class Family:
    """Random networks, and how one and a random number make a case (``None``: it would be too large, or is none)."""

    networks: st.SearchStrategy
    case: Callable[[Network, int], Case | None]


def on_tori(network, seed):
    """As far as the tori go, or to the window of a map on the way."""
    try:
        choice = np.random.default_rng(seed)
        window = bool(choice.integers(2))
        cut = int(choice.choice(torus_cuts(network)[1:])) if window and len(torus_cuts(network)) > 1 else None
        setup = set_up(network, cut, window=window)
    except PlanError:
        return None
    last = network.nodes[setup.cut].op
    if isinstance(last, AvgPool) and last.divisor is not None and max(last.stride) > 1:
        return None  # see test_an_average_pool_may_be_the_last_map_on_its_tori
    if math.prod(setup.problem.torus.sides[0]) * network.nodes[0].shape[0] > LARGEST // 3:
        return None
    case = TorusCase(network, cut=cut, window=window)
    return case if case.order <= LARGEST else None


def chain(seed):
    """Convolutions or dense layers with an activation between each two."""
    rng = np.random.default_rng(seed)
    functions = [op for op in PIECEWISE + SMOOTH if max(op.lower) <= 0.0]
    maps = Maps(int(rng.integers(1, 3)), *rng.integers(1, 5, size=int(rng.integers(1, 3))).tolist(), seed=seed)
    for _ in range(rng.integers(4)):
        kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        maps.conv(int(rng.integers(1, 4)), kernel=kernel, stride=stride, padding=kernel // 2)
        if rng.integers(2):
            maps.affine(rng.normal(size=maps.nodes[-1].shape[0]) * 10.0 ** rng.uniform(-3, 3))
        maps.act(functions[rng.integers(len(functions))])
    maps.flatten()
    for _ in range(rng.integers(3)):
        maps.dense(int(rng.integers(1, 7)))
        maps.act(functions[rng.integers(len(functions))])
    maps.dense(int(rng.integers(1, 7)))
    return maps.network()


FAMILIES = {
    "dense": Family(networks(limit=24, layers=6), lambda network, _: DenseCase(network)),
    "torus": Family(map_networks(limit=24, layers=6, tail=False), on_tori),
    "tail": Family(networks(limit=18, layers=5), on_tori),
    "product": Family(st.integers(0, 2**32).map(chain), lambda network, _: ProductCase(network)),
}


def measured(case, seed):
    """The excess of the closed form's multipliers, and of others some factors away."""
    base = case.base()
    assert base is not None
    found = case.excess(base)
    assert found is not None, "the closed form is refused"
    yield "closed form", found
    if not any(len(lam) for lam in base):
        return
    rng = np.random.default_rng(seed)
    other = [lam * np.exp(rng.normal(size=lam.shape)) for lam in base]
    for share in (1.0, 0.5, 0.25, 0.125):
        found = case.excess(tuple((1.0 - share) * a + share * b for a, b in zip(base, other, strict=True)))
        if found is not None:
            yield "random multipliers", found
            return


def examine(family, options, check):
    """Pose random cases of a family, and ``check(kind, excess)`` each."""

    @settings(options, suppress_health_check=list(HealthCheck))
    @given(FAMILIES[family].networks, st.integers(0, 2**16))
    def run(network, seed):
        case = FAMILIES[family].case(network, seed)
        assume(case is not None)
        for kind, found in measured(case, seed):
            check(f"{family}, {kind}", found)

    return run


def excesses(count, seed):
    """Pairs (kind, excess) of ``count`` random networks of each family; every bound is above its exact value."""
    for family in FAMILIES:
        found = []
        options = settings(max_examples=count, deadline=None, database=None)
        hypothesis.seed(seed)(examine(family, options, lambda *pair, found=found: found.append(pair)))()
        yield from found

"""A network on its tori as dense matrices, made position by position: what the frequencies must reproduce.

None of lipray's symbols are used: a convolution is a matrix whose reads wrap around, a stride keeps every s-th
entry, an activation adds a signal. With one multiplier per channel the dense inequality of the whole is then assembled
and inverted at once.
"""

import itertools
import math

import numpy as np

from lipray.model.network import Activation, AvgPool, ChannelAffine, Concat, Conv, MaxPool, Pad, Sum
from tests.tori import per_position


class Circular:
    """Signals: the input on its torus, then every activation layer's outputs; ``output`` maps them to the cut's map.

    ``layers`` lists each layer's name, size, width of its last axis, and the matrices by which it reads signals.
    ``number`` is what stored numbers are turned into: with an exact type every entry of every matrix is exact.
    """

    def __init__(self, network, torus, number=float):
        self.network, self.torus, self.number = network, torus, number
        self.layers, self.masks, self.values = [], {}, []
        self.input = network.nodes[0].shape[0] * math.prod(torus.sides[0])
        for index, node in enumerate(network.nodes[: torus.cut + 1]):
            sides = torus.sides[torus.level[index]]
            self.values.append(self.value(index, node, sides) if index else {0: np.eye(self.input, dtype=int)})
        self.output = self.values[-1]
        self.sides = torus.coarse

    def stored(self, values):
        return numbers(values, self.number)

    def value(self, index, node, sides):
        op, source = node.op, node.inputs[0]
        channels, fine = self.network.nodes[source].shape[0], self.torus.sides[self.torus.level[source]]
        values = [self.read(index, i) for i in node.inputs]
        match op:
            case Conv():
                weight = self.stored(self.network.weights[op.weight])
                return apply(wrapped(weight, op.groups, fine, sides, op.stride, op.padding, op.dilation), values[0])
            case AvgPool():
                ones = np.ones((channels, 1, *op.kernel), dtype=int)
                matrix = wrapped(ones, channels, fine, sides, op.stride, op.padding, (1,) * len(sides))
                return self.divided(node, apply(matrix, values[0]), sides)
            case MaxPool():
                return self.maximum(node, op, channels, fine, sides, values[0])
            case ChannelAffine():
                scale = self.stored(self.network.weights[op.scale])
                return apply(np.diag(np.repeat(scale, math.prod(sides))), values[0])
            case Pad():
                moves = [np.arange(n) - before for n, (before, _) in zip(sides, op.padding, strict=True)]
                return apply(gathered(channels, fine, moves), values[0])
            case Activation():
                low, high = np.array(op.lower), np.array(op.upper)
                if index in self.torus.widened:
                    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
                return self.between(node.name, self.stored(low), self.stored(high), channels, sides, values[0])
            case Sum():
                return add([scaled(self.number(c), v) for c, v in zip(op.coefficients, values, strict=True)])
            case Concat():
                return stacked(values)
        raise TypeError(op)

    def read(self, reader, index):
        if reader not in self.torus.masked:
            return self.values[index]
        if index not in self.masks:
            node = self.network.nodes[index]
            sides = self.torus.sides[self.torus.level[index]]
            self.masks[index] = self.layer(f"{node.name}.mask", self.values[index], sides[-1])
        return self.masks[index]

    def layer(self, name, value, columns):
        if not value:
            return {}
        size = len(next(iter(value.values())))
        self.layers.append((name, size, columns, value))
        return {len(self.layers): np.eye(size, dtype=int)}

    def between(self, name, low, high, channels, sides, value):
        """Write z = a v + (b - a) u; a channel's interval holds at each of its positions."""
        low, high = (np.repeat(np.broadcast_to(end, channels), math.prod(sides)) for end in (low, high))
        if (low == high).all():
            return apply(np.diag(low), value)
        curved = self.layer(name, value, sides[-1])
        return add([apply(np.diag(high - low), curved), apply(np.diag(low), value)])

    def divided(self, node, value, sides):
        if node.op.divisor is None:
            return scaled(1 / self.number(math.prod(node.op.kernel)), value)
        shares = 1 / self.stored(self.network.weights[node.op.divisor])
        return self.between(f"{node.name}.divisor", shares.min(), shares.max(), node.shape[0], sides, value)

    def maximum(self, node, op, channels, fine, sides, value):
        current = list(fine)
        for axis, taps in enumerate(op.kernel):
            field = []
            for tap in range(taps):
                moves = [np.arange(n) for n in current]
                start = tap * op.dilation[axis] - op.padding[axis][0]
                moves[axis] = np.arange(sides[axis]) * op.stride[axis] + start
                field.append(apply(gathered(channels, current, moves), value))
            current[axis] = sides[axis]
            turn = 0
            while len(field) > 1:
                winners = []
                for p, q in zip(field[::2], field[1::2], strict=False):
                    ahead = add([p, scaled(-1, q)])
                    winners.append(add([q, self.layer(f"{node.name}.max{axis}.{turn}", ahead, current[-1])]))
                    turn += 1
                field = winners + (field[-1:] if len(field) % 2 else [])
            value = field[0]
        return value

    @property
    def order(self):
        return self.input + sum(size for _, size, _, _ in self.layers)

    def inequality(self, by_name):
        """M of the whole and C, for multipliers by layer name."""
        layers = []
        for name, size, columns, value in self.layers:
            lam = per_position(self.network, name, size, by_name, columns)
            layers.append((self.stored(lam), value))
        size = self.network.nodes[self.torus.cut].shape[0] * math.prod(self.sides)
        return inequality(self.input, layers, self.output, size)

    def gram(self, by_name):
        """C M⁻¹ Cᵀ on the whole coarse torus."""
        M, C = self.inequality(by_name)
        return C @ np.linalg.solve(M, C.T)

    def window(self):
        """Where the window's entries are among those of the output's torus."""
        channels, *extents = self.network.nodes[self.torus.cut].shape
        index = np.arange(channels * math.prod(self.sides)).reshape(channels, *self.sides)
        return index[(slice(None), *(slice(0, n) for n in extents))].ravel()


def numbers(values, number=float):
    """An array of floats; of objects where ``number`` makes others of them."""
    values = np.asarray(values, dtype=float)
    return values if number is float else np.vectorize(number, otypes=[object])(values)


def inequality(inputs, layers, output, outputs):
    """M and C of layers (multipliers, the matrices by which it reads signals), in the numbers that these have."""
    starts = np.cumsum([0, inputs, *(len(lam) for lam, _ in layers)])
    kind = np.result_type(float, *(lam for lam, _ in layers), *output.values())
    M, C = np.zeros((starts[-1], starts[-1]), dtype=kind), np.zeros((outputs, starts[-1]), dtype=kind)
    M[:inputs, :inputs] = np.eye(inputs, dtype=int)
    for number, (lam, value) in enumerate(layers, start=1):
        own = slice(starts[number], starts[number + 1])
        M[own, own] += np.diag(2 * lam)
        for signal, matrix in value.items():
            other = slice(starts[signal], starts[signal + 1])
            M[own, other] -= lam[:, None] * matrix
            M[other, own] -= (lam[:, None] * matrix).T
    for signal, matrix in output.items():
        C[:, starts[signal] : starts[signal + 1]] += matrix
    return M, C


def wrapped(weight, groups, fine, coarse, stride, padding, dilation):
    """Matrix of a convolution that reads around the torus and keeps every s-th entry."""
    outputs, per_group = weight.shape[:2]
    matrix = np.zeros((outputs, *coarse, per_group * groups, *fine), dtype=weight.dtype)
    for o, c in itertools.product(range(outputs), range(per_group)):
        channel = o // (outputs // groups) * per_group + c
        for position in itertools.product(*(range(n) for n in coarse)):
            for tap in itertools.product(*(range(n) for n in weight.shape[2:])):
                read = [
                    (i * s - pad[0] + a * d) % n
                    for i, s, pad, a, d, n in zip(position, stride, padding, tap, dilation, fine, strict=True)
                ]
                matrix[(o, *position, channel, *read)] += weight[(o, c, *tap)]
    return matrix.reshape(outputs * math.prod(coarse), -1)


def gathered(channels, fine, moves):
    """Matrix that reads position ``moves[axis][i]`` (around the torus) at i."""
    index = np.arange(channels * math.prod(fine)).reshape(channels, *fine)
    reads = [move % n for move, n in zip(moves, fine, strict=True)]
    flat = index[np.ix_(range(channels), *reads)].ravel()
    matrix = np.zeros((flat.size, index.size), dtype=int)
    matrix[np.arange(flat.size), flat] = 1
    return matrix


def apply(matrix, value):
    return {signal: matrix @ part for signal, part in value.items()}


def scaled(factor, value):
    return {signal: factor * part for signal, part in value.items()}


def add(values):
    total = {}
    for value in values:
        for signal, part in value.items():
            total[signal] = total[signal] + part if signal in total else part
    return total


def stacked(values):
    heights = [next((len(part) for part in value.values()), 0) for value in values]
    assert all(heights)
    widths = {signal: part.shape[1] for value in values for signal, part in value.items()}
    return {
        signal: np.concatenate(
            [
                value.get(signal, np.zeros((height, width), dtype=int))
                for value, height in zip(values, heights, strict=True)
            ]
        )
        for signal, width in widths.items()
    }

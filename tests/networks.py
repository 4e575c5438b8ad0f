"""Random small networks over every layer kind, drawn by hypothesis."""

import math

import numpy as np
from hypothesis import strategies as st

from lipray.model import activations as act
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
    Node,
    Pad,
    Reshape,
    Softmax,
    Sum,
)

RELU = Activation("relu", (0.0,), (1.0,))
PIECEWISE = (
    RELU,
    act.leaky_relu(0.1),
    act.leaky_relu(-0.2),
    act.leaky_relu(1.5),
    act.leaky_relu(1.0),
    act.absolute(),
)
"""Positively homogeneous functions: where biases are zero, so is the whole network."""

SMOOTH = (
    act.elu(0.7),
    act.selu(),
    act.celu(2.0),
    act.silu(),
    act.gelu(),
    act.gelu("tanh"),
    act.tanh(),
    act.sigmoid(),
    act.softplus(3.0),
    act.hardtanh(-0.5, 2.0),
    act.hardswish(),
    act.hardsigmoid(),
    act.mish(),
    act.log_sigmoid(),
)


class Builder:
    """Builds a network layer by layer; a layer that does not fit its input is left out.

    With ``integers`` every weight is a small whole number, so that float64 evaluation is exact; otherwise
    weights are normal, of the size that keeps a signal's. ``limit`` bounds the entries of every signal.
    """

    def __init__(self, draw, rank, shape, *, integers=True, limit=10**9):
        self.draw = draw
        self.rank = rank
        self.integers = integers
        self.limit = limit
        self.nodes = [Node("x", Input(), (), shape)]
        self.weights = {}
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def array(self, values):
        key = f"w{len(self.weights)}"
        self.weights[key] = np.asarray(values, dtype=np.float32)
        return key

    def numbers(self, reach, shape, fan=1):
        if self.integers:
            return self.array(self.rng.integers(-reach, reach + 1, size=shape))
        return self.array(self.rng.normal(size=shape) * 1.4 / math.sqrt(fan))

    def add(self, op, inputs, channels, sizes):
        self.nodes.append(Node(f"n{len(self.nodes)}", op, inputs, (channels, *sizes)))
        return len(self.nodes) - 1

    def ints(self, low, high):
        return tuple(self.draw(st.integers(low, high)) for _ in range(self.rank))

    def conv(self, source, *, same=False, channels=None):
        channels_in, *sizes = self.nodes[source].shape
        kernel, dilation = self.ints(1, 3), self.ints(1, 2)
        stride = (1,) * self.rank if same else self.ints(1, 3)
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if same:
            befores = [self.draw(st.integers(0, span)) for span in spans]
            padding = tuple((before, span - before) for before, span in zip(befores, spans, strict=True))
        else:
            padding = tuple((self.draw(st.integers(-1, 4)), self.draw(st.integers(-1, 4))) for _ in range(self.rank))
        out = [
            (n + a + b - span - 1) // s + 1 for n, (a, b), span, s in zip(sizes, padding, spans, stride, strict=True)
        ]
        if any(n + a + b <= span for n, (a, b), span in zip(sizes, padding, spans, strict=True)):
            return source
        depthwise = channels is None and self.draw(st.booleans())
        groups = channels_in if depthwise else 1
        channels = channels or (channels_in if depthwise else self.draw(st.integers(1, 2)))
        if channels * math.prod(out) > self.limit:
            return source
        per_group = channels_in // groups
        weight = self.numbers(2, (channels, per_group, *kernel), fan=per_group * math.prod(kernel))
        bias = self.numbers(3, channels) if self.draw(st.booleans()) else None
        return self.add(Conv(weight, bias, stride, padding, dilation, groups), (source,), channels, out)

    def pool(self, source, *, maximum):
        channels, *sizes = self.nodes[source].shape
        kernel = self.ints(1, 3) if maximum else tuple(self.draw(st.sampled_from((1, 2, 4))) for _ in range(self.rank))
        stride = self.ints(1, 3)
        padding, out = [], []
        for n, k, s in zip(sizes, kernel, stride, strict=True):
            before = self.draw(st.integers(0, k // 2))
            after = self.draw(st.integers(0, k // 2))
            if n + before + after < k:
                return source
            count = (n + before + after - k) // s + 1
            # As in ceil mode: one more window, whose tail lies beyond the map, if it starts inside.
            if self.draw(st.booleans()) and count * s < n + before and (after_more := count * s + k - n - before) >= 0:
                count, after = count + 1, max(after, after_more)
            padding.append((before, after))
            out.append(count)
        if maximum:
            op = MaxPool(kernel, stride, tuple(padding), (1,) * self.rank)
        else:
            divisor = self.array(2 ** self.rng.integers(0, 3, size=out)) if self.draw(st.booleans()) else None
            op = AvgPool(kernel, stride, tuple(padding), divisor)
        return self.add(op, (source,), channels, out)

    def pad(self, source):
        channels, *sizes = self.nodes[source].shape
        padding = tuple((self.draw(st.integers(-2, 3)), self.draw(st.integers(-2, 3))) for _ in sizes)
        out = [n + a + b for n, (a, b) in zip(sizes, padding, strict=True)]
        crops_all = any(max(-a, 0) + max(-b, 0) >= n for n, (a, b) in zip(sizes, padding, strict=True))
        too_large = channels * math.prod(out) > self.limit
        return source if crops_all or too_large else self.add(Pad(padding), (source,), channels, out)

    def affine(self, source):
        channels, *sizes = self.nodes[source].shape
        scale, shift = (self.numbers(2, channels) for _ in range(2))
        return self.add(ChannelAffine(scale, shift), (source,), channels, sizes)

    def activation(self, source, op):
        channels, *sizes = self.nodes[source].shape
        return self.add(op, (source,), channels, sizes)

    def relu(self, source):
        return self.activation(source, RELU)

    def join(self, source, op=RELU):
        channels, *sizes = self.nodes[source].shape
        skip = self.conv(source, same=True, channels=channels) if self.draw(st.booleans()) else source
        branch = self.conv(self.activation(self.conv(source, same=True), op), same=True, channels=channels)
        return self.add(Sum((1.0, -2.0)), (skip, branch), channels, sizes)

    def concat(self, source):
        channels, *sizes = self.nodes[source].shape
        branch = self.conv(source, same=True)
        total = self.nodes[branch].shape[0] + channels
        if total * math.prod(sizes) > self.limit:
            return source
        return self.add(Concat(0), (branch, source), total, sizes)

    def adaptive(self, source):
        channels, *sizes = self.nodes[source].shape
        out = [self.draw(st.integers(1, n)) for n in sizes]
        return self.add(AdaptiveAvgPool(), (source,), channels, out)

    def dense(self, source, features):
        size = self.nodes[source].size
        if len(self.nodes[source].shape) > 1:
            source = self.add(Reshape(), (source,), size, ())
        bias = self.numbers(3, features) if self.draw(st.booleans()) else None
        return self.add(Dense(self.numbers(2, (features, size), fan=size), bias), (source,), features, ())

    def network(self):
        return Network(tuple(self.nodes), self.weights)


@st.composite
def blocks(draw):
    """A block of layers of maps with whole-number weights, ReLU the only activation."""
    rank = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 2)), *(draw(st.integers(1, 9)) for _ in range(rank)))
    builder = Builder(draw, rank, shape)
    last = 0
    kinds = st.sampled_from(("conv", "conv", "relu", "max", "average", "pad", "affine", "join", "concat"))
    for kind in draw(st.lists(kinds, min_size=1, max_size=5)):
        last = {
            "conv": builder.conv,
            "relu": builder.relu,
            "max": lambda source: builder.pool(source, maximum=True),
            "average": lambda source: builder.pool(source, maximum=False),
            "pad": builder.pad,
            "affine": builder.affine,
            "join": builder.join,
            "concat": builder.concat,
        }[kind](last)
    builder.relu(last)
    return builder.network()


@st.composite
def networks(draw, *, activations=PIECEWISE + SMOOTH, integers=False, limit=24, layers=4, softmax=True, tail=True):
    """A network of maps and, with ``tail``, mostly a dense end; every signal at most ``limit`` entries or so.

    Real weights keep signals of the same size from layer to layer, so that no bound is trivially loose.
    """
    rank = draw(st.integers(1, 2))
    side = 9 if rank == 1 else 3
    shape = (draw(st.integers(1, 2)), *(draw(st.integers(2, side)) for _ in range(rank)))
    builder = Builder(draw, rank, shape, integers=integers, limit=limit)
    functions = st.sampled_from(activations)

    def prelu(source):
        slopes = builder.rng.choice([-0.5, 0.0, 0.25, 1.0, 2.0], size=builder.nodes[source].shape[0])
        return builder.activation(source, act.prelu(tuple(float(slope) for slope in slopes)))

    last = 0
    kinds = ("conv", "act", "conv+act", "conv+act", "max", "average", "pad", "affine", "join", "concat", "prelu")
    steps = {
        "conv": builder.conv,
        "act": lambda source: builder.activation(source, draw(functions)),
        "conv+act": lambda source: builder.activation(builder.conv(source), draw(functions)),
        "max": lambda source: builder.pool(source, maximum=True),
        "average": lambda source: builder.pool(source, maximum=False),
        "pad": builder.pad,
        "affine": builder.affine,
        "join": lambda source: builder.join(source, draw(functions)),
        "concat": builder.concat,
        "prelu": prelu,
        "adaptive": builder.adaptive,
    }
    for kind in draw(st.lists(st.sampled_from((*kinds, "adaptive")), min_size=1, max_size=layers)):
        last = steps[kind](last)
    if tail and draw(st.integers(0, 4)):
        if draw(st.booleans()):
            last = builder.activation(builder.dense(last, draw(st.integers(2, 8))), draw(functions))
        last = builder.dense(last, draw(st.integers(1, 4)))
        if softmax and draw(st.integers(0, 5)) == 0:
            shape = builder.nodes[last].shape
            builder.nodes.append(Node("softmax", Softmax(draw(st.booleans())), (last,), shape))
    return builder.network()

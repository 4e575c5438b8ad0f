"""Random networks of maps on several levels, drawn by hypothesis: strided blocks joined and concatenated."""

import math

from hypothesis import strategies as st

from lipray.model import activations as act
from lipray.model.network import AvgPool, Concat, Conv, MaxPool, Sum
from tests.networks import PIECEWISE, SMOOTH, Builder


class MapBuilder(Builder):
    """Adds to the builder what maps of several strides have: strided shortcuts of every kind, dilated max-pools."""

    def centred(self, source, channels, taps, stride):
        """A convolution padded so that its result has ⌈n / stride⌉ entries."""
        channels_in, *sizes = self.nodes[source].shape
        out = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
        weight = self.numbers(2, (channels, channels_in, *taps), fan=channels_in * math.prod(taps))
        padding = tuple((tap // 2, tap // 2) for tap in taps)
        return self.add(Conv(weight, None, stride, padding, (1,) * self.rank), (source,), channels, out)

    def join(self, source, op):
        # Layers too large are left out, which inside a join would leave shapes that do not match.
        fits = self.nodes[source].size <= self.limit
        return super().join(source, op) if fits else source

    def odd(self, largest):
        return tuple(self.draw(st.sampled_from(range(1, largest + 1, 2))) for _ in range(self.rank))

    def shortcut(self, source, channels, stride):
        channels_in, *sizes = self.nodes[source].shape
        out = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
        kind = self.draw(st.sampled_from(("plain", "wide", "max", "average", "divided")))
        if kind in ("plain", "wide"):
            return self.centred(source, channels, (1 if kind == "plain" else 3,) * self.rank, stride)
        if kind == "max":
            kernel = self.odd(3)
            op = MaxPool(kernel, stride, tuple((k // 2, k // 2) for k in kernel), (1,) * self.rank)
        else:
            beyond = tuple((0, o * s - n) for o, s, n in zip(out, stride, sizes, strict=True))
            divisor = self.array(2.0 ** self.rng.integers(0, 3, size=out)) if kind == "divided" else None
            op = AvgPool(stride, stride, beyond, divisor)
        return self.add(op, (source,), channels_in, out)

    def strided_join(self, source, op):
        channels_in, *sizes = self.nodes[source].shape
        stride, channels = self.ints(1, 3), self.draw(st.integers(1, 2))
        if (channels + channels_in) * math.prod(sizes) > self.limit:
            return source
        body = self.centred(source, channels, self.odd(5), stride)
        if self.draw(st.booleans()):
            body = self.conv(self.activation(body, op), same=True, channels=channels)
        skip = self.shortcut(source, channels, stride)
        sizes = self.nodes[body].shape[1:]
        other = self.nodes[skip].shape[0]
        if other != channels or self.draw(st.booleans()):
            return self.add(Concat(0), (body, skip), channels + other, sizes)
        return self.add(Sum((1.0, -0.5)), (body, skip), channels, sizes)

    def dilated_max(self, source):
        channels, *sizes = self.nodes[source].shape
        kernel, dilation, stride = self.ints(1, 3), self.ints(1, 3), self.ints(1, 2)
        padding = tuple(tuple(self.draw(st.integers(0, k // 2)) for _ in range(2)) for k in kernel)
        out = []
        for n, k, d, s, (a, b) in zip(sizes, kernel, dilation, stride, padding, strict=True):
            count = (n + a + b - d * (k - 1) - 1) // s + 1
            starts = range(-a, -a + count * s, s)
            if count < 1 or not all(any(0 <= start + d * tap < n for tap in range(k)) for start in starts):
                return source
            out.append(count)
        return self.add(MaxPool(kernel, stride, padding, dilation), (source,), channels, out)


@st.composite
def map_networks(draw, *, limit=40, layers=6, side=7, activations=PIECEWISE + SMOOTH, tail=True):
    """Layers of maps in any order, with ``tail`` sometimes a dense layer at the end."""
    rank = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 2)), *(draw(st.integers(2, side if rank == 1 else 4)) for _ in range(rank)))
    builder = MapBuilder(draw, rank, shape, integers=False, limit=limit)
    functions = st.sampled_from(activations)

    def prelu(source):
        slopes = builder.rng.choice([-0.5, 0.0, 0.25, 1.0, 2.0], size=builder.nodes[source].shape[0])
        return builder.activation(source, act.prelu(tuple(float(slope) for slope in slopes)))

    steps = {
        "conv": builder.conv,
        "act": lambda source: builder.activation(source, draw(functions)),
        "conv+act": lambda source: builder.activation(builder.conv(source), draw(functions)),
        "max": lambda source: builder.pool(source, maximum=True),
        "dilated": builder.dilated_max,
        "average": lambda source: builder.pool(source, maximum=False),
        "pad": builder.pad,
        "affine": builder.affine,
        "join": lambda source: builder.join(source, draw(functions)),
        "strided": lambda source: builder.strided_join(source, draw(functions)),
        "concat": builder.concat,
        "prelu": prelu,
    }
    last = 0
    kinds = (*steps, "strided", "strided", "conv+act")
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=layers)):
        last = steps[kind](last)
    if tail and draw(st.integers(0, 3)) == 0:
        builder.dense(last, draw(st.integers(1, 4)))
    return builder.network()

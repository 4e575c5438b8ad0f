"""Hand-made networks of maps, a line per layer; weights are given, or normal of the size that keeps a signal's."""

import math

import numpy as np

from lipray.model.network import (
    Activation,
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
    Sum,
)

RELU = Activation("relu", (0.0,), (1.0,))


class Maps:
    """Nodes named after their operation and number; every method returns the new node's index.

    A layer reads the last node unless told otherwise; an int stands for the same number on every axis, and a
    padding's for both ends.
    """

    def __init__(self, channels, *sizes, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes = [Node("x", Input(), (), (channels, *sizes))]
        self.weights = {}

    @property
    def last(self):
        return len(self.nodes) - 1

    @property
    def rank(self):
        return len(self.nodes[0].shape) - 1

    def network(self):
        return Network(tuple(self.nodes), self.weights)

    def add(self, op, inputs, shape):
        self.nodes.append(Node(f"{type(op).__name__.lower()}{len(self.nodes)}", op, inputs, tuple(shape)))
        return self.last

    def array(self, values):
        key = f"w{len(self.weights)}"
        self.weights[key] = np.asarray(values, dtype=np.float64)
        return key

    def per_axis(self, value):
        return (value,) * self.rank if isinstance(value, int) else tuple(value)

    def padding(self, value):
        return tuple((p, p) if isinstance(p, int) else tuple(p) for p in self.per_axis(value))

    def extents(self, source, spans, padding, stride):
        sizes = self.nodes[source].shape[1:]
        return [(n + a + b - k) // s + 1 for n, k, (a, b), s in zip(sizes, spans, padding, stride, strict=True)]

    def conv(self, weight, source=None, *, kernel=3, stride=1, padding=0, dilation=1, groups=1):
        """``weight`` is the array, or a number of channels of random ones."""
        source = self.last if source is None else source
        if isinstance(weight, int):
            fan = self.nodes[source].shape[0] // groups
            size = (weight, fan, *self.per_axis(kernel))
            weight = self.rng.normal(size=size) / math.sqrt(math.prod(size[1:]))
        weight = np.asarray(weight, dtype=np.float64)
        stride, dilation, padding = self.per_axis(stride), self.per_axis(dilation), self.padding(padding)
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        shape = (len(weight), *self.extents(source, spans, padding, stride))
        return self.add(Conv(self.array(weight), None, stride, padding, dilation, groups), (source,), shape)

    def maximum(self, source=None, *, kernel=2, stride=2, padding=0, dilation=1, extra=0):
        """``extra`` windows per axis that begin inside and end beyond (ceil mode)."""
        return self._pool(source, kernel, stride, padding, extra, dilation=dilation)

    def average(self, source=None, *, kernel=2, stride=2, padding=0, extra=0, divisor=None):
        return self._pool(source, kernel, stride, padding, extra, divisor=divisor)

    def _pool(self, source, kernel, stride, padding, extra, *, dilation=None, divisor=None):
        source = self.last if source is None else source
        kernel, stride, padding = self.per_axis(kernel), self.per_axis(stride), self.padding(padding)
        dilations = self.per_axis(dilation or 1)
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        padding = tuple((a, b + extra * s) for (a, b), s in zip(padding, stride, strict=True))
        extents = self.extents(source, spans, padding, stride)
        if dilation is not None:
            op = MaxPool(kernel, stride, padding, dilations)
        else:
            key = None if divisor is None else self.array(np.broadcast_to(divisor, extents))
            op = AvgPool(kernel, stride, padding, key)
        return self.add(op, (source,), (self.nodes[source].shape[0], *extents))

    def pad(self, padding, source=None):
        source, padding = self.last if source is None else source, self.padding(padding)
        sizes = [n + a + b for n, (a, b) in zip(self.nodes[source].shape[1:], padding, strict=True)]
        return self.add(Pad(padding), (source,), (self.nodes[source].shape[0], *sizes))

    def affine(self, scale, source=None):
        source = self.last if source is None else source
        scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), self.nodes[source].shape[0])
        op = ChannelAffine(self.array(scale), self.array(0.0 * scale))
        return self.add(op, (source,), self.nodes[source].shape)

    def act(self, op=RELU, source=None):
        source = self.last if source is None else source
        return self.add(op, (source,), self.nodes[source].shape)

    def sum(self, *sources, coefficients=None):
        coefficients = coefficients or (1.0,) * len(sources)
        return self.add(Sum(coefficients), sources, self.nodes[sources[0]].shape)

    def concat(self, *sources):
        channels = sum(self.nodes[i].shape[0] for i in sources)
        return self.add(Concat(0), sources, (channels, *self.nodes[sources[0]].shape[1:]))

    def flatten(self, source=None):
        source = self.last if source is None else source
        return self.add(Reshape(), (source,), (self.nodes[source].size,))

    def dense(self, weight, source=None):
        """``weight`` is the array, or a number of rows of random ones."""
        source = self.last if source is None else source
        size = self.nodes[source].size
        if isinstance(weight, int):
            weight = self.rng.normal(size=(weight, size)) / math.sqrt(size)
        return self.add(Dense(self.array(weight), None), (source,), (len(weight),))


def resnet18(side, *, cifar):
    """The geometry of a ResNet-18 with one channel everywhere, up to its last activation."""
    maps = Maps(1, side, side)
    maps.conv(1, kernel=3 if cifar else 7, stride=1 if cifar else 2, padding=1 if cifar else 3)
    maps.act()
    if not cifar:
        maps.maximum(kernel=3, stride=2, padding=1)
    for stage in range(4):
        for block in range(2):
            source, stride = maps.last, 2 if stage and not block else 1
            maps.conv(1, stride=stride, padding=1)
            maps.act()
            branch = maps.conv(1, padding=1)
            skip = source if stride == 1 else maps.conv(1, source, kernel=1, stride=stride)
            maps.sum(branch, skip)
            maps.act()
    return maps

"""Random networks over every layer kind for ``soundness.py``: one network per number, the same every time.

Shapes and operations are drawn first, then weights of one of ``WEIGHTS``, then, in a share of the networks, a few
dozen Adam steps: ``fit`` to random targets, or ``stretch`` for a pair of points whose images lie far apart for the
size of the weights, which aligns the layers so that bounds become nearly attained.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lipray.model import activations as act
from lipray.model import network as net
from lipray.model.evaluate import evaluate, prepare

WEIGHTS = ("normal", "uniform", "positive", "sparse", "integer", "scaled")
STORED = ("float32", "float32", "float64", "float16")
TRAINED = ("", "", "", "fit", "stretch")
FAMILIES = ("vector", "maps", "maps", "residual")
LARGE = 0.06
"""Share of networks of up to ``LARGE_SIGNAL`` entries per signal, and of up to ``LARGE_DEPTH`` layers."""
SIGNAL, LARGE_SIGNAL = 60, 240
DEPTH, LARGE_DEPTH = 6, 10
STEPS, RATE = 24, 0.06

SIMPLE = (
    *(act.selu, act.silu, act.gelu, act.tanh, act.sigmoid, act.log_sigmoid),
    *(act.hardswish, act.hardsigmoid, act.mish, act.absolute),
)
FUNCTIONS = (
    *((make(),) for make in SIMPLE),
    (act.gelu("tanh"),),
    tuple(act.leaky_relu(slope) for slope in (0.1, -0.2, 1.5, 1.0, 0.3)),
    tuple(act.elu(*numbers) for numbers in ((0.7,), (1.0,), (-0.5,), (2.0,), (0.8, 1.0, 1.7), (0.8, -1.3, 1.7))),
    tuple(act.celu(alpha) for alpha in (0.5, 2.0)),
    tuple(act.softplus(beta) for beta in (1.0, 3.0, -1.0)),
    tuple(act.hardtanh(*ends) for ends in ((-0.5, 2.0), (0.0, 6.0), (-math.inf, 1.0))),
)
"""Activations but ReLU and PReLU: one of these is drawn, then one of its members."""


class Builder:
    """Builds a network layer by layer; every layer takes a node's number, and gives it back where it does not fit."""

    def __init__(self, draw: np.random.Generator, shape: net.Shape, kind: str, stored: str, limit: int) -> None:
        self.draw, self.kind, self.stored, self.limit = draw, kind, stored, limit
        self.nodes = [net.Node("x", net.Input(), (), shape)]
        self.weights: dict[str, np.ndarray] = {}

    def chance(self, share: float) -> bool:
        """True in a share of the cases."""
        return bool(self.draw.random() < share)

    def pick(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.draw.integers(low, high + 1))

    def picks(self, count: int, low: int, high: int) -> tuple[int, ...]:
        """Several of them."""
        return tuple(self.pick(low, high) for _ in range(count))

    def shape(self, x: int) -> net.Shape:
        """Shape of a node's signal."""
        return self.nodes[x].shape

    def store(self, values: np.ndarray) -> str:
        """Keep an array in the type that weights are stored in."""
        key = f"w{len(self.weights)}"
        self.weights[key] = stored(values, self.stored)
        return key

    def numbers(self, shape: net.Shape, fan: int) -> str:
        """Weights that mostly keep the size of a signal of which each of them reads ``fan`` entries."""
        values, size = self.draw.normal(size=shape), 1.4 / math.sqrt(fan)
        match self.kind:
            case "uniform":
                values = self.draw.uniform(-1.7, 1.7, size=shape)
            case "positive":
                values = abs(values)
            case "sparse":
                values *= self.draw.random(shape) < 0.4
            case "integer":
                values, size = self.draw.integers(-2, 3, size=shape), 1.0
            case "scaled":
                rows = 10.0 ** self.draw.uniform(-3.0, 3.0, size=shape[0])
                values *= rows.reshape(-1, *[1] * (len(shape) - 1))
        return self.store(values * size)

    def bias(self, size: int) -> str | None:
        """A bias, or none."""
        return self.store(self.draw.normal(size=size)) if self.chance(0.5) else None

    def add(self, op: net.Op, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Add a node."""
        self.nodes.append(net.Node(f"n{len(self.nodes)}", op, inputs, tuple(int(n) for n in shape)))
        return len(self.nodes) - 1

    def activation(self, x: int) -> int:
        """ReLU in half of the cases, else any other function; PReLU where there are channels for it."""
        if self.chance(0.5):
            op = act.relu()
        elif self.chance(0.15):
            slopes = self.draw.choice((-0.5, 0.0, 0.25, 1.0, 2.0), size=self.shape(x)[0])
            op = act.prelu(tuple(float(slope) for slope in slopes))
        else:
            members = FUNCTIONS[self.pick(0, len(FUNCTIONS) - 1)]
            op = members[self.pick(0, len(members) - 1)]
        return self.add(op, (x,), self.shape(x))

    def affine(self, x: int) -> int:
        """A batch norm in eval mode."""
        channels = self.shape(x)[0]
        return self.add(
            net.ChannelAffine(self.numbers((channels,), 2), self.numbers((channels,), 2)), (x,), self.shape(x)
        )

    def dense(self, x: int, features: int | None = None) -> int:
        """A dense layer over the last axis."""
        *rows, size = self.shape(x)
        features = features or self.pick(1, 10)
        if math.prod(rows) * features > self.limit:
            return x
        return self.add(net.Dense(self.numbers((features, size), size), self.bias(features)), (x,), (*rows, features))

    def reshape(self, x: int) -> int:
        """The same entries as another map: channels into positions, or back."""
        size = math.prod(self.shape(x))
        channels = int(self.draw.choice([n for n in range(1, size + 1) if size % n == 0]))
        return self.add(net.Reshape(), (x,), (channels, size // channels))

    def conv(self, x: int) -> int:
        """Any convolution."""
        channels_in, *sizes = self.shape(x)
        rank = len(sizes)
        kernel, dilation, stride = self.picks(rank, 1, 3), self.picks(rank, 1, 2), self.picks(rank, 1, 3)
        padding = tuple((self.pick(-1, 3), self.pick(-1, 3)) for _ in range(rank))
        groups = int(self.draw.choice([n for n in range(1, channels_in + 1) if channels_in % n == 0]))
        channels = groups * self.pick(1, max(1, 4 // groups))
        return self._conv(x, channels, kernel, net.Conv("", None, stride, padding, dilation, groups))

    def same(self, x: int, channels: int, stride: tuple[int, ...] | None = None, largest: int = 3) -> int:
        """A convolution to ⌈n / stride⌉ entries per axis, the padding not always symmetric."""
        rank = len(self.shape(x)) - 1
        kernel, dilation = self.picks(rank, 1, largest), self.picks(rank, 1, 2)
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        before = [self.pick(0, span) for span in spans]
        padding = tuple((b, span - b) for b, span in zip(before, spans, strict=True))
        return self._conv(x, channels, kernel, net.Conv("", None, stride or (1,) * rank, padding, dilation))

    def _conv(self, x: int, channels: int, kernel: tuple[int, ...], op: net.Conv) -> int:
        channels_in, *sizes = self.shape(x)
        sides = zip(sizes, op.padding, op.dilation, kernel, strict=True)
        rests = [n + a + b - d * (k - 1) - 1 for n, (a, b), d, k in sides]
        out = [rest // s + 1 for rest, s in zip(rests, op.stride, strict=True)]
        cropped = any(max(-a, 0) + max(-b, 0) >= n for n, (a, b) in zip(sizes, op.padding, strict=True))
        if min(rests) < 0 or cropped or channels * math.prod(out) > self.limit:
            return x
        read = channels_in // op.groups
        weight = self.numbers((channels, read, *kernel), read * math.prod(kernel))
        return self.add(replace(op, weight=weight, bias=self.bias(channels)), (x,), (channels, *out))

    def pad(self, x: int) -> int:
        """Zeros around a map, or a crop."""
        channels, *sizes = self.shape(x)
        padding = tuple((self.pick(-1, 2), self.pick(-1, 2)) for _ in sizes)
        out = [n + a + b for n, (a, b) in zip(sizes, padding, strict=True)]
        fits = min(out) > 0 and channels * math.prod(out) <= self.limit
        return self.add(net.Pad(padding), (x,), (channels, *out)) if fits else x

    def max_pool(self, x: int) -> int:
        """A max-pool whose windows may overlap, skip entries, and stick out of the map."""
        return self._pool(x, maximum=True)

    def average(self, x: int) -> int:
        """An average pool: divided by the window's size, by the entries inside the map, or by any numbers."""
        return self._pool(x, maximum=False)

    def _pool(self, x: int, *, maximum: bool) -> int:
        channels, *sizes = self.shape(x)
        kernel, stride = self.picks(len(sizes), 1, 3 if maximum else 4), self.picks(len(sizes), 1, 3)
        dilation = tuple(1 + (maximum and self.chance(0.25)) for _ in sizes)
        padding, insides = [], []
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            span, before, after = d * (k - 1) + 1, self.pick(0, k // 2), self.pick(0, k // 2)
            if n + before + after < span:
                return x
            count = (n + before + after - span) // s + 1
            # As in ceil mode: one more window if it starts inside the map, its tail beyond.
            more = count * s + span - n - before
            if self.chance(0.4) and count * s < n + before and more >= 0:
                count, after = count + 1, max(after, more)
            reads = np.arange(count)[:, None] * s - before + np.arange(k) * d
            insides.append(((reads >= 0) & (reads < n)).sum(axis=1))
            padding.append((before, after))
        if min(int(inside.min()) for inside in insides) == 0:
            return x
        shape = (channels, *(len(inside) for inside in insides))
        if maximum:
            return self.add(net.MaxPool(kernel, stride, tuple(padding), dilation), (x,), shape)
        counts = insides[0] if len(insides) == 1 else np.outer(*insides)
        counts = counts if self.chance(0.5) else 2.0 ** self.draw.integers(0, 3, size=shape[1:])
        divisor = self.store(counts) if self.chance(0.7) else None
        return self.add(net.AvgPool(kernel, stride, tuple(padding), divisor), (x,), shape)

    def adaptive(self, x: int) -> int:
        """Windows of unequal size; now and then more of them than entries."""
        channels, *sizes = self.shape(x)
        return self.add(net.AdaptiveAvgPool(), (x,), (channels, *(self.pick(1, n + (n < 4)) for n in sizes)))

    def like(self, x: int) -> int:
        """A linear layer to a signal of the same shape."""
        if len(self.shape(x)) == 1 or self.chance(0.1):
            return self.dense(x, self.shape(x)[-1])
        return self.same(x, self.shape(x)[0])

    def join(self, x: int) -> int:
        """A residual block, or a sum of three signals with any coefficients."""
        branch = self.like(self.activation(self.like(x)))
        signals = [x if self.chance(0.6) else self.like(x), branch, *([x] if self.chance(0.15) else [])]
        if self.chance(0.5):
            signals.reverse()
        coefficients = tuple(float(self.draw.choice((1.0, 1.0, -1.0, 0.5, -2.0, 0.3))) for _ in signals)
        return self.add(net.Sum(coefficients), tuple(signals), self.shape(x))

    def concat(self, x: int) -> int:
        """A signal beside what a layer makes of it, along any axis."""
        if 2 * math.prod(self.shape(x)) > self.limit:
            return x
        branch = self.like(x) if self.chance(0.7) else self.activation(x)
        axis = self.pick(0, len(self.shape(x)) - 1) if self.chance(0.3) else 0
        shape = list(self.shape(x))
        shape[axis] *= 2
        return self.add(net.Concat(axis), (branch, x) if self.chance(0.5) else (x, branch), tuple(shape))

    def strided(self, x: int) -> int:
        """A residual block of a stride, its shortcut a convolution or a pool, summed or concatenated."""
        channels_in, *sizes = self.shape(x)
        stride, channels = self.picks(len(sizes), 1, 3), self.pick(1, 3)
        out = [-(-n // s) for n, s in zip(sizes, stride, strict=True)]
        if (channels + channels_in) * math.prod(sizes) > self.limit:
            return x
        body = self.same(x, channels, stride)
        body = self.same(self.activation(body), channels) if self.chance(0.6) else body
        kind = self.draw.choice(("plain", "wide", "max", "average"))
        if kind in {"plain", "wide"}:
            skip = self.same(x, channels, stride, 1 if kind == "plain" else 3)
        elif kind == "max":
            kernel = tuple(int(self.draw.choice((1, 3))) for _ in sizes)
            op = net.MaxPool(kernel, stride, tuple((k // 2, k // 2) for k in kernel), (1,) * len(sizes))
            skip = self.add(op, (x,), (channels_in, *out))
        else:
            beyond = tuple((0, o * s - n) for o, s, n in zip(out, stride, sizes, strict=True))
            skip = self.add(net.AvgPool(stride, stride, beyond), (x,), (channels_in, *out))
        other = self.shape(skip)[0]
        if other != channels or self.chance(0.2):
            return self.add(net.Concat(0), (body, skip), (channels + other, *out))
        return self.add(net.Sum((1.0, float(self.draw.choice((1.0, -0.5))))), (body, skip), (channels, *out))

    def head(self, x: int) -> int:
        """Often a global pool, then a flatten, one or two dense layers, and now and then softmax."""
        if len(self.shape(x)) > 1:
            channels, *sizes = self.shape(x)
            if self.chance(0.3):
                whole = net.AvgPool(tuple(sizes), tuple(sizes), ((0, 0),) * len(sizes))
                op = net.AdaptiveAvgPool() if self.chance(0.5) else whole
                x = self.add(op, (x,), (channels, *[1] * len(sizes)))
            x = self.add(net.Reshape(), (x,), (math.prod(self.shape(x)),))
        x = self.activation(self.dense(x)) if self.chance(0.4) else x
        x = self.dense(x, self.pick(1, 5))
        return self.add(net.Softmax(self.chance(0.5)), (x,), self.shape(x)) if self.chance(0.15) else x


LINEAR = {"dense", "conv", "affine", "average"}
VECTOR_LAYERS = ("dense", "activation", "affine", "join", "concat", "dense", "activation", "reshape")
MAP_LAYERS = (
    *("conv", "conv", "conv", "activation", "activation", "activation", "pad", "affine", "max_pool", "average"),
    *("adaptive", "join", "join", "concat", "strided", "strided", "dense", "reshape"),
)
RARE = {"reshape": 0.3, "adaptive": 0.5, "pad": 0.6, "affine": 0.6, "dense": 0.6}
"""In which share of the cases a layer that was drawn is kept."""


def draw_network(number: int) -> tuple[net.Network, dict[str, Any]]:
    """The network of a number, and how it was drawn."""
    draw = np.random.default_rng([number, 20])
    family, kind, kept, trained = (str(draw.choice(names)) for names in (FAMILIES, WEIGHTS, STORED, TRAINED))
    large = bool(draw.random() < LARGE)
    limit, depth = (LARGE_SIGNAL, LARGE_DEPTH) if large else (SIGNAL, DEPTH)
    builder = Builder(draw, _input_shape(draw, family, large=large), kind, kept, limit)
    x = 0
    while x == 0:
        x = _residual(builder, depth) if family == "residual" else _layers(builder, depth)
    network = net.Network(tuple(builder.nodes), builder.weights)
    if trained:
        network = train(network, draw, trained, kept)
    facts = {"family": family, "weights": kind, "stored": kept, "trained": trained or "not", "large": large}
    return network, facts


def _input_shape(draw: np.random.Generator, family: str, *, large: bool) -> net.Shape:
    if family == "vector":
        return (int(draw.integers(1, 40 if large else 13)),)
    side = (draw.choice((12, 6) if large else (9, 4), size=1)).item()
    sizes = draw.integers(2, side + 1, size=1 if side > 6 else 2)
    return (int(draw.integers(1, 4)), *(int(size) for size in sizes))


def _layers(builder: Builder, depth: int) -> int:
    x = 0
    for _ in range(builder.pick(1, depth)):
        names = VECTOR_LAYERS if len(builder.shape(x)) == 1 else MAP_LAYERS
        name = str(builder.draw.choice(names))
        if builder.chance(RARE.get(name, 1.0)):
            x = getattr(builder, name)(x)
            x = builder.activation(x) if name in LINEAR and builder.chance(0.4) else x
    return builder.head(x) if builder.chance(0.6) else x


def _residual(builder: Builder, depth: int) -> int:
    x = builder.activation(builder.same(0, builder.pick(1, 3)))
    x = builder.max_pool(x) if builder.chance(0.3) else x
    for _ in range(builder.pick(1, max(1, depth // 3))):
        x = builder.strided(x) if builder.chance(0.6) else builder.join(x)
        x = builder.affine(x) if builder.chance(0.2) else x
        x = builder.activation(x) if builder.chance(0.7) else x
    return builder.head(x) if builder.chance(0.8) else x


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as they are stored, finite."""
    limit = 6e4 if kind == "float16" else np.inf
    return np.clip(values, -limit, limit).astype(kind)


def train(network: net.Network, draw: np.random.Generator, goal: str, kind: str) -> net.Network:
    """Adam steps on all weights, or the network as it was where they lead nowhere."""
    fixed = {node.op.divisor for node in network.nodes if isinstance(node.op, net.AvgPool)}
    start = prepare(network)
    weights = {key: value.clone().requires_grad_(key not in fixed) for key, value in start.items()}
    free = [value for key, value in weights.items() if key not in fixed]
    matrices = [value for value in free if value.dim() > 1 and float(value.detach().abs().max()) > 0.0]
    if not matrices:
        return network
    x = torch.from_numpy(draw.normal(size=(16, *network.input_shape)))
    target = torch.from_numpy(draw.choice((-1.0, 1.0), size=(16, *network.output_shape)))
    steps = torch.optim.Adam(free, lr=RATE)
    for _ in range(STEPS):
        images = evaluate(network, x, weights)
        if goal == "fit":
            loss = (images - target).square().mean()
        else:
            spread = (images[:8] - images[8:]).flatten(1).norm(dim=1) / (x[:8] - x[8:]).flatten(1).norm(dim=1)
            sizes = [torch.log(value.norm()) for value in matrices]
            loss = sum(sizes, torch.zeros(())) - spread.clamp_min(1e-12).log().mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    trained = {key: stored(value.detach().numpy(), kind) for key, value in weights.items()}
    sound = all(np.isfinite(value).all() for value in trained.values())
    return net.Network(network.nodes, {**network.weights, **trained}) if sound else network


def layer_kinds(network: net.Network) -> list[str]:
    """Every kind of layer that occurs, and what makes it special, each once."""
    return sorted({name for node in network.nodes[1:] for name in _names(node)})


def _names(node: net.Node) -> tuple[str, ...]:
    op, name = node.op, type(node.op).__name__
    special: dict[str, bool] = {}
    match op:
        case net.Activation():
            return ("PReLU" if len(op.lower) > 1 else op.function,)
        case net.Softmax():
            return ("log-softmax" if op.log else "softmax",)
        case net.Conv() | net.MaxPool() | net.AvgPool():
            name += f" {len(op.stride)}-D"
            special["strided"] = max(op.stride) > 1
            special["padding asymmetric"] = any(a != b for a, b in op.padding)
            special["dilated"] = max(getattr(op, "dilation", (1,))) > 1
            if isinstance(op, net.Conv):
                special |= {"grouped": op.groups > 1, "crop": min(min(pair) for pair in op.padding) < 0}
            else:
                special["overlapping"] = any(k > s for k, s in zip(op.kernel, op.stride, strict=True))
                special["divisor"] = getattr(op, "divisor", None) is not None
        case net.Pad():
            special["crop"] = min(min(pair) for pair in op.padding) < 0
        case net.Dense() | net.Reshape():
            special["to a map"] = len(node.shape) > 1
        case net.Concat():
            special["of positions"] = op.axis > 0
        case net.Sum():
            special |= {"weighted": set(op.coefficients) != {1.0}, "of three": len(op.coefficients) > 2}
    return (name, *(f"{name}, {what}" for what, there in special.items() if there))

"""Strong lower bounds: the norm of a network whose activations are replaced by the worst slopes they allow.

Every certified bound of lipray holds whatever function with the given slope interval stands at each neuron, and
whichever entry each max-pool selects along one axis after the other (windows that overlap share what was selected
along the first, as their maxima do). So the norm of the linear network left when slopes and selections are
fixed is below every bound, whether or not the real network attains it. None of lipray's matrices are used here: the
linear network is made of the graph's own operations and evaluated by ``lipray.model.evaluate``.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from lipray.model.evaluate import evaluate, pad_spatial, prepare
from lipray.model.network import Activation, ChannelAffine, Dense, MaxPool, Network, Node, Reshape, Softmax


class Linearised:
    """The network with ``choices``: slopes (size,) per activation, selections (out, in) per max-pool, by node."""

    def __init__(self, network):
        nodes, moved, weights = [], {}, without_biases(network)
        self.intervals, self.windows = {}, {}

        def add(node):
            nodes.append(node)
            return len(nodes) - 1

        for index, node in enumerate(network.nodes):
            inputs = tuple(moved[i] for i in node.inputs)
            if isinstance(node.op, (Activation, MaxPool)):
                shape = network.nodes[node.inputs[0]].shape
                there = add(Node("flat", Reshape(), inputs, (math.prod(shape),)))
                if isinstance(node.op, Activation):
                    key, zero = f"choice{index}", f"zero{index}"
                    weights[zero] = np.zeros(node.size)
                    self.intervals[key] = interval(node)
                    there = add(Node("chosen", ChannelAffine(key, zero), (there,), (node.size,)))
                else:
                    for axis in range(len(node.op.kernel)):
                        key = f"choice{index}.{axis}"
                        self.windows[key] = windows(along(node.op, axis), shape)
                        there = add(Node("chosen", Dense(key, None), (there,), (len(self.windows[key]),)))
                        shape = (*shape[: axis + 1], node.shape[axis + 1], *shape[axis + 2 :])
                moved[index] = add(Node("back", Reshape(), (there,), node.shape))
            elif isinstance(node.op, Softmax):
                moved[index] = inputs[0]
                self.factor = math.sqrt(node.size) if node.op.log else 0.5
            else:
                moved[index] = add(replace(node, inputs=inputs))
        blank = {key: np.zeros(1) for key in (*self.intervals, *self.windows)}
        self.network = Network(tuple(nodes), weights | blank)
        self.weights = prepare(self.network)
        self.size = math.prod(network.input_shape)
        self.points = torch.eye(self.size, dtype=torch.float64).reshape(self.size, *network.input_shape)

    def jacobian(self, choices):
        """The matrix of the linear network, (out, in)."""
        return evaluate(self.network, self.points, self.weights | choices).reshape(self.size, -1).T

    def random(self, rng):
        choices = {}
        for key, (low, high) in self.intervals.items():
            choices[key] = torch.where(torch.from_numpy(rng.random(len(low)) < 0.5), low, high)
        for key, mask in self.windows.items():
            scores = torch.from_numpy(rng.random(mask.shape)).masked_fill(~mask, -1.0)
            choices[key] = torch.nn.functional.one_hot(scores.argmax(dim=1), mask.shape[1]).to(torch.float64)
        return choices

    def climb(self, choices, sweeps):
        """Alternate between the top singular pair and the best choices of one layer for it."""
        best = -1.0
        for _ in range(sweeps):
            before = best
            for key in choices:
                live = {name: value.clone().requires_grad_(name == key) for name, value in choices.items()}
                jacobian = self.jacobian(live)
                with torch.no_grad():
                    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
                best = max(best, float(values[0]))
                form = left[:, 0] @ jacobian @ right[0]
                if not form.requires_grad:
                    continue
                (gradient,) = torch.autograd.grad(form, live[key])
                if key in self.intervals:
                    low, high = self.intervals[key]
                    choices[key] = torch.where(gradient > 0, high, low)
                else:
                    mask = self.windows[key]
                    top = gradient.masked_fill(~mask, -math.inf).argmax(dim=1)
                    choices[key] = torch.nn.functional.one_hot(top, mask.shape[1]).to(torch.float64)
            best = max(best, float(torch.linalg.matrix_norm(self.jacobian(choices), 2)))
            if best <= before * (1.0 + 1e-9):
                break
        return best

    factor = 1.0


def worst_slopes(network, seed, *, starts=3, sweeps=12):
    """The largest norm found over slopes and selections (without a final softmax, which is not linear)."""
    linear = Linearised(network)
    rng = np.random.default_rng(seed)
    return max(linear.climb(linear.random(rng), sweeps) for _ in range(starts))


def without_biases(network):
    """The network's arrays with all biases and shifts zero: they drop out of differences."""
    weights = dict(network.weights)
    for node in network.nodes:
        for name in ("bias", "shift"):
            key = getattr(node.op, name, None)
            if key is not None:
                weights[key] = np.zeros_like(weights[key])
    return weights


def interval(node):
    """Slopes (low, high) of every entry of an activation."""
    ends = []
    for bounds in (node.op.lower, node.op.upper):
        full = np.full(node.size, bounds[0]) if len(bounds) == 1 else np.repeat(bounds, math.prod(node.shape[1:]))
        ends.append(torch.from_numpy(full.astype(np.float64)))
    return tuple(ends)


def along(op, axis):
    """The maximum along one axis only."""

    def only(value, other):
        return tuple(value[i] if i == axis else other for i in range(len(op.kernel)))

    return MaxPool(only(op.kernel, 1), only(op.stride, 1), only(op.padding, (0, 0)), only(op.dilation, 1))


def windows(op, shape):
    """Boolean (out, in): which entries each window of a max-pool holds."""
    index = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    padded = pad_spatial(index, op.padding, -1.0)
    for axis, (kernel, stride, dilation) in enumerate(zip(op.kernel, op.stride, op.dilation, strict=True)):
        padded = padded.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    flat = padded.reshape(-1, math.prod(op.kernel)).long()
    mask = torch.zeros(len(flat), math.prod(shape) + 1, dtype=torch.bool)
    mask[torch.arange(len(flat))[:, None], flat] = True
    return mask[:, :-1]

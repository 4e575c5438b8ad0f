"""Networks with seeded random weights, as the papers that are compared with draw them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from lipray.model.network import Activation, Conv, Dense, Input, Network, Node

RELU = Activation("relu", (0.0,), (1.0,))


def dense_chain(weights: list[np.ndarray]) -> Network:
    """Dense layers with a ReLU between any two."""
    nodes, named = [Node("input", Input(), (), (weights[0].shape[1],))], {}
    for number, weight in enumerate(weights, start=1):
        key, shape = f"fc{number}.weight", (len(weight),)
        named[key] = weight
        nodes.append(Node(f"fc{number}", Dense(key, None), (len(nodes) - 1,), shape))
        if number < len(weights):
            nodes.append(Node(f"relu{number}", RELU, (len(nodes) - 1,), shape))
    return Network(tuple(nodes), named)


def eclipse_network(layers: int, width: int) -> Network:
    """A random network of ECLipsE's study (Xu and Sivaranjani 2024): 4 inputs, ``layers`` matrices, 1 output.

    Normal entries, every matrix scaled to a spectral norm drawn evenly from [0.4, 1.8]. Seed and order of the draws
    follow the authors' generator, so that these are their networks.
    """
    draw = np.random.RandomState(7 * width + 13 * layers)
    sizes = [4, *[width] * (layers - 1), 1]
    weights = []
    for inputs, outputs in itertools.pairwise(sizes):
        norm = draw.uniform(0.4, 1.8)
        weight = draw.randn(outputs, inputs)
        weights.append(weight * (norm / np.linalg.norm(weight, 2)))
    return dense_chain(weights)


def kaiming_block(side: int, channels: tuple[int, ...], *, padding: int, seed: int = 0) -> Network:
    """3x3 convolutions with a ReLU between any two, Kaiming-normal weights; ``channels`` begin with the input's."""
    rng = np.random.default_rng(seed)
    nodes, named = [Node("input", Input(), (), (channels[0], side, side))], {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(channels), start=1):
        key = f"conv{number}.weight"
        named[key] = rng.normal(size=(outputs, inputs, 3, 3)) * math.sqrt(2.0 / (9 * inputs))
        side += 2 * padding - 2
        shape = (outputs, side, side)
        convolution = Conv(key, None, (1, 1), ((padding, padding),) * 2, (1, 1))
        nodes.append(Node(f"conv{number}", convolution, (len(nodes) - 1,), shape))
        if number < len(channels) - 1:
            nodes.append(Node(f"relu{number}", RELU, (len(nodes) - 1,), shape))
    return Network(tuple(nodes), named)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.errors import PlanError
from lipray.model.evaluate import evaluate
from lipray.model.network import (
    Activation,
    ChannelAffine,
    Concat,
    Conv,
    Dense,
    Input,
    MaxPool,
    Network,
    Node,
    Reshape,
    Softmax,
    Sum,
)
from lipray.partition.depth import activation_layers, split_depth, split_units
from lipray.verify.cuts import cut_positions, sub_network

RELU = Activation("relu", (0.0,), (1.0,))
CONV = Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 1))
BN = ChannelAffine("scale", "shift")
WEIGHTS = {
    "w": np.random.default_rng(3).normal(size=(2, 2, 3, 3)),
    "scale": np.array([1.5, -0.5]),
    "shift": np.array([0.25, 1.0]),
    "fc": np.random.default_rng(4).normal(size=(3, 32)),
}
MAP = (2, 4, 4)


class Chain:
    def __init__(self):
        self.nodes = [Node("x", Input(), (), MAP)]

    def add(self, name, op, *inputs, shape=MAP):
        self.nodes.append(Node(name, op, inputs or (len(self.nodes) - 1,), shape))
        return len(self.nodes) - 1

    def layers(self, *kinds):
        for kind in kinds:
            op = {"conv": CONV, "relu": RELU, "bn": BN, "flat": Reshape(), "fc": Dense("fc", None)}[kind]
            shape = {"flat": (32,), "fc": (3,)}.get(kind, MAP)
            self.add(f"{kind}{len(self.nodes)}", op, shape=shape)
        return len(self.nodes) - 1

    def residual(self, *, preactivated=False):
        skip = len(self.nodes) - 1
        body = ("bn", "relu", "conv", "bn", "relu", "conv") if preactivated else ("conv", "relu", "conv")
        branch = self.layers(*body)
        self.add(f"add{len(self.nodes)}", Sum((1.0, 1.0)), skip, branch)
        if not preactivated:
            self.layers("relu")
        return len(self.nodes) - 1

    def network(self):
        return Network(tuple(self.nodes), WEIGHTS)


def names(network):
    return [node.name.rstrip("0123456789") for node in network.nodes[1:]]


def plain():
    chain = Chain()
    chain.layers("conv", "bn", "relu", "conv", "relu", "conv", "relu", "flat", "fc")
    return chain.network()


def test_blocks_end_with_an_activation_and_the_tail_goes_with_the_last():
    blocks = split_depth(plain(), 1)
    assert [names(block) for block in blocks] == [
        ["conv", "bn", "relu"],
        ["conv", "relu"],
        ["conv", "relu", "flat", "fc"],
    ]
    blocks = split_depth(plain(), 2)
    assert [names(block) for block in blocks] == [
        ["conv", "bn", "relu", "conv", "relu"],
        ["conv", "relu", "flat", "fc"],
    ]
    assert split_depth(plain(), 3)[0].nodes == plain().nodes


def test_maxpool_counts_as_an_activation_layer_and_softmax_goes_with_the_last_block():
    chain = Chain()
    chain.layers("conv", "relu")
    chain.add("pool", MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), shape=(2, 2, 2))
    chain.add("flat", Reshape(), shape=(8,))
    chain.add("softmax", Softmax(log=False), shape=(8,))
    network = chain.network()
    assert activation_layers(network) == 2
    assert [names(block) for block in split_depth(network, 1)] == [["conv", "relu"], ["pool", "flat", "softmax"]]
    assert len(split_depth(network, 2)) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_a_residual_block_is_never_cut(depth):
    chain = Chain()
    chain.layers("conv", "relu")
    chain.residual()
    chain.residual()
    chain.layers("flat", "fc")
    blocks = split_depth(chain.network(), depth)
    assert [names(block) for block in blocks] == [
        ["conv", "relu"],
        ["conv", "relu", "conv", "add", "relu"],
        ["conv", "relu", "conv", "add", "relu", "flat", "fc"],
    ]


def test_a_part_that_begins_inside_a_block_is_refused():
    chain = Chain()
    chain.layers("conv", "relu")
    chain.residual()
    network = chain.network()
    cuts = {0, *cut_positions(network)}
    last = len(network.nodes) - 1
    inside = [k for k in range(last) if k not in cuts]
    assert inside
    for first in range(last):
        if first in cuts:
            assert len(sub_network(network, first, last).nodes) == last - first + 1
        else:
            with pytest.raises(ValueError, match="no cut is possible"):
                sub_network(network, first, last)


def test_preactivated_residual_blocks_are_cut_after_their_joins():
    chain = Chain()
    chain.layers("conv")
    chain.residual(preactivated=True)
    chain.residual(preactivated=True)
    chain.layers("bn", "relu", "flat", "fc")
    blocks = split_depth(chain.network(), 1)
    body = ["bn", "relu", "conv", "bn", "relu", "conv", "add"]
    assert [names(block) for block in blocks] == [["conv", *body], [*body, "bn", "relu", "flat", "fc"]]


def test_no_cut_inside_a_concatenation():
    chain = Chain()
    left = chain.add("left", CONV, 0)
    right = chain.add("right", RELU, 0)
    join = chain.add("join", Concat(0), left, right, shape=(4, 4, 4))
    end = chain.add("act", RELU, shape=(4, 4, 4))
    assert cut_positions(chain.network()) == (join, end)


def test_a_linear_network_is_one_block():
    chain = Chain()
    chain.layers("conv", "bn", "conv", "flat", "fc")
    assert len(split_depth(chain.network(), 1)) == 1
    assert len(split_depth(chain.network(), None, fits=lambda _: False)) == 1


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth):
    with pytest.raises(PlanError) as caught:
        split_depth(plain(), depth)
    assert caught.value.args[0] == "--block-depth"


def test_groups_are_grown_from_the_output():
    # Two activation layers fit: the tail keeps the layers before it, the head is what remains.
    blocks = split_depth(plain(), None, fits=lambda block: activation_layers(block) <= 2)
    assert [names(block) for block in blocks] == [
        ["conv", "bn", "relu"],
        ["conv", "relu", "conv", "relu", "flat", "fc"],
    ]
    blocks = split_depth(plain(), None, fits=lambda _: False)
    assert len(blocks) == 3
    assert split_depth(plain(), None, fits=lambda _: True) == (plain(),)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(("conv", "bn", "relu", "residual", "preactivated")), min_size=1, max_size=8),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_the_blocks_compose_to_the_network(kinds, tail, depth):
    chain = Chain()
    for kind in kinds:
        if kind in {"residual", "preactivated"}:
            chain.residual(preactivated=kind == "preactivated")
        else:
            chain.layers(kind)
    if tail:
        chain.layers("flat", "fc")
    network = chain.network()
    blocks = split_depth(network, depth, fits=lambda block: len(block.nodes) < 7)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *MAP)))
    y = x
    for block in blocks:
        y = evaluate(block, y)
        assert block.weights is network.weights
    assert torch.equal(y, evaluate(network, x))
    units = split_units(network)
    layers = [activation_layers(block) for block in blocks]
    assert sum(layers) == activation_layers(network)
    for block, count in zip(blocks, layers, strict=True):
        assert depth is None or count <= depth or len(split_units(block)) == 1
    assert len(blocks) <= len(units)

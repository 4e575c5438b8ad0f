from dataclasses import replace

import numpy as np
import pytest

from lipray.errors import PlanError, UsageError
from lipray.model.network import Activation, Conv, Dense, Input, Network, Node, Reshape
from lipray.partition.cost import estimate_cost
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings
from lipray.partition.worklist import subproblems, worklist

RELU = Activation("relu", (0.0,), (1.0,))
RNG = np.random.default_rng(2)


def convolutions(*, size=12, padding=1, layers=2, channels=2, classes=None):
    nodes = [Node("x", Input(), (), (channels, size, size))]
    weights = {}
    for i in range(1, layers + 1):
        weights[f"w{i}"] = RNG.normal(size=(channels, channels, 3, 3))
        size += 2 * padding - 2
        op = Conv(f"w{i}", None, (1, 1), ((padding, padding),) * 2, (1, 1))
        nodes.append(Node(f"conv{i}", op, (len(nodes) - 1,), (channels, size, size)))
        nodes.append(Node(f"relu{i}", RELU, (len(nodes) - 1,), (channels, size, size)))
    if classes:
        features = channels * size * size
        weights["fc"] = RNG.normal(size=(classes, features))
        nodes.append(Node("flat", Reshape(), (len(nodes) - 1,), (features,)))
        nodes.append(Node("fc", Dense("fc", None), (len(nodes) - 1,), (classes,)))
    return Network(tuple(nodes), weights)


def cap(network, factor=1.0, **options):
    """Settings whose memory is a share of what the network needs."""
    return Settings(memory=int(factor * estimate_cost(network, "ellipsoid", Settings()).memory_bytes), **options)


def labels(plan):
    return [[tile.label for tile in block.tiles] for block in plan.blocks]


def test_what_fits_is_one_block_and_one_sub_problem():
    network = convolutions(classes=5)
    plan = plan_network(network, settings=Settings())
    assert labels(plan) == [["block1 [conv1..fc]"]]
    assert plan.partition_factor == 1
    tile = plan.blocks[0].tiles[0]
    assert tile.network is network
    assert (tile.output, tile.field) == ((), ())
    assert tile.key == network.content_hash()


def test_a_cap_of_exactly_what_is_needed_is_enough_and_a_byte_less_is_not():
    network = convolutions()
    exact = cap(network)
    assert len(plan_network(network, settings=exact, block_depth=2).blocks[0].tiles) == 1
    less = replace(exact, memory=exact.memory - 1)
    assert len(plan_network(network, settings=less, block_depth=2).blocks[0].tiles) == 4


def test_the_search_takes_the_fewest_tiles_that_fit():
    network = convolutions(size=24)
    settings = cap(network, 0.05)
    plan = plan_network(network, settings=settings, block_depth=2)
    tiles = plan.blocks[0].tiles
    assert all(tile.memory <= settings.memory for tile in tiles)
    assert len(tiles) == plan.partition_factor**2 > 1
    fewer = plan_network(
        network, settings=replace(settings, memory=2**40), block_depth=2, partition_factor=plan.partition_factor - 1
    )
    assert max(tile.memory for tile in fewer.blocks[0].tiles) > settings.memory


def test_tiles_over_the_cap_are_split_further_and_labelled_so():
    network = convolutions(size=13, padding=0)
    whole = plan_network(network, settings=Settings(), partition_factor=2, block_depth=2)
    settings = Settings(memory=max(tile.memory for tile in whole.blocks[0].tiles) - 1)
    plan = plan_network(network, settings=settings, partition_factor=2, block_depth=2)
    tiles = plan.blocks[0].tiles
    assert all(tile.memory <= settings.memory for tile in tiles)
    # 9 positions in parts of 4 and 5: only the 5 x 5 tile is over the cap.
    assert labels(plan)[0] == [
        "block1/tile1",
        "block1/tile2",
        "block1/tile3",
        *(f"block1/tile4-{i}" for i in (1, 2, 3, 4)),
    ]
    cover = np.zeros((9, 9), dtype=int)
    for tile in tiles:
        cover[tuple(slice(low, high) for low, high in tile.output)] += 1
    assert (cover == 1).all()


def test_translates_are_recognised_once():
    padded = plan_network(convolutions(size=12), settings=Settings(), partition_factor=4)
    assert len(padded.blocks[0].tiles) == 16
    assert len(padded.blocks[0].distinct) == 9
    assert [tile.label for tile in padded.blocks[0].distinct][:2] == ["block1/tile1", "block1/tile2"]
    valid = plan_network(convolutions(size=16, padding=0), settings=Settings(), partition_factor=4)
    assert len(valid.blocks[0].distinct) == 1
    # One sub-problem for sixteen tiles, and one for the block's product bound.
    assert [problem.method for problem in subproblems(valid)] == ["product", "ellipsoid"]


def test_a_dense_tail_does_not_hide_the_map_from_the_factor():
    plan = plan_network(convolutions(classes=5), settings=Settings(), partition_factor=3)
    assert [block.label for block in plan.blocks] == ["block1 [conv1..relu2]", "block2 [flat..fc]"]
    assert [len(block.tiles) for block in plan.blocks] == [9, 1]
    deep = plan_network(convolutions(layers=4, classes=5), settings=Settings(), partition_factor=2, block_depth=2)
    assert [len(block.tiles) for block in deep.blocks] == [4, 4, 1]


def test_a_map_too_deep_for_any_tile_is_cut_in_depth_as_well():
    network = convolutions(layers=6, classes=5)
    settings = cap(plan_network(network, settings=Settings(), block_depth=2).blocks[0].network, 0.5)
    plan = plan_network(network, settings=settings, partition_factor=2)
    assert len(plan.blocks) > 2
    assert all(tile.memory <= settings.memory for block in plan.blocks for tile in block.tiles)
    assert any(len(block.tiles) >= 4 for block in plan.blocks)


def test_a_single_linear_operator_is_not_tiled():
    plan = plan_network(convolutions(layers=3, classes=5), settings=Settings(), partition_factor=2, block_depth=1)
    assert [len(block.tiles) for block in plan.blocks] == [1, 1, 1]


def test_what_cannot_be_made_to_fit_is_left_to_the_product_bound():
    nodes = [Node("x", Input(), (), (40,))]
    for i in (1, 2):
        nodes.append(Node(f"fc{i}", Dense("w", None), (len(nodes) - 1,), (40,)))
        nodes.append(Node(f"relu{i}", RELU, (len(nodes) - 1,), (40,)))
    network = Network(tuple(nodes), {"w": RNG.normal(size=(40, 40))})
    plan = plan_network(network, settings=cap(network, 0.3))
    assert labels(plan) == [[], []]
    assert [problem.method for problem in subproblems(plan)] == ["product"]
    convs = convolutions()
    assert labels(plan_network(convs, settings=Settings(memory=1), block_depth=2)) == [[]]
    assert labels(plan_network(convs, settings=Settings(memory=1), block_depth=2, partition_factor=2)) == [[]]


def test_the_default_grows_blocks_from_the_output():
    network = convolutions(layers=4, classes=5)
    tail = plan_network(network, settings=Settings(), block_depth=2).blocks[-1].network
    plan = plan_network(network, settings=cap(tail))
    assert plan.blocks[-1].label == "block2 [conv3..fc]"
    assert all(tile.memory <= plan.settings.memory for block in plan.blocks for tile in block.tiles)


@pytest.mark.parametrize("factor", [0, -3, 13, 1000])
def test_impossible_factors_are_refused(factor):
    for depth in (None, 1, 2):
        with pytest.raises(PlanError) as caught:
            plan_network(convolutions(classes=5), settings=Settings(), partition_factor=factor, block_depth=depth)
        assert caught.value.args[0] == "--partition-factor"
        assert caught.value.hint


def test_a_factor_without_a_map_is_refused():
    x = Node("x", Input(), (), (3,))
    network = Network((x, Node("fc", Dense("w", None), (0,), (3,)), Node("relu", RELU, (1,), (3,))), {"w": np.eye(3)})
    with pytest.raises(PlanError, match="map"):
        plan_network(network, settings=Settings(), partition_factor=2)
    assert len(plan_network(network, settings=Settings(), partition_factor=1).blocks) == 1


@pytest.mark.parametrize("depth", [0, -2])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(PlanError, match="--block-depth"):
        plan_network(convolutions(), settings=Settings(), block_depth=depth)


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="magic"):
        plan_network(convolutions(), method="magic", settings=Settings())


@pytest.mark.parametrize("method", ["product", "ellipsoid"])
@pytest.mark.parametrize("factor", [None, 3])
def test_keys_of_the_worklist_are_those_of_the_sub_problems(method, factor):
    settings = Settings(iterations=7)
    plan = plan_network(
        convolutions(classes=5), method=method, settings=settings, partition_factor=factor, block_depth=2
    )
    work = worklist(plan)
    assert all(problem.key() == key for key, problem in work.by_key.items())
    assert len(work.products) == len(plan.blocks)
    for block, key in zip(plan.blocks, work.products, strict=True):
        assert work.by_key[key].network is block.network
        # A fallback is the same sub-problem whatever the method beside it was told.
        assert work.by_key[key].settings == (settings if method == "product" else Settings())
        for tile in block.tiles:
            problem = work.by_key[work.tiles[tile.key]]
            assert problem.network.content_hash() == tile.network.content_hash()
            assert problem.method == method
    if method == "product" and factor is None:
        assert len(work.by_key) == len(plan.blocks)

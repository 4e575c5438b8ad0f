import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.errors import PlanError
from lipray.model.evaluate import evaluate
from lipray.model.network import (
    AdaptiveAvgPool,
    Concat,
    Conv,
    Dense,
    Input,
    Network,
    Node,
    Reshape,
)
from lipray.verify.tiles import is_tileable, tile_block, tile_windows
from tests.networks import RELU, blocks


def crop(x, window):
    return x[(slice(None), slice(None), *(slice(low, high) for low, high in window))]


def run_shapes(network):
    """Evaluate every prefix's shape: the shapes written in a tile must be those it computes."""
    x = torch.zeros((1, *network.input_shape), dtype=torch.float64)
    for end in range(2, len(network.nodes) + 1):
        prefix = Network(network.nodes[:end], network.weights)
        assert tuple(evaluate(prefix, x).shape[1:]) == network.nodes[end - 1].shape


@settings(max_examples=150, deadline=None)
@given(blocks(), st.integers(1, 5), st.integers(0, 2**16))
def test_tiles_are_the_crops_of_the_block_and_cover_it_once(block, factor, seed):
    longest = max(block.output_shape[1:])
    factor = min(factor, longest)
    x = torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, size=(2, *block.input_shape)).astype(np.float64))
    whole = evaluate(block, x)
    tiles = tile_block(block, factor)
    if factor == 1 or not is_tileable(block):
        assert tiles == (((), (), block),)
        return
    cover = np.zeros(block.output_shape[1:], dtype=int)
    for output, field, tile in tiles:
        cover[tuple(slice(low, high) for low, high in output)] += 1
        assert all(0 <= low < high <= n for (low, high), n in zip(field, block.input_shape[1:], strict=True))
        assert torch.equal(evaluate(tile, crop(x, field)), crop(whole, output))
    assert (cover == 1).all()
    assert len(tiles) == math.prod(min(factor, n) for n in block.output_shape[1:])
    run_shapes(tiles[0][2])
    run_shapes(tiles[-1][2])


@settings(max_examples=60, deadline=None)
@given(blocks(), st.integers(2, 4), st.integers(0, 2**16))
def test_a_tile_ignores_what_is_outside_its_field(block, factor, seed):
    factor = min(factor, max(block.output_shape[1:]))
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, size=(1, *block.input_shape)).astype(np.float64)
    whole = evaluate(block, torch.from_numpy(x))
    for output, field, _ in tile_block(block, factor):
        other = rng.integers(-3, 4, size=x.shape).astype(np.float64)
        inside = (slice(None), slice(None), *(slice(low, high) for low, high in field))
        other[inside] = x[inside]
        assert torch.equal(crop(evaluate(block, torch.from_numpy(other)), output), crop(whole, output))


def chain(size, padding, layers=2, rank=2):
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.normal(size=(2, 2, *(3,) * rank)) for i in range(layers)}
    nodes = [Node("x", Input(), (), (2, *(size,) * rank))]
    for i in range(layers):
        size = size + 2 * padding - 2
        op = Conv(f"w{i}", None, (1,) * rank, ((padding, padding),) * rank, (1,) * rank)
        nodes.append(Node(f"conv{i}", op, (len(nodes) - 1,), (2, *(size,) * rank)))
        nodes.append(Node(f"relu{i}", RELU, (len(nodes) - 1,), (2, *(size,) * rank)))
    return Network(tuple(nodes), weights)


@pytest.mark.parametrize(
    ("size", "padding", "rank", "factor", "distinct"),
    [
        (16, 0, 2, 4, 1),  # 12 positions, equal tiles, no border: all are translates
        (16, 0, 1, 4, 1),
        (12, 1, 2, 2, 4),  # four corners
        (12, 1, 2, 3, 9),  # corners, edges, interior
        (12, 1, 2, 4, 9),
        (24, 1, 2, 6, 9),
        (12, 1, 1, 4, 3),
        (14, 0, 2, 4, 4),  # 10 positions in 4 parts of 2 or 3: two lengths per axis
    ],
)
def test_translates_have_one_content(size, padding, rank, factor, distinct):
    tiles = tile_block(chain(size, padding, rank=rank), factor)
    assert len(tiles) == factor**rank
    assert len({tile.content_hash() for _, _, tile in tiles}) == distinct


def test_one_position_tiles_near_the_border_differ_as_deep_as_padding_is_seen():
    # Two padded 3x3 layers: positions 0, 1, interior, n-2, n-1 see different padding on each axis.
    tiles = tile_block(chain(8, 1), 8)
    assert len({tile.content_hash() for _, _, tile in tiles}) == 25


def test_big_arrays_are_shared_with_the_block():
    block = chain(12, 1)
    for _, _, tile in tile_block(block, 3):
        assert all(tile.weights[key] is block.weights[key] for key in block.weights)


def test_windows_are_nearly_equal():
    for shape, factor in itertools.product([(1, 7), (3, 5, 9), (1, 1, 4)], [1, 2, 3, 4]):
        for axis, n in enumerate(shape[1:]):
            lengths = {window[axis][1] - window[axis][0] for window in tile_windows(shape, factor)}
            assert max(lengths) - min(lengths) <= 1
            assert max(lengths) == math.ceil(n / min(factor, n))


@pytest.mark.parametrize("factor", [0, -1, 13])
def test_a_factor_that_cuts_nothing_is_refused(factor):
    with pytest.raises(PlanError) as caught:
        tile_block(chain(12, 1), factor)
    assert caught.value.args[0] == "--partition-factor"
    assert caught.value.hint


def test_what_reads_the_whole_map_cannot_be_tiled():
    x = Node("x", Input(), (), (2, 5, 5))
    dense = Network((x, Node("d", Dense("w", None), (0,), (2, 5, 3))), {"w": np.ones((3, 5))})
    flat = Network((x, Node("f", Reshape(), (0,), (50,))), {})
    adaptive = Network((x, Node("a", AdaptiveAvgPool(), (0,), (2, 3, 3))), {})
    wide = Network((x, Node("c", Concat(1), (0, 0), (2, 10, 5))), {})
    # A stride that jumps over the map: no output reads anything but padding.
    blind = Conv("w", None, (9, 1), ((2, 9), (0, 0)), (1, 1))
    unread = Network((x, Node("c", blind, (0,), (1, 2, 5))), {"w": np.ones((1, 2, 1, 1))})
    for block in (dense, flat, adaptive, wide, unread):
        assert not is_tileable(block)
        assert tile_block(block, 2) == (((), (), block),)


def test_positions_that_read_padding_only_are_tiled_right():
    # Padding 4 around a 1x1 kernel: the outer positions are the bias whatever the input.
    op = Conv("w", "b", (1, 1), ((4, 4), (4, 4)), (1, 1))
    block = Network(
        (Node("x", Input(), (), (1, 3, 3)), Node("c", op, (0,), (1, 11, 11))),
        {"w": np.full((1, 1, 1, 1), 3.0), "b": np.array([5.0])},
    )
    x = torch.arange(9, dtype=torch.float64).reshape(1, 1, 3, 3)
    for output, field, tile in tile_block(block, 11):
        assert torch.equal(evaluate(tile, crop(x, field)), crop(evaluate(block, x), output))

"""Where maps lie on tori: sides, what is clean, what is widened and what is masked."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings

from lipray.errors import PlanError
from lipray.model import activations as act
from lipray.model.network import AvgPool, Concat, Conv, MaxPool, Node, Pad
from lipray.verify.cuts import cut_positions
from lipray.verify.torus.layout import Torus, lay_out, reads_outside, torus_cuts
from tests.maps import Maps, resnet18
from tests.networks import networks

LEAKY = act.leaky_relu(0.1)
STEEP = act.leaky_relu(1.5)


def layout(maps):
    return lay_out(maps.network())


def names(maps, nodes):
    return {maps.nodes[i].name for i in nodes}


def test_sides_of_a_resnet18():
    assert layout(resnet18(224, cifar=False)).sides == tuple((n, n) for n in (256, 128, 64, 32, 16, 8))
    assert layout(resnet18(32, cifar=True)).sides == tuple((n, n) for n in (40, 20, 10, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "sides"),
    [
        ("resnet18", (3, 224, 224), (256, 128, 64, 32, 16, 8)),
        ("resnet18-cifar", (3, 32, 32), (40, 20, 10, 5)),
        ("resnet50", (3, 224, 224), (256, 128, 64, 32, 16, 8)),
    ],
)
def test_sides_of_built_in_networks(name, shape, sides):
    from lipray.model.load import load_network

    network = load_network(name, shape).network
    torus = lay_out(network)
    assert torus.sides == tuple((n, n) for n in sides)
    assert not torus.widened
    assert not torus.masked
    assert not isinstance(network.nodes[torus.cut].op, AvgPool)


def test_a_chain_without_padding_needs_its_extent_only():
    maps = Maps(1, 9, 7)
    maps.conv(2)
    maps.act()
    maps.conv(1, kernel=(1, 5))
    torus = layout(maps)
    assert torus.sides == ((9, 7),)
    assert torus.strides == ((1, 1),)
    assert torus.cut == 3
    assert torus.coarse == (9, 7)


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({"kernel": 3, "padding": 1}, 11),
        ({"kernel": 5, "padding": 2}, 12),
        ({"kernel": 3, "padding": 3, "dilation": 3}, 13),
        ({"kernel": 3, "padding": [(2, 0)]}, 12),
        ({"kernel": 3, "padding": [(0, 2)]}, 12),
        ({"kernel": 5, "padding": [(1, 3)]}, 13),
        ({"kernel": 3, "padding": [(-2, 1)]}, 11),
        # A padding wider than the kernel makes the result the wider map.
        ({"kernel": 3, "padding": 4}, 16),
        # What the stride leaves unread of the padding needs no room: 2 * 5 - 1 + 2 = 11 is not reached.
        ({"kernel": 3, "padding": [(0, 2)], "stride": 2}, 12),
        ({"kernel": 3, "padding": [(0, 3)], "stride": 3}, 12),
        ({"kernel": 2, "padding": [(1, 0)], "stride": 2}, 12),
        ({"kernel": 2, "padding": [(0, 1)], "stride": 5}, 10),
        ({"kernel": 2, "padding": [(0, 3)], "stride": 5}, 15),
    ],
)
def test_the_side_holds_what_one_padded_layer_reads(options, side):
    maps = Maps(1, 10)
    maps.conv(1, **options)
    assert layout(maps).sides[0] == (side,)


def test_sides_are_multiples_of_the_strides_and_hold_the_neediest_level():
    maps = Maps(1, 20)
    maps.conv(1, padding=1, stride=2)  # 10, needs 21
    maps.act()
    maps.conv(1, kernel=7, padding=3, stride=2)  # 5, needs 13 at stride 2: 26
    maps.act()
    maps.conv(1, padding=1, stride=3)  # 2, needs 6 at stride 4: 24
    torus = layout(maps)
    assert torus.strides == ((1,), (2,), (4,), (12,))
    assert torus.sides == ((36,), (18,), (9,), (3,))
    assert torus.level == (0, 1, 1, 2, 2, 3)


def test_axes_are_laid_out_on_their_own():
    maps = Maps(1, 8, 13)
    maps.conv(1, kernel=(1, 3), stride=(1, 2), padding=[(0, 0), (1, 1)])
    maps.act()
    maps.maximum(kernel=(2, 1), stride=(2, 1))
    torus = layout(maps)
    assert torus.strides == ((1, 1), (1, 2), (2, 2))
    assert torus.sides == ((8, 14), (8, 7), (4, 7))


def test_a_strided_residual_block_has_both_branches_on_the_coarse_level():
    maps = Maps(1, 8, 8)
    branch = maps.conv(1, stride=2, padding=1)
    skip = maps.conv(1, 0, kernel=1, stride=2)
    join = maps.sum(branch, skip)
    torus = layout(maps)
    assert torus.strides == ((1, 1), (2, 2))
    assert torus.sides == ((10, 10), (5, 5))
    assert [torus.level[i] for i in (0, branch, skip, join)] == [0, 1, 1, 1]


def test_a_branch_may_skip_a_level():
    maps = Maps(1, 8)
    maps.conv(1, stride=2, padding=1)
    branch = maps.conv(1, stride=2, padding=1)
    skip = maps.conv(1, 0, kernel=1, stride=4)
    maps.sum(branch, skip)
    torus = layout(maps)
    assert torus.strides == ((1,), (2,), (4,))
    assert torus.level[skip] == 2
    assert torus.cut == maps.last


# -- clean maps


def leads_into_padding(maps, padding=1):
    """Names of widened nodes, and whether the reader is masked, once a padded convolution reads the last map."""
    reader = maps.conv(1, padding=padding)
    torus = layout(maps)
    assert torus.masked <= {reader}
    return names(maps, torus.widened), bool(torus.masked)


def test_the_input_is_clean():
    assert leads_into_padding(Maps(1, 6, 6)) == (set(), False)


@pytest.mark.parametrize(("op", "widens"), [(act.relu(), False), (LEAKY, True), (STEEP, True), (act.absolute(), False)])
def test_an_activation_is_clean_if_its_slopes_include_zero(op, widens):
    maps = Maps(1, 6, 6)
    maps.conv(2)
    index = maps.act(op)
    assert leads_into_padding(maps) == ({maps.nodes[index].name} if widens else set(), False)


def test_one_channel_without_slope_zero_is_enough_to_widen():
    maps = Maps(1, 6)
    maps.conv(3)
    index = maps.act(act.prelu((0.0, -0.5, 0.25)))
    assert leads_into_padding(maps) == ({maps.nodes[index].name}, False)


def test_an_activation_of_a_clean_map_needs_no_widening():
    maps = Maps(1, 6, 6)
    maps.act(LEAKY)
    maps.affine(2.0)
    assert leads_into_padding(maps) == (set(), False)


def test_no_widening_where_nothing_outside_is_read():
    maps = Maps(1, 6, 6)
    maps.conv(2)
    maps.act(LEAKY)
    maps.conv(2)
    maps.act(LEAKY)
    torus = layout(maps)
    assert (torus.widened, torus.masked) == (frozenset(), frozenset())


def test_a_convolution_spills_and_is_masked():
    maps = Maps(1, 6, 6)
    maps.conv(2, padding=1)
    assert leads_into_padding(maps) == (set(), True)


def test_widening_reaches_through_channel_wise_maps_and_joins():
    maps = Maps(1, 6, 6)
    maps.conv(2)
    first = maps.act(LEAKY)
    maps.conv(2, 0)
    second = maps.act(STEEP)
    joined = maps.sum(maps.affine([1.0, -2.0], first), maps.conv(2, second, kernel=1))
    maps.concat(joined, second)
    assert leads_into_padding(maps) == (names(maps, (first, second)), False)


def test_one_spilled_part_makes_a_join_unclean_and_nothing_is_widened_in_vain():
    maps = Maps(1, 6, 6)
    first = maps.conv(2)
    maps.sum(first, maps.act(LEAKY))
    assert leads_into_padding(maps) == (set(), True)


def test_what_follows_a_widened_activation_is_clean_for_every_later_reader():
    maps = Maps(1, 6, 6)
    maps.conv(2)
    opened = maps.act(LEAKY)
    scaled = maps.affine(2.0)
    first = maps.conv(2, opened, padding=1)
    second = maps.conv(2, scaled, padding=1)
    maps.sum(first, second)
    torus = layout(maps)
    assert torus.widened == {opened}
    assert not torus.masked


@pytest.mark.parametrize(
    ("options", "padding", "masked"),
    [
        ({"kernel": 2, "stride": 2}, 1, False),
        ({"kernel": 3, "stride": 2, "padding": 1}, 1, False),
        ({"kernel": 1, "stride": 1}, 1, False),
        # Five windows on a torus of six: the sixth, 5 and 0, has no zero to select. On one of eight, each has.
        ({"kernel": 2, "stride": 1}, 1, True),
        ({"kernel": 2, "stride": 1}, 3, False),
        ({"kernel": 2, "stride": 1, "dilation": 2}, 1, True),
        ({"kernel": 2, "stride": 1, "dilation": 2}, 4, False),
        # On a torus of nine the eighth of these begins at 7 and ends at 2.
        ({"kernel": 2, "stride": 1, "dilation": 4}, 7, False),
        # The padding makes the windows begin late: that beyond the last one ends on the first entry.
        ({"kernel": 2, "stride": 1, "padding": [(-1, 0)]}, 4, True),
    ],
)
def test_a_max_pool_is_clean_if_it_finds_a_zero_everywhere_outside(options, padding, masked):
    maps = Maps(1, 6)
    maps.maximum(**options)
    assert leads_into_padding(maps, padding) == (set(), masked)


def test_a_max_pool_that_drops_part_of_the_map_is_masked():
    maps = Maps(1, 6)
    maps.maximum(kernel=2, stride=4)
    # A second window, 4 .. 5, fits; a node without it is what a tile's crop leaves.
    maps.nodes[-1] = Node("pool", maps.nodes[-1].op, (0,), (1, 1))
    assert leads_into_padding(maps) == (set(), True)


def test_a_max_pool_over_a_map_that_is_not_clean_is_masked():
    maps = Maps(1, 6, 6)
    maps.conv(1)
    maps.maximum()
    assert leads_into_padding(maps) == (set(), True)


def test_a_max_pool_over_a_leaky_activation_is_masked_and_not_the_activation_widened():
    maps = Maps(1, 6, 6)
    maps.conv(1)
    maps.act(LEAKY)
    maps.maximum()
    assert leads_into_padding(maps) == (set(), True)


def test_an_average_pool_spills():
    maps = Maps(1, 6, 6)
    maps.average()
    assert leads_into_padding(maps) == (set(), True)


@pytest.mark.parametrize(
    ("options", "masked"),
    [
        ({"kernel": 1}, False),
        ({"kernel": 1, "stride": 2}, False),
        ({"kernel": 1, "padding": 1}, True),
        ({"kernel": 1, "padding": [(-1, 0)]}, True),
        ({"kernel": 1, "stride": 2, "padding": [(0, -1)]}, True),
        ({"kernel": (2,)}, True),
    ],
)
def test_a_convolution_of_one_tap_keeps_a_map_clean_unless_it_shifts_or_drops(options, masked):
    maps = Maps(1, 6)
    maps.conv(1, **options)
    assert leads_into_padding(maps) == (set(), masked)


def test_padding_keeps_a_map_clean_and_cropping_does_not():
    for padding, masked in ((2, False), ([(0, 1)], False), ([(-1, 1)], True), ([(1, -1)], True), (-1, True)):
        maps = Maps(1, 6)
        maps.pad(padding)
        assert leads_into_padding(maps) == (set(), masked), padding


def test_pads_and_average_pools_that_read_outside_are_masked_too():
    for layer in (lambda m: m.pad(1), lambda m: m.average(kernel=3, stride=1, padding=1)):
        maps = Maps(1, 6)
        maps.conv(1)
        reader = layer(maps)
        maps.act()
        torus = layout(maps)
        assert torus.masked == {reader}


def test_a_max_pool_never_counts_on_zeros():
    maps = Maps(1, 6)
    maps.conv(1)
    index = maps.maximum(kernel=3, stride=1, padding=1)
    assert not reads_outside(maps.network(), index)
    assert not layout(maps).masked


# -- where the torus is left


def test_the_torus_ends_before_a_last_average_pool_and_the_dense_tail():
    maps = Maps(1, 8, 8)
    maps.conv(2, padding=1)
    relu = maps.act()
    maps.average(kernel=4, stride=4)
    maps.average(kernel=2, stride=2)
    maps.flatten()
    maps.dense(3)
    network = maps.network()
    assert torus_cuts(network) == (0, 1, 2, 3, 4)
    assert lay_out(network).cut == relu
    assert lay_out(network, 4).sides == ((16, 16), (4, 4), (2, 2))
    assert lay_out(network, 1).sides == ((9, 9),)


def test_a_cut_is_never_inside_a_block():
    maps = Maps(1, 8)
    maps.conv(1, padding=1)
    start = maps.act()
    maps.conv(1, padding=1)
    maps.act()
    branch = maps.conv(1, padding=1)
    maps.sum(start, branch)
    network = maps.network()
    assert torus_cuts(network) == (0, 1, 2, 6)
    for cut in (3, 5, 7, -1):
        with pytest.raises(PlanError, match="cannot be left") as caught:
            lay_out(network, cut)
        assert "[0, 1, 2, 6]" in str(caught.value)


def test_a_network_on_vectors_has_no_torus():
    maps = Maps(4)
    maps.dense(3)
    assert torus_cuts(maps.network()) == ()
    with pytest.raises(PlanError, match="dense1 is not a layer on maps") as caught:
        layout(maps)
    assert "ellipsoid" in str(caught.value)


def test_concatenation_along_space_ends_the_torus():
    maps = Maps(1, 4, 4)
    relu = maps.act()
    maps.add(Concat(1), (relu, relu), (1, 8, 4))
    assert torus_cuts(maps.network()) == (0, 1)


def test_branches_of_unequal_total_stride_are_refused_by_name():
    maps = Maps(1, 4)
    first = maps.conv(1, kernel=2, stride=2)
    second = maps.conv(1, 0, kernel=3)
    maps.sum(first, second)
    with pytest.raises(PlanError, match=r"sum3 joins maps of total strides \[\(1,\), \(2,\)\]"):
        layout(maps)


def test_strides_that_do_not_divide_each_other_are_refused():
    maps = Maps(1, 12)
    maps.conv(1, kernel=1, stride=2)
    first = maps.conv(1, kernel=1, stride=3)
    maps.conv(1, 0, kernel=1, stride=3)
    second = maps.conv(1, kernel=1, stride=2)
    maps.sum(first, second)
    with pytest.raises(PlanError, match=r"\(2,\) and \(3,\) stand beside each other"):
        layout(maps)


# -- by simulation: zeros are found where they are counted on


def read_positions(network, node, axis):
    """Every position a layer reads along an axis, one by one."""
    op, source = node.op, network.nodes[node.inputs[0]]
    if isinstance(op, Pad):
        before = op.padding[axis][0]
        return [i - before for i in range(node.shape[axis + 1])]
    kernel = network.weights[op.weight].shape[2:] if isinstance(op, Conv) else op.kernel
    dilation = op.dilation if isinstance(op, Conv) else (1,) * len(kernel)
    del source
    return [
        i * op.stride[axis] - op.padding[axis][0] + a * dilation[axis]
        for i, a in itertools.product(range(node.shape[axis + 1]), range(kernel[axis]))
    ]


def zeros_outside(network, torus: Torus):
    """For every node a boolean map of its torus: where the layout lets it be zero, given free slopes."""
    held = []
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        sides = torus.sides[torus.level[index]]
        window = np.zeros(sides, dtype=bool)
        window[tuple(slice(0, n) for n in node.shape[1:])] = True
        sources = [held[i] for i in node.inputs]
        if index in torus.masked:
            sources = [masked(network, torus, i) for i in node.inputs]
        held.append(zero_map(network, node, index, torus, window, sources))
    return held


def masked(network, torus, index):
    window = np.zeros(torus.sides[torus.level[index]], dtype=bool)
    window[tuple(slice(0, n) for n in network.nodes[index].shape[1:])] = True
    return ~window


def zero_map(network, node, index, torus, window, sources):
    op, sides = node.op, window.shape
    if not node.inputs:
        return ~window
    if isinstance(op, Conv | AvgPool | MaxPool):
        kernel = network.weights[op.weight].shape[2:] if isinstance(op, Conv) else op.kernel
        dilation = (1,) * len(kernel) if isinstance(op, AvgPool) else op.dilation
        taps = []
        for offset in itertools.product(*(range(k) for k in kernel)):
            reads = [
                (np.arange(side) * s - pad[0] + o * d) % fine
                for side, s, pad, o, d, fine in zip(
                    sides, op.stride, op.padding, offset, dilation, sources[0].shape, strict=True
                )
            ]
            taps.append(sources[0][np.ix_(*reads)])
        # A maximum may choose (one axis after the other, which is why lines of zeros count), a sum may not.
        if not isinstance(op, MaxPool):
            return np.logical_and.reduce(taps)
        return np.logical_or.reduce(taps)
    if isinstance(op, Pad):
        shift = [pad[0] for pad in op.padding]
        return np.roll(sources[0], shift, axis=tuple(range(len(shift))))
    together = np.logical_and.reduce(sources)
    if hasattr(op, "lower"):
        zero_slope = index in torus.widened or max(op.lower) <= 0.0 <= min(op.upper)
        return together | (~window if zero_slope else False)
    return together


@settings(max_examples=200, deadline=None, derandomize=True)
@given(networks(tail=False, limit=10**6, layers=7))
def test_every_layer_finds_zeros_where_it_counts_on_them(network):
    try:
        torus = lay_out(network)
    except PlanError:
        assume(False)
    held = zeros_outside(network, torus)
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        sides = torus.sides[torus.level[index]]
        assert all(n <= side for n, side in zip(node.shape[1:], sides, strict=True))
        assert all(side % coarse == 0 for side, coarse in zip(sides, torus.coarse, strict=True))
        if not isinstance(node.op, Conv | AvgPool | Pad):
            continue
        source = node.inputs[0]
        zero = masked(network, torus, source) if index in torus.masked else held[source]
        fine = torus.sides[torus.level[source]]
        for axis, side in enumerate(fine):
            extent = network.nodes[source].shape[axis + 1]
            reads = read_positions(network, node, axis)
            outside = sorted({read for read in reads if not 0 <= read < extent})
            assert not {read % side for read in outside} & set(range(extent)), "a read wraps onto the map"
            assert bool(outside) <= reads_outside(network, index)
            for read in outside:
                assert np.take(zero, read % side, axis=axis).all(), "a read finds something outside"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(networks(tail=False, limit=10**6, layers=5))
def test_every_cut_can_be_laid_out_and_needs_no_more_than_the_next(network):
    cuts = torus_cuts(network)
    assert set(cuts) <= {0, *cut_positions(network)}
    sides = (0,) * (len(network.input_shape) - 1)
    for cut in cuts:
        try:
            torus = lay_out(network, cut)
        except PlanError:
            break
        assert torus.cut == cut
        assert len(torus.level) == cut + 1
        assert all(0 <= node <= cut for node in torus.widened | torus.masked)
        assert all(a <= b for a, b in zip(sides, torus.sides[0], strict=True))
        sides = torus.sides[0]

"""What tori are expected to cost follows what the recursion does on them."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings

from lipray.errors import PlanError
from lipray.partition.torus_cost import torus_cost
from lipray.verify.torus.groups import half_plane
from lipray.verify.torus.head import find_head
from lipray.verify.torus.layout import lay_out, torus_cuts
from lipray.verify.torus.sweep import pose
from tests.maps import Maps, resnet18
from tests.networks import networks


def cost(maps):
    network = maps.network()
    return torus_cost(network, lay_out(network))


def chain(size, channels, layers=3, stride=1):
    maps = Maps(channels, size, size)
    for i in range(layers):
        maps.conv(channels, padding=1, stride=stride if i == 1 else 1)
        maps.act()
    return maps


@settings(max_examples=60, deadline=None)
@given(networks())
def test_layers_and_groups_are_those_of_the_recursion(network):
    assume(torus_cuts(network))
    try:
        torus = lay_out(network)
    except PlanError:
        assume(condition=False)
    found = torus_cost(network, torus)
    posed = pose(network, torus, find_head(network, torus, window=False))
    assert found.widths == posed.widths
    assert found.groups == len(half_plane(torus.coarse))


def test_a_resnet_has_the_layers_of_its_recursion():
    for maps in (resnet18(32, cifar=True), resnet18(32, cifar=False)):
        network = maps.network()
        torus = lay_out(network)
        assert torus_cost(network, torus).widths == pose(network, torus, None).widths


def test_work_grows_with_the_cube_of_the_channels_and_with_the_area():
    narrow, wide = cost(chain(14, 16)), cost(chain(14, 32))
    assert 7.0 < wide.operations / narrow.operations < 8.5
    assert 3.5 < wide.memory / narrow.memory < 4.5
    # Large enough for the fixed time of a pass not to count.
    small, large = cost(chain(30, 64)), cost(chain(62, 64))
    assert large.pass_seconds / small.pass_seconds == pytest.approx((large.groups / small.groups), rel=0.5)


def test_depth_costs_a_gradient_memory_and_a_sweep_next_to_none():
    few, many = cost(chain(14, 16, layers=4)), cost(chain(14, 16, layers=40))
    assert many.memory > 5 * few.memory
    assert many.operations == pytest.approx(10 * few.operations, rel=0.3)


def test_one_group_holds_all_finer_frequencies_that_alias_to_it():
    plain, strided = cost(chain(16, 8)), cost(chain(16, 8, stride=2))
    assert strided.operations > 2 * plain.operations
    assert strided.groups < plain.groups
    assert math.isclose(strided.groups * strided.operations, plain.groups * plain.operations, rel_tol=0.8)


def test_estimates_are_finite_and_positive():
    found = cost(chain(5, 1, layers=1))
    assert np.isfinite([found.memory, found.sweep_memory, found.closed_form_seconds, found.round_seconds]).all()
    assert min(found.memory, found.sweep_memory, found.pass_seconds) > 0

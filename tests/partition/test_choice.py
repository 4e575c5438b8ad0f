"""Which method a block gets, and what a user is told where a method on tori does not fit."""

from dataclasses import replace

import pytest

from lipray.errors import PlanError, UsageError
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings
from lipray.partition.switch import choose_switch
from lipray.partition.worklist import subproblems
from tests.maps import Maps, resnet18


def chain(size=14, channels=8, layers=3, classes=10):
    maps = Maps(1, size, size)
    for _ in range(layers):
        maps.conv(channels, padding=1)
        maps.act()
    maps.flatten()
    maps.dense(classes)
    return maps.network()


def plan(network, method="auto", depth=None, *, factor=None, hand_over=False, **settings):
    return plan_network(
        network,
        method=method,
        settings=Settings(**settings),
        block_depth=depth,
        partition_factor=factor,
        hand_over=hand_over,
    )


def methods(made):
    return [block.method for block in made.blocks]


def test_what_the_interior_point_method_solves_stays_with_it():
    made = plan(chain(size=8, channels=4))
    assert methods(made) == ["ellipsoid"]
    assert "order" in made.blocks[0].reason
    assert made.blocks[0].torus is None
    explicit = plan(chain(size=8, channels=4), "ellipsoid")
    assert [tile.key for tile in made.blocks[0].tiles] == [tile.key for tile in explicit.blocks[0].tiles]


def test_larger_maps_go_on_tori_as_one_block():
    network = resnet18(32, cifar=True).network()
    made = plan(network, switch="none")
    assert len(made.blocks) == 1
    assert made.blocks[0].network is network
    assert made.blocks[0].torus.sides == ((40, 40), (20, 20), (10, 10), (5, 5))
    assert made.method == "auto"
    [product, problem] = subproblems(made)
    assert (product.method, problem.method) == ("product", made.blocks[0].method)
    assert problem.settings.switch == "none"
    free = plan(network)
    assert len(free.blocks) == 1
    assert free.blocks[0].settings.switch == free.blocks[0].torus.switch


def test_a_small_window_makes_it_hybrid_and_none_makes_it_frequency():
    maps = Maps(3, 40, 40)
    maps.conv(8, padding=1)
    maps.act()
    maps.conv(8, padding=1, stride=4)
    maps.act()
    maps.conv(8, padding=1)
    maps.act()
    maps.flatten()
    maps.dense(10)
    made = plan(maps.network())
    assert methods(made) == ["hybrid"]
    cut = choose_switch(maps.network(), Settings(), "hybrid")
    assert made.blocks[0].torus.switch == maps.nodes[cut].name
    assert made.blocks[0].torus.tail_memory > 0
    large = plan(chain(size=40, channels=8))
    assert methods(large) == ["frequency"]
    assert large.blocks[0].torus.switch is None


def test_dense_networks_and_tiles_stay_with_the_ellipsoid_method():
    dense = Maps(4)
    dense.dense(3000)
    dense.act()
    dense.dense(10)
    assert methods(plan(dense.network())) == ["ellipsoid"]
    assert "torus" in plan(dense.network()).blocks[0].reason
    tiled = plan(chain(), factor=2)
    assert set(methods(tiled)) == {"ellipsoid"}
    with pytest.raises(PlanError, match="does not tile"):
        plan(chain(), "frequency", factor=2)


def test_a_block_depth_cuts_and_handing_over_does_not():
    network = chain(size=20, layers=4)
    cut = plan(network, "frequency", 2)
    assert len(cut.blocks) == 2
    assert methods(cut) == ["frequency", "frequency"]
    assert methods(plan(network, "frequency", 2, hand_over=True)) == ["frequency"]
    last = Maps(1, 20, 20)
    last.conv(4, padding=1)
    last.act()
    last.flatten()
    last.dense(30)
    last.act()
    last.dense(5)
    assert methods(plan(last.network(), "frequency", 1)) == ["frequency", "ellipsoid"]


def test_a_torus_that_does_not_fit_is_refused_with_figures_and_a_remedy():
    network = chain(size=30, channels=16)
    needed = plan(network, "frequency").blocks[0].torus.group_memory
    assert len(plan(network, "frequency", memory=needed).blocks) == 1
    with pytest.raises(PlanError) as caught:
        plan(network, "frequency", memory=needed - 1)
    text = str(caught.value)
    assert "31×31" in text or "×" in text
    assert "GiB" in text
    for remedy in ("--memory", "--block-depth", "--method product"):
        assert remedy in text
    fallen = plan(network, memory=needed - 1)
    assert "torus" in fallen.blocks[0].reason or "tori" in fallen.blocks[0].reason
    assert set(methods(fallen)) == {"ellipsoid"}


def test_the_remedy_for_too_little_memory_is_enough():
    network = chain(size=30, channels=16)
    with pytest.raises(PlanError) as caught:
        plan(network, "frequency", memory=1000)
    words = caught.value.hint.split()
    named = words[words.index("--memory") + 1].rstrip(",")
    assert named.endswith("MiB")
    assert plan(network, "frequency", memory=int(named.removesuffix("MiB")) * 2**20).blocks


def test_a_switch_is_found_by_name_and_number_and_resolved_in_its_block():
    network = chain(size=20, layers=4)
    names = [node.name for node in network.nodes]
    for wish in (names[4], "4"):
        made = plan(network, switch=wish)
        assert methods(made) == ["hybrid"]
        assert made.blocks[0].torus.switch == names[4]
        assert made.blocks[0].settings.switch == names[4]
    assert methods(plan(network, switch="none")) == ["frequency"]
    parts = plan(network, "hybrid", 2, switch=names[2])
    assert parts.blocks[0].torus.switch == names[2]
    assert parts.blocks[1].settings.switch != names[2]


@pytest.mark.parametrize("wish", ["nowhere", "99", "-1"])
def test_an_unknown_switch_lists_those_there_are(wish):
    network = chain(size=20, layers=2)
    for method in ("auto", "hybrid"):
        with pytest.raises(UsageError) as caught:
            plan(network, method, switch=wish)
        assert caught.value.argument == "--switch"
        assert network.nodes[2].name in caught.value.hint
        assert "none" in caught.value.hint


def test_a_switch_inside_a_residual_block_is_refused():
    network = resnet18(32, cifar=True).network()
    inside = next(i for i, node in enumerate(network.nodes) if len(node.inputs) == 2) - 1
    with pytest.raises(UsageError, match="cannot be left after"):
        plan(network, switch=network.nodes[inside].name)


def test_a_name_wins_over_a_number():
    network = chain(size=20, layers=2)
    nodes = [replace(node, name=str(len(network.nodes) - i)) for i, node in enumerate(network.nodes)]
    renamed = replace(network, nodes=tuple(nodes))
    assert choose_switch(renamed, Settings(switch=nodes[2].name), "hybrid") == 2


def test_a_method_on_tori_needs_maps():
    dense = Maps(4)
    dense.dense(4)
    for method in ("frequency", "hybrid"):
        with pytest.raises(PlanError, match="torus"):
            plan(dense.network(), method)

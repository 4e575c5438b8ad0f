import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.certify.certificate import Certificate, Status
from lipray.compose.compose import compose
from lipray.errors import SolveError, UsageError
from lipray.model.network import Activation, Conv, Dense, Input, Network, Node, Reshape
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings
from lipray.partition.worklist import worklist

RELU = Activation("relu", (0.0,), (1.0,))


def network():
    rng = np.random.default_rng(5)
    conv = {i: Conv(f"w{i}", None, (1, 1), ((1, 1), (1, 1)), (1, 1)) for i in (1, 2)}
    nodes = (
        Node("x", Input(), (), (2, 9, 9)),
        Node("conv1", conv[1], (0,), (2, 9, 9)),
        Node("relu1", RELU, (1,), (2, 9, 9)),
        Node("conv2", conv[2], (2,), (2, 9, 9)),
        Node("relu2", RELU, (3,), (2, 9, 9)),
        Node("flat", Reshape(), (4,), (162,)),
        Node("fc", Dense("fc", None), (5,), (3,)),
    )
    weights = {
        "w1": rng.normal(size=(2, 2, 3, 3)),
        "w2": rng.normal(size=(2, 2, 3, 3)),
        "fc": rng.normal(size=(3, 162)),
    }
    return Network(nodes, weights)


PLAN = plan_network(network(), settings=Settings(), partition_factor=3)
WORK = worklist(PLAN)
TILES = PLAN.blocks[0].tiles
TILE_KEYS = list(dict.fromkeys(WORK.tiles[tile.key] for tile in TILES))
TAIL_KEY = WORK.tiles[PLAN.blocks[1].tiles[0].key]


def certificate(key, bound):
    return Certificate(key, WORK.by_key[key].method, bound, Status.CONVERGED)


def certificates(tile=1.0, tail=2.0, products=(100.0, 50.0)):
    values = dict.fromkeys(TILE_KEYS, tile) | {TAIL_KEY: tail} | dict(zip(WORK.products, products, strict=True))
    return {key: certificate(key, value) for key, value in values.items()}


def test_blocks_take_the_requested_composition_and_multiply():
    assert len(TILE_KEYS) == 9
    bound = compose(PLAN, certificates())
    head, tail = bound.blocks
    # Tiles of 3 positions read 2 more on either side: the central pixel is read by all nine.
    assert head.alternatives["overlap"] == pytest.approx(3.0, rel=1e-14)
    assert head.alternatives["sum"] == pytest.approx(3.0, rel=1e-14)
    assert head.alternatives["product"] == 100.0
    assert (head.source, head.subproblems, head.distinct, head.fallbacks) == ("overlap", 9, 9, ())
    assert tail.alternatives == {"ellipsoid": 2.0, "product": 50.0}
    assert (tail.source, tail.upper) == ("ellipsoid", 2.0)
    assert bound.upper == pytest.approx(6.0, rel=1e-14)
    assert Fraction(bound.upper) >= 6
    assert bound.lower == 0.0
    assert bound.figures["product"] == pytest.approx(5000.0)
    assert set(bound.certificate) == set(WORK.by_key)


def test_sum_and_overlap_side_by_side():
    plan = plan_network(network(), settings=Settings(), partition_factor=9)
    known = {key: Certificate(key, p.method, 1.0, Status.CONVERGED) for key, p in worklist(plan).by_key.items()}
    for key in worklist(plan).products:
        known[key] = replace(known[key], bound=100.0)
    by_overlap, by_sum = (compose(plan, known, composition=name).blocks[0] for name in ("overlap", "sum"))
    assert by_overlap.alternatives == by_sum.alternatives
    # 81 tiles of one position, 25 of which read the same pixel.
    assert (by_sum.source, by_sum.upper) == ("sum", pytest.approx(9.0, rel=1e-14))
    assert (by_overlap.source, by_overlap.upper) == ("overlap", pytest.approx(5.0, rel=1e-14))


def test_translates_count_every_time():
    nodes = network().nodes
    valid = Network(
        (
            nodes[0],
            replace(nodes[1], op=replace(nodes[1].op, padding=((0, 0),) * 2), shape=(2, 7, 7)),
            replace(nodes[2], shape=(2, 7, 7)),
            replace(nodes[3], op=replace(nodes[3].op, padding=((-1, 0),) * 2), shape=(2, 4, 4)),
        ),
        network().weights,
    )
    plan = plan_network(valid, settings=Settings(), partition_factor=4)
    work = worklist(plan)
    assert len(plan.blocks[0].tiles) == 16
    assert len(work.tiles) == 1
    bound = compose(plan, {key: Certificate(key, p.method, 9.0, Status.CONVERGED) for key, p in work.by_key.items()})
    assert bound.blocks[0].alternatives["sum"] == pytest.approx(36.0, rel=1e-14)
    assert (bound.blocks[0].source, bound.upper) == ("product", 9.0)
    assert (bound.blocks[0].subproblems, bound.blocks[0].distinct) == (16, 1)


def test_the_product_is_used_where_it_is_smaller():
    bound = compose(PLAN, certificates(products=(2.5, 1.5)), composition="sum")
    assert [block.source for block in bound.blocks] == ["product", "product"]
    assert [block.upper for block in bound.blocks] == [2.5, 1.5]


def test_a_missing_tile_gets_the_blocks_product_bound_and_is_named():
    known = certificates(products=(4.0, 50.0))
    del known[WORK.tiles[TILES[4].key]]
    head = compose(PLAN, known).blocks[0]
    assert head.fallbacks == ("block1/tile5",)
    assert head.alternatives["sum"] == pytest.approx(math.sqrt(8 + 16), rel=1e-14)
    assert head.upper == 4.0
    del known[TAIL_KEY]
    tail = compose(PLAN, known).blocks[1]
    assert tail.alternatives == {"product": 50.0}
    assert tail.fallbacks == ("block2 [flat..fc]",)


def test_only_products_is_the_product_bound():
    known = {key: certificates()[key] for key in WORK.products}
    assert compose(PLAN, known).upper == pytest.approx(5000.0)
    products = [known[key] for key in WORK.products]
    assert compose(PLAN, {}, products).upper == pytest.approx(5000.0)


def test_products_given_apart_stand_beside_the_certificates():
    known = certificates()
    products = [known.pop(key) for key in WORK.products]
    assert compose(PLAN, known, products, work=WORK) == compose(PLAN, certificates())


def test_neither_tile_nor_product_is_an_error():
    known = certificates()
    del known[WORK.products[0]]
    assert compose(PLAN, known).blocks[0].alternatives.keys() == {"overlap", "sum"}
    del known[WORK.tiles[TILES[2].key]]
    with pytest.raises(SolveError, match="block1/tile3"):
        compose(PLAN, known)


def test_a_block_left_to_its_product_bound():
    plan = plan_network(network(), settings=Settings(memory=1), block_depth=3)
    assert [block.tiles for block in plan.blocks] == [(), ()]
    work = worklist(plan)
    known = {key: Certificate(key, "product", 3.0, Status.CLOSED_FORM) for key in work.by_key}
    bound = compose(plan, known)
    assert bound.upper == pytest.approx(9.0)
    assert {block.source for block in bound.blocks} == {"product"}
    with pytest.raises(SolveError, match="block1"):
        compose(plan, {})


@pytest.mark.parametrize("wrong", [math.nan, -1.0, -math.inf])
@pytest.mark.parametrize("key", [TILE_KEYS[3], TAIL_KEY, WORK.products[1]])
def test_numbers_that_bound_nothing_are_refused(wrong, key):
    known = certificates()
    known[key] = certificate(key, wrong)
    with pytest.raises(SolveError, match="no upper bound"):
        compose(PLAN, known)


def test_infinite_and_zero_bounds():
    assert compose(PLAN, certificates(tile=math.inf)).blocks[0].source == "product"
    assert compose(PLAN, certificates(tile=math.inf, products=(math.inf, 50.0))).upper == math.inf
    assert compose(PLAN, certificates(tile=math.inf, products=(math.inf, 50.0), tail=0.0)).upper == 0.0
    assert compose(PLAN, certificates(tile=0.0)).upper == 0.0


def test_a_certificate_under_a_foreign_key_is_refused():
    known = certificates()
    known[TILE_KEYS[0]] = known[TILE_KEYS[1]]
    with pytest.raises(SolveError, match="belongs"):
        compose(PLAN, known)


def test_an_unknown_composition_is_refused():
    with pytest.raises(UsageError, match="maximum"):
        compose(PLAN, certificates(), composition="maximum")
    with pytest.raises(UsageError, match="products"):
        compose(PLAN, certificates(), [None])


@settings(max_examples=40, deadline=None)
@given(st.randoms(), st.lists(st.floats(1e-3, 1e3), min_size=len(WORK.by_key), max_size=len(WORK.by_key)))
def test_the_order_of_arrival_changes_nothing(random, values):
    items = [(key, certificate(key, value)) for key, value in zip(WORK.by_key, values, strict=True)]
    first = compose(PLAN, dict(items), work=WORK)
    random.shuffle(items)
    second = compose(PLAN, dict(items), work=WORK)
    assert first == second
    assert list(first.certificate) == list(second.certificate)
    assert list(first.figures) == list(second.figures)

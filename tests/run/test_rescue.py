"""Sub-problems that fail are tried another way: smaller tiles, closed forms, and only then the product bound."""

import pytest

from lipray.config import EstimateConfig
from lipray.partition.finer import coarser, finer
from lipray.partition.subproblem import Subproblem
from lipray.run.driver import estimate_network, make_plan
from lipray.run.executor import Failure
from lipray.run.serial import SerialExecutor
from lipray.run.session import certificate_files
from lipray.run.store.solved import open_store
from lipray.verify.check import verify
from lipray.verify.record import decode, expected_arrays, unpack
from tests.maps import Maps


def network():
    maps = Maps(1, 12, 12, seed=5)
    maps.conv(3, padding=1)
    maps.act()
    maps.conv(3, padding=1)
    maps.act()
    maps.conv(3, padding=1)
    maps.act()
    return maps.network()


NETWORK = network()
TILES = {
    "method": "ellipsoid",
    "partition_factor": 2,
    "iterations": 3,
    "lower_starts": 2,
    "executor": "serial",
    "composition": "overlap",
}


class Fails(SerialExecutor):
    """Sub-problems whose label passes a test fail; what is tried is remembered."""

    def __init__(self, wrong):
        super().__init__(1)
        self.wrong, self.tried = wrong, []

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            if isinstance(task.work, Subproblem):
                self.tried.append(task.label)
                if self.wrong(task.label):
                    yield Failure(task, "Stuck", "it hung", 3)
                    continue
            yield from super().run([task], keep=keep, deadline=deadline)


def run(wrong, store=None, **options):
    place = Fails(wrong)
    config = EstimateConfig(**(TILES | options))
    outcome = estimate_network(NETWORK, config, place, store=store)
    first, second = certificate_files(NETWORK, config, outcome)
    record = decode("certificate.json", first)
    verdict = verify(record, unpack("certificate.npz", second, expected_arrays(record)), NETWORK)
    assert verdict.bound == outcome.bound.upper
    assert 0.0 < outcome.bound.lower <= outcome.bound.upper
    return outcome, place.tried


@pytest.fixture(scope="module")
def whole():
    return run(lambda _: False)


def test_without_failures_nothing_more_is_tried(whole):
    outcome, tried = whole
    assert outcome.complete
    assert not [label for label in tried if "closed form" in label or "-" in label]


def test_a_tile_that_fails_is_cut_smaller(whole):
    outcome, tried = run(lambda label: label == "block1/tile3")
    assert tried[len(whole[1]) :] == [f"block1/tile3-{number}" for number in range(1, 5)]
    (block,) = outcome.plan.blocks
    assert [tile.label for tile in block.tiles] == [
        "block1/tile1",
        "block1/tile2",
        *(f"block1/tile3-{number}" for number in range(1, 5)),
        "block1/tile4",
    ]
    assert not outcome.bound.blocks[0].fallbacks
    assert [failure.task.label for failure in outcome.failures] == ["block1/tile3"]
    assert not outcome.complete


def test_where_a_part_fails_too_the_tile_has_its_closed_form(whole):
    outcome, tried = run(lambda label: label.startswith("block1/tile3") and "closed" not in label)
    assert tried[-1] == "block1/tile3 closed form"
    (block,) = outcome.plan.blocks
    assert len(block.tiles) == 4
    assert not outcome.bound.blocks[0].fallbacks
    tiles = outcome.bound.blocks[0].alternatives
    assert tiles["overlap"] >= whole[0].bound.blocks[0].alternatives["overlap"]


def test_what_no_way_leads_to_has_the_product_bound(whole):
    outcome, _ = run(lambda label: label.startswith("block1/tile3"))
    assert outcome.bound.blocks[0].fallbacks == ("block1/tile3",)
    assert outcome.bound.upper >= whole[0].bound.upper


def test_a_block_solved_whole_has_its_closed_form():
    outcome, tried = run(lambda label: "closed" not in label and "product" not in label, partition_factor=1)
    assert tried[-1].endswith("closed form")
    (block,) = outcome.bound.blocks
    assert block.alternatives["ellipsoid"] < block.alternatives["product"]
    assert not block.fallbacks


def test_a_closed_form_in_the_place_of_an_answer_is_no_answer(tmp_path):
    """What a store keeps of it is a bound to begin with: the next run solves the problem."""
    wrong = lambda label: label.startswith("block1/tile3") and "closed" not in label  # noqa: E731 - a predicate
    run(wrong, store=open_store(str(tmp_path)))
    outcome, tried = run(lambda _: False, store=open_store(str(tmp_path)))
    assert "block1/tile3" in tried
    assert outcome.complete


def test_when_a_budget_is_spent_nothing_more_is_tried():
    _, tried = run(lambda label: label == "block1/tile3", budget=1e-3)
    assert not [label for label in tried if "tile3-" in label or "closed" in label]


def test_finer_plans_cover_the_map_and_come_back():
    plan = make_plan(NETWORK, EstimateConfig(**TILES))
    (block,) = plan.blocks
    for chosen in ({block.tiles[0].key}, {tile.key for tile in block.tiles}):
        smaller = finer(plan, chosen)
        cells = [
            (i, j) for tile in smaller.blocks[0].tiles for i in range(*tile.output[0]) for j in range(*tile.output[1])
        ]
        assert sorted(cells) == [(i, j) for i in range(12) for j in range(12)]
        assert len(smaller.blocks[0].tiles) > len(block.tiles)
        assert coarser(smaller, plan, {tile.key for tile in smaller.blocks[0].tiles}) == plan
        assert coarser(smaller, plan, set()) == smaller
    assert finer(plan, {"not a tile"}) == plan

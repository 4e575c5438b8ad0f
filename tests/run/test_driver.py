"""The driver: whatever comes back, in whatever order, the answer is a bound, and it says what it rests on."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from lipray.certify.certificate import Certificate, Status
from lipray.config import EstimateConfig
from lipray.errors import InfeasibleResourcesError, SolveError, UsageError
from lipray.model.network import Activation, Conv, Dense, Input, Network, Node, Reshape
from lipray.partition.subproblem import Subproblem
from lipray.run import budget, serial
from lipray.run.budget import OUT_OF_TIME, Clock
from lipray.run.driver import estimate_network, make_plan
from lipray.run.events import LowerBoundImproved, PlanReady, TaskDone
from lipray.run.executor import Done, Failure, attempt
from lipray.run.lower_bound import Ascent, Witness
from lipray.run.serial import SerialExecutor
from lipray.run.summary import describe_model, summarise
from lipray.run.tasks import read_data

PRODUCT, TILE = 10.0, 2.0
SMALL_TILES = {
    "executor": "serial",
    "lower_starts": 4,
    "method": "ellipsoid",
    "composition": "overlap",
    "partition_factor": 2,
}


def convolutions():
    draw = np.random.default_rng(0)
    weights = {
        "w0": draw.standard_normal((2, 1, 3, 3)),
        "w1": draw.standard_normal((2, 2, 3, 3)),
        "w2": np.ones((3, 72)),
    }
    pad, one = ((1, 1), (1, 1)), (1, 1)
    nodes = (
        Node("x", Input(), (), (1, 6, 6)),
        Node("c0", Conv("w0", None, one, pad, one), (0,), (2, 6, 6)),
        Node("a0", Activation("relu", (0.0,), (1.0,)), (1,), (2, 6, 6)),
        Node("c1", Conv("w1", None, one, pad, one), (2,), (2, 6, 6)),
        Node("a1", Activation("relu", (0.0,), (1.0,)), (3,), (2, 6, 6)),
        Node("flat", Reshape(), (4,), (72,)),
        Node("fc", Dense("w2", None), (5,), (3,)),
    )
    return Network(nodes, weights)


class Fake:
    """An executor that certifies by decree: products 10, tiles 2; what is in ``fail`` fails."""

    name = "fake"
    description = "nowhere"

    def __init__(self, fail=(), seed=None, quotients=(0.5, 0.25)):
        self.fail, self.seed, self.quotients = fail, seed, list(quotients)
        self.tasks = None

    def check(self, tasks):
        self.tasks = tasks

    def width(self, device):
        return 1 if device == "cpu" else 0

    def run(self, tasks, *, keep=False, **_):
        assert not keep
        tasks = list(tasks)
        if self.seed is not None:
            np.random.default_rng(self.seed).shuffle(tasks)
        for task in tasks:
            plain = task.label.replace(" product", "") if "product" not in self.fail else task.label
            if plain == task.label and any(word in plain for word in self.fail):
                yield Failure(task, "WorkerCrashedError", "the worker died", 3)
            elif isinstance(task.work, Ascent):
                number = int(task.label.split("/")[1])
                yield Done(task, Witness(self.quotients[number], np.ones((1, 6, 6)), np.zeros((1, 6, 6))), 1.0)
            else:
                bound = PRODUCT if task.work.method == "product" else TILE
                yield Done(task, Certificate(task.key, task.work.method, bound, Status.CONVERGED), 0.5)

    def listen(self, notify):
        pass

    def release(self):
        pass

    def close(self):
        pass


def run(executor, **options):
    events = []
    config = EstimateConfig(**({"partition_factor": 2, "lower_starts": 32, "composition": "overlap"} | options))
    outcome = estimate_network(convolutions(), config, executor, events.append)
    return outcome, events


def test_all_goes_well():
    outcome, events = run(Fake())
    bound = outcome.bound
    assert bound.lower == 0.5
    assert bound.upper < PRODUCT ** len(bound.blocks)
    assert bound.witness is not None
    assert not outcome.failures
    assert isinstance(events[0], PlanReady)
    ends = [event for event in events if isinstance(event, TaskDone)]
    assert [event.done for event in ends] == list(range(1, events[0].tasks + 1))
    assert ends[-1].upper == bound.upper
    assert ends[-1].lower == bound.lower
    assert ends[-1].share == 1.0
    assert all(0 < a.share <= b.share for a, b in itertools.pairwise(ends))
    known = [event.upper for event in ends if event.upper is not None]
    assert known == sorted(known, reverse=True)
    assert [event.lower for event in events if isinstance(event, LowerBoundImproved)] == [0.5]


def test_order_of_arrival_does_not_matter():
    first = run(Fake(seed=1))[0].bound
    for seed in range(2, 6):
        other = run(Fake(seed=seed))[0].bound
        assert (other.upper, other.lower, other.blocks) == (first.upper, first.lower, first.blocks)


def test_products_are_started_first_and_translates_solved_once():
    executor = Fake()
    outcome, _ = run(executor)
    methods = [getattr(task.work, "method", "lower") for task in executor.tasks]
    blocks = outcome.plan.blocks
    assert methods[: len(blocks)] == ["product"] * len(blocks)
    keys = [task.key for task in executor.tasks]
    assert len(keys) == len(set(keys))
    seconds = [task.seconds for task in executor.tasks[len(blocks) :]]
    assert seconds == sorted(seconds, reverse=True)


def test_failed_tiles_fall_back_and_are_reported():
    clean, _ = run(Fake())
    outcome, events = run(Fake(fail=("tile1",)))
    assert clean.bound.upper < outcome.bound.upper <= PRODUCT ** len(outcome.plan.blocks)
    assert {failure.attempts for failure in outcome.failures} == {3}
    fallbacks = [label for block in outcome.bound.blocks for label in block.fallbacks]
    assert "block1/tile1" in fallbacks
    assert any(isinstance(event, TaskDone) and event.failure for event in events)
    result = summarise(outcome, describe_model(convolutions(), "net"), composition="overlap", executor="fake")
    # Smaller tiles and the closed form were tried, and failed too.
    assert result.failures[0].label == "block1/tile1"
    assert result.failures[-1].label == "block1/tile1 closed form"
    assert all(failure.label.startswith("block1/tile1") for failure in result.failures)
    row = next(row for row in result.subproblems if row.label == "block1/tile1")
    assert row.status == "missing"
    assert "the worker died" in row.failure
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_a_budget_that_is_spent_leaves_the_product_bound_and_a_lower_one():
    spent = Clock(10.0, time.monotonic() - 100.0)
    told = []
    asked = EstimateConfig(**SMALL_TILES, budget=10.0)
    outcome = estimate_network(convolutions(), asked, SerialExecutor(1), told.append, clock=spent)
    tiles = {event.label: event.failure for event in told if isinstance(event, TaskDone) and event.failure}
    assert tiles
    assert all("its time was spent" in why for why in tiles.values())
    assert {failure.kind for failure in outcome.failures} == {OUT_OF_TIME}
    assert {item.label for item in (failure.task for failure in outcome.failures)} == set(tiles)
    # What a budget leaves no time for is no fault.
    assert outcome.complete
    product = EstimateConfig(executor="serial", lower_starts=0, method="product")
    upper = estimate_network(convolutions(), product, SerialExecutor(1)).bound.upper
    assert outcome.bound.upper == pytest.approx(upper, rel=1e-12)
    assert 0.0 < outcome.bound.lower <= outcome.bound.upper


def test_sub_problems_begun_before_a_budget_is_spent_count(monkeypatch):
    """The clock runs out while the first tile is solved: that one stands, the others are late."""
    monkeypatch.setattr(budget, "LEAST_GRACE", 0.0)
    clock = Clock.begin(5.0)
    solved = []

    def slow(task):
        outcome = attempt(task)
        if isinstance(task.work, Subproblem) and task.work.method != "product":
            solved.append(task.key)
            time.sleep(max(0.0, clock.deadline - time.monotonic()))
        return outcome

    monkeypatch.setattr(serial, "attempt", slow)
    asked = EstimateConfig(**SMALL_TILES, budget=5.0)
    outcome = estimate_network(convolutions(), asked, SerialExecutor(1), clock=clock)
    assert len(solved) == 1
    tiles = set(outcome.work.tiles.values()) - set(outcome.work.products)
    assert {failure.task.key for failure in outcome.failures} == tiles - set(solved)
    assert {failure.kind for failure in outcome.failures} == {OUT_OF_TIME}


def test_all_tiles_failed_is_the_product_bound():
    outcome, _ = run(Fake(fail=("tile", "fc]")))
    assert outcome.bound.upper <= math.nextafter(PRODUCT ** len(outcome.plan.blocks), math.inf) * (1 + 1e-12)
    assert all(block.source == "product" for block in outcome.bound.blocks)


def test_a_failed_product_is_harmless_while_the_tiles_stand():
    outcome, _ = run(Fake(fail=("product",)))
    assert outcome.bound.upper > 0
    assert all(block.source != "product" for block in outcome.bound.blocks)


def test_nothing_certified_is_an_error():
    with pytest.raises(SolveError):
        run(Fake(fail=("tile1", "product")))


def test_bounds_that_contradict_are_an_error():
    with pytest.raises(SolveError, match="exceeds the upper bound"):
        run(Fake(quotients=(1e9, 0.1)))


def test_failed_search_leaves_the_lower_bound_at_zero():
    outcome, _ = run(Fake(fail=("lower",)))
    assert outcome.bound.lower == 0.0
    assert outcome.bound.witness is None
    assert math.isinf(outcome.bound.gap)
    result = summarise(outcome, describe_model(convolutions(), "net"), composition="overlap", executor="fake")
    assert result.gap is None
    assert "Infinity" not in result.model_dump_json()


def test_composition_is_the_one_asked_for():
    overlap, total = (run(Fake(), composition=name)[0].bound for name in ("overlap", "sum"))
    assert {"overlap", "sum", "product"} <= set(overlap.blocks[0].alternatives)
    assert overlap.blocks[0].source == "overlap"
    assert total.blocks[0].source == "sum"
    assert overlap.upper <= total.upper


def test_no_lower_bound_sought():
    executor = Fake()
    outcome, _ = run(executor, lower_starts=0)
    assert not [task for task in executor.tasks if isinstance(task.work, Ascent)]
    assert outcome.bound.lower == 0.0


def test_refused_before_anything_runs():
    class Small(Fake):
        def check(self, tasks):
            raise InfeasibleResourcesError(tasks[0].label, 2**40, 2**30)

        def run(self, tasks, *, keep=False, **_):
            raise AssertionError(f"{len(tasks)} tasks were submitted, {keep}")

    with pytest.raises(InfeasibleResourcesError, match=r"1024\.00 GiB.*1\.00 GiB"):
        run(Small())


def test_settings_reach_the_plan():
    config = EstimateConfig(method="sdp", iterations=3, tolerance=1e-3, time_limit=7.0, memory="1GiB", block_depth=1)
    plan = make_plan(convolutions(), config)
    assert plan.method == "sdp"
    assert (plan.settings.iterations, plan.settings.tolerance) == (3, 1e-3)
    assert (plan.settings.time_limit, plan.settings.memory) == (7.0, 2**30)
    assert plan.block_depth == 1
    assert len(plan.blocks) > 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        (b"no array", "plain .npy"),
        (np.zeros((4, 1, 5, 6)), "has shape"),
        (np.zeros((0, 1, 6, 6)), "has shape"),
        (np.full((2, 1, 6, 6), np.nan), "NaN"),
        (np.array([{"a": 1}], dtype=object), "plain .npy"),
        (np.array(["text"]), "no array of numbers"),
    ],
)
def test_bad_data_is_refused(tmp_path, content, why):
    path = tmp_path / "data.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UsageError, match=why):
        read_data(path, (1, 6, 6))


def test_data_is_read_as_float64(tmp_path):
    np.save(tmp_path / "data.npy", np.ones((3, 1, 6, 6), dtype=np.float32))
    data = read_data(tmp_path / "data.npy", (1, 6, 6))
    assert data.dtype == np.float64
    assert data.shape == (3, 1, 6, 6)


def test_a_solver_that_says_fallback_is_listed():
    class Given(Fake):
        def run(self, tasks, **_):
            for outcome in super().run(tasks):
                tile = isinstance(outcome, Done) and "tile1" in outcome.task.label
                yield replace(outcome, value=replace(outcome.value, status=Status.FALLBACK)) if tile else outcome

    outcome, _ = run(Given())
    assert [failure.task.label for failure in outcome.failures] == ["block1/tile1"]

"""Estimates driven together: the bounds of each alone, and what they share solved once."""

import itertools
import signal

import pytest

from lipray.config import EstimateConfig
from lipray.errors import LiprayError, PlanError, SolveError
from lipray.partition.subproblem import Subproblem
from lipray.run import tasks
from lipray.run.budget import Clock
from lipray.run.driver import estimate_network, estimate_together, make_plan
from lipray.run.events import SweepReady, TaskDone
from lipray.run.executor import Failure, Task
from lipray.run.joint import Point, interleave
from lipray.run.lower_bound import Ascent
from lipray.run.serial import SerialExecutor
from lipray.run.stop import Stopped
from lipray.run.store.solved import open_store
from tests.maps import Maps
from tests.run.test_recall import Counting


def network():
    maps = Maps(1, 6, 6, seed=3)
    maps.conv(2, padding=1)
    maps.act()
    maps.conv(2, padding=1)
    maps.act()
    maps.flatten()
    maps.dense(3)
    return maps.network()


NETWORK = network()

GRID = [
    {"method": "ellipsoid", "iterations": 3, "partition_factor": factor, "block_depth": depth, "composition": "overlap"}
    for factor, depth in itertools.product((1, 2), (1, None))
]
TORI = [{"method": "frequency", "iterations": 3}, {"method": "hybrid", "iterations": 3}, GRID[3]]


def config(**options):
    return EstimateConfig(**{"executor": "serial", "lower_starts": 4, **options})


def points(grid, network=NETWORK):
    return [Point(network, config(**options), name=f"{number:03d}") for number, options in enumerate(grid, 1)]


class Watching(Counting):
    """Counts searches, and bundles, too."""

    def __init__(self, most=10**9):
        super().__init__(most)
        self.searches, self.order = 0, []

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            self.searches += isinstance(task.work, Ascent)
            self.order.append(task.label)
            yield from super().run([task], keep=keep, deadline=deadline)


def distinct(grid):
    """Keys of the sub-problems of all points, product bounds aside."""
    from lipray.partition.worklist import worklist

    works = [worklist(make_plan(NETWORK, config(**options))) for options in grid]
    return {key for work in works for key, problem in work.by_key.items() if problem.method != "product"}


@pytest.mark.parametrize(
    ("grid", "rounds"), [(GRID, 1e9), (TORI, 1e9), (TORI, 0.0)], ids=["partition", "tori", "coordinated"]
)
def test_every_point_has_the_bound_it_has_alone(monkeypatch, grid, rounds):
    monkeypatch.setattr(tasks, "LONG_ROUND", rounds)
    place = Watching()
    endings = estimate_together(points(grid), place)
    for options, ending in zip(grid, endings, strict=True):
        alone = estimate_network(NETWORK, config(**options), SerialExecutor(1))
        assert ending.bound.upper == alone.bound.upper
        assert ending.bound.lower == alone.bound.lower > 0.0
        assert ending.complete
        for key, certificate in alone.bound.certificate.items():
            assert ending.bound.certificate[key].bound == certificate.bound
    assert place.searches == 1
    if rounds:
        assert +place.solved == dict.fromkeys(distinct(grid), 1)


def test_twice_the_same_is_done_once():
    place = Watching()
    first, second = estimate_together(points([TORI[0], TORI[0]]), place)
    assert first.bound.upper == second.bound.upper
    assert sum(place.solved.values()) == len(distinct(TORI[:1]))


def test_other_outputs_are_another_network():
    from lipray.model.select import select_rows

    row = select_rows(NETWORK, (1,))
    options = {"method": "ellipsoid", "iterations": 4}
    both = [*points([options]), *points([options], row)]
    place, events = Watching(), []
    whole, less = estimate_together(both, place, notify=events.append)
    assert less.bound.upper == estimate_network(row, config(**options), SerialExecutor(1)).bound.upper
    assert less.bound.upper < whole.bound.upper
    assert place.searches == 2
    assert {event.upper for event in events if isinstance(event, TaskDone)} == {None}


def test_what_cannot_be_planned_does_not_keep_the_others():
    grid = [GRID[0], {"method": "frequency", "partition_factor": 2}, {"partition_factor": 99}]
    ended = []
    endings = estimate_together(points(grid), SerialExecutor(1), conclude=lambda *pair: ended.append(pair))
    assert endings[0].complete
    assert all(isinstance(ending, PlanError) for ending in endings[1:])
    assert [number for number, _ in ended] == [1, 2, 0]


def test_points_end_as_soon_as_they_are_done_and_listeners_hear_every_task_once():
    place, events, heard = Watching(), [], []
    together = [Point(NETWORK, config(**options), heard.append, f"{n}") for n, options in enumerate(GRID)]
    ends = []
    estimate_together(
        together, place, notify=events.append, conclude=lambda number, _: ends.append((number, len(place.order)))
    )
    assert len({when for _, when in ends}) > 1
    assert sorted(number for number, _ in ends) == list(range(len(GRID)))
    (ready,) = [event for event in events if isinstance(event, SweepReady)]
    done = [event for event in events if isinstance(event, TaskDone)]
    assert len(done) == ready.tasks == len(place.order)
    assert [event.done for event in done] == list(range(1, ready.tasks + 1))
    assert done[-1].share == 1.0
    uppers = [event.upper for event in done if event.upper is not None]
    assert uppers == sorted(uppers, reverse=True)
    assert sum(isinstance(event, TaskDone) for event in heard) > len(done)


def test_a_failure_is_that_of_those_who_asked_and_is_tried_another_way():
    class Fails(Watching):
        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if "tile1" in task.label and "product" not in task.label:
                    yield Failure(task, "Stuck", "it hung", 3)
                else:
                    yield from super().run([task], keep=keep, deadline=deadline)

    whole, tiled = estimate_together(points([GRID[1], GRID[3]]), Fails())
    assert whole.complete
    assert not tiled.complete
    assert tiled.bound.upper >= tiled.bound.lower > 0.0
    assert any("tile1" in failure.task.label for failure in tiled.failures)


def test_a_point_without_a_bound_is_an_error_of_its_own():
    class Fails(SerialExecutor):
        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if isinstance(task.work, Subproblem) and task.label.startswith("001"):
                    yield Failure(task, "RuntimeError", "no luck")
                else:
                    yield from super().run([task], keep=keep, deadline=deadline)

    one, other = estimate_together(points([{"method": "product"}, {"method": "product", "block_depth": 1}]), Fails(1))
    assert isinstance(one, SolveError)
    assert other.complete


@pytest.fixture(scope="module")
def undisturbed():
    return estimate_together(points(GRID), SerialExecutor(1))


@pytest.mark.parametrize("after", [0, 3])
def test_told_to_stop_all_that_have_a_bound_end_with_it_and_the_store_goes_on(tmp_path, undisturbed, after):
    class Told(Watching):
        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                solving = isinstance(task.work, Subproblem) and task.work.method != "product"
                if solving and sum(self.solved.values()) >= after:
                    raise Stopped(signal.SIGTERM)
                yield from super().run([task], keep=keep, deadline=deadline)

    first, rest = Told(), Watching()
    stopped = estimate_together(points(GRID), first, store=open_store(str(tmp_path)))
    for ending, whole in zip(stopped, undisturbed, strict=True):
        assert ending.bound.upper >= whole.bound.upper
        assert ending.stopped == (None if ending.complete else "SIGTERM")
    assert any(ending.stopped for ending in stopped)
    resumed = estimate_together(points(GRID), rest, store=open_store(str(tmp_path)))
    assert [item.bound.upper for item in resumed] == [item.bound.upper for item in undisturbed]
    assert sum(rest.solved.values()) == len(distinct(GRID)) - after


def test_told_before_there_is_any_bound_every_point_says_so():
    class AtOnce(SerialExecutor):
        def run(self, *_args, **_keywords):
            raise Stopped(signal.SIGINT)

    endings = estimate_together(points(GRID[:2]), AtOnce(1))
    assert all(isinstance(ending, Stopped) for ending in endings)
    assert not any(isinstance(ending, LiprayError) for ending in endings)


def test_a_budget_is_shared_by_all_points(monkeypatch):
    seen = []
    limit = Clock.solve_limit

    def spy(self, count, width, most):
        seen.append(count)
        return limit(self, count, width, most)

    monkeypatch.setattr(Clock, "solve_limit", spy)
    grid = [options | {"budget": 60.0} for options in GRID]
    endings = estimate_together(points(grid), SerialExecutor(1))
    assert set(seen) == {len(distinct(grid))}
    assert all(ending.bound.lower <= ending.bound.upper for ending in endings)


def queue(*sizes, label=""):
    return [Task(f"{label}{number}", "", "", None, 0, seconds) for number, seconds in enumerate(sizes)]


def test_points_take_turns_by_expected_seconds():
    first, second = queue(5, 4, 3, label="a"), queue(1, 1, 1, 1, 1, 1, label="b")
    order = [task.key for task in interleave([first, second])]
    assert sorted(order) == sorted(task.key for task in (*first, *second))
    assert order[:7] == ["a0", "b0", "b1", "b2", "b3", "b4", "a1"]


def test_what_is_shared_counts_for_all_and_comes_once():
    shared, own = queue(9, label="s"), queue(1, 1, label="o")
    order = [task.key for task in interleave([shared, [*shared, *own]])]
    assert order == ["s0", "o0", "o1"]

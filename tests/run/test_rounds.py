"""A problem on tori, coordinated: the bound of one process, and what becomes of lost bundles and of failures."""

import math
import time

import numpy as np
import pytest

from lipray.certify.certificate import Status
from lipray.certify.product import solve_product
from lipray.certify.solve import solve
from lipray.config import EstimateConfig
from lipray.errors import ClusterError, PlanError
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import worklist
from lipray.run import budget, driver
from lipray.run import tasks as run_tasks
from lipray.run.budget import OUT_OF_TIME, Clock
from lipray.run.driver import estimate_network, make_plan
from lipray.run.events import RoundDone, TaskDone, UpperBoundImproved
from lipray.run.executor import Failure, Task, owned
from lipray.run.rounds import Rounds, coordinate
from lipray.run.serial import SerialExecutor
from lipray.run.summary import describe_model, summarise
from lipray.verify.torus.bundle import BundleResult
from tests.maps import Maps

BUNDLE = "round"


def network(size=12, channels=3):
    maps = Maps(1, size, size, seed=3)
    maps.conv(channels, padding=1)
    maps.act()
    maps.conv(channels, padding=1, stride=2)
    maps.act()
    maps.conv(channels, padding=1)
    maps.act()
    maps.flatten()
    maps.dense(4)
    return maps.network()


NETWORK = network()


class Flaky(SerialExecutor):
    """Loses every bundle after a number of tasks, and for 0 closed forms too; everything else runs here."""

    def __init__(self, lose_after=math.inf, fault=None):
        super().__init__(1)
        self.lose_after, self.fault, self.labels, self.released, self.kept = lose_after, fault, [], 0, set()

    def width(self, device):
        return 3 if device == "cpu" else 0

    def run(self, tasks, *, keep=False, deadline=None):
        for task in tasks:
            self.labels.append(task.label)
            self.kept.add((BUNDLE in task.label, keep))
            if BUNDLE in task.label and self.fault is not None:
                raise self.fault
            closed = "closed form" in task.label and self.lose_after == 0
            if closed or (BUNDLE in task.label and len(self.labels) > self.lose_after):
                yield Failure(task, "WorkerCrashedError", "the worker died", 3)
            else:
                yield from super().run([task], deadline=deadline)

    def listen(self, notify):
        pass

    def release(self):
        self.released += 1


def posed(method="frequency", **settings):
    plan = plan_network(NETWORK, method=method, settings=Settings(**settings))
    block = plan.blocks[0]
    problem = Subproblem(block.label, NETWORK, block.method, block.settings)
    return Task(problem.key(), block.label, block.label, problem, 0, 1.0), block.torus


def run(executor, method="frequency", **settings):
    told = []
    task, torus = posed(method, **settings)
    outcome, lost = coordinate(
        task,
        torus,
        executor,
        time_limit=settings.get("time_limit"),
        report=lambda certificate, way: told.append((certificate.bound, way)),
    )
    return outcome, lost, told


@pytest.mark.parametrize("method", ["frequency", "hybrid"])
def test_the_bound_is_that_of_one_process(method):
    executor = Flaky()
    outcome, lost, told = run(executor, method, iterations=0)
    alone = solve(posed(method, iterations=0)[0].work)
    assert outcome.value.bound == pytest.approx(alone.bound, rel=1e-9)
    assert not lost
    assert min(bound for bound, _ in told) == outcome.value.bound
    assert executor.kept == {(True, True)}
    assert executor.released == 1
    assert any("/3" in label for label in executor.labels)


def test_a_bound_that_was_certified_outlives_what_is_lost_later():
    closed, _, _ = run(Flaky(), iterations=0)
    for after in (4, 7, 10, 20, 40):
        outcome, lost, told = run(Flaky(lose_after=after), iterations=30)
        if not told:
            assert isinstance(outcome, Failure)
            continue
        assert outcome.value.bound == min(bound for bound, _ in told)
        assert outcome.value.bound <= closed.value.bound * (1 + 1e-9)
        assert lost


def test_all_bundles_lost_is_a_failure():
    outcome, lost, told = run(Flaky(lose_after=0))
    assert isinstance(outcome, Failure)
    assert not told
    assert {failure.kind for failure in lost} == {"WorkerCrashedError"}


class Slow(Flaky):
    """Takes a good while for every bundle after a number of tasks."""

    def __init__(self, after, pause):
        super().__init__()
        self.after, self.pause = after, pause

    def run(self, tasks, *, keep=False, deadline=None):
        for task in tasks:
            if BUNDLE in task.label and len(self.labels) >= self.after:
                time.sleep(self.pause)
            yield from super().run([task], keep=keep, deadline=deadline)


def test_a_closed_form_that_takes_too_long_is_cut_short(monkeypatch):
    monkeypatch.setattr(budget, "LEAST_GRACE", 0.0)
    executor = Slow(0, 0.2)
    outcome, lost, told = run(executor, time_limit=0.3)
    assert isinstance(outcome, Failure)
    assert outcome.kind == OUT_OF_TIME
    assert "product bound stands" in outcome.why
    assert not told
    assert not lost


def test_a_round_that_takes_too_long_leaves_what_was_proven(monkeypatch):
    monkeypatch.setattr(budget, "LEAST_GRACE", 0.0)
    closed, _, _ = run(Flaky(), iterations=0)
    begin = time.monotonic()
    # The closed form's bundles come quickly, all later ones do not.
    outcome, lost, told = run(Slow(3, 1.0), time_limit=2.0, iterations=1000)
    assert time.monotonic() - begin < 10.0
    assert outcome.value.bound == min(bound for bound, _ in told)
    assert outcome.value.bound <= closed.value.bound * (1 + 1e-9)
    assert outcome.value.status is Status.TIME_LIMIT
    assert not lost


def test_a_lost_cluster_ends_the_run():
    executor = Flaky(fault=ClusterError("ray", "no node is left"))
    with pytest.raises(ClusterError):
        run(executor)
    assert executor.released == 1


def test_results_keep_the_order_of_the_bundles():
    task, torus = posed()

    class Backwards(Flaky):
        def run(self, tasks, *, keep=False, deadline=None):
            yield from super().run(list(tasks)[::-1], keep=keep, deadline=deadline)

    from lipray.certify.frequency.bundle import in_place
    from lipray.verify.torus.proof import Means, bundles, set_up

    setup = set_up(NETWORK)
    lams = tuple(np.full(size, 1e-3) for size in setup.sizes)
    batch = bundles(setup, lams, Means(workers=5), proof=False)
    assert len(batch) > 2
    found = Rounds(task, torus, Backwards()).spread(batch)
    for one, other in zip(found, in_place(batch), strict=True):
        assert one.feasible == other.feasible
        assert np.array_equal(one.gram, other.gram)


def test_arrays_from_an_object_store_can_be_written_to():
    locked = np.ones((2, 2))
    locked.flags.writeable = False
    free = np.zeros(3)
    freed = owned(BundleResult(True, gram=locked, loads=free))
    assert freed.gram.flags.writeable
    assert np.array_equal(freed.gram, locked)
    assert freed.loads is free


def test_bundles_reserve_what_their_groups_take():
    task, torus = posed()
    from lipray.verify.torus.proof import Means, bundles, set_up

    setup = set_up(NETWORK)
    lams = tuple(np.ones(size) for size in setup.sizes)
    one, *_ = bundles(setup, lams, Means(memory=2**30), proof=False)
    [made] = [Rounds(task, torus, Flaky())._bundle_task(1, 0, one)]
    assert made.memory >= len(one.groups) * torus.group_memory
    assert made.seconds == pytest.approx(torus.pass_seconds * len(one.groups) / torus.groups)


def estimate(executor, monkeypatch=None, **options):
    if monkeypatch is not None:
        monkeypatch.setattr(run_tasks, "LONG_ROUND", 0.0)
    events = []
    config = EstimateConfig(**({"method": "frequency", "lower_starts": 4, "executor": "serial"} | options))
    return estimate_network(NETWORK, config, executor, events.append), events


def test_the_driver_coordinates_long_rounds_and_keeps_a_bound_throughout(monkeypatch):
    outcome, events = estimate(Flaky(), monkeypatch, iterations=3)
    plain, _ = estimate(SerialExecutor(1), iterations=3)
    assert outcome.bound.upper == pytest.approx(plain.bound.upper, rel=1e-6)
    assert any(isinstance(event, RoundDone) for event in events)
    improved = [event for event in events if isinstance(event, UpperBoundImproved)]
    assert improved
    known = [event.upper for event in events if getattr(event, "upper", None) is not None]
    assert known == sorted(known, reverse=True)
    assert known[-1] == outcome.bound.upper
    ends = [event for event in events if isinstance(event, TaskDone)]
    assert ends[-1].done == ends[-1].tasks
    assert ends[-1].share == 1.0
    assert set(outcome.bound.certificate) == set(worklist(outcome.plan).by_key)


def test_everything_lost_is_the_product_bound(monkeypatch):
    outcome, _ = estimate(Flaky(lose_after=0), monkeypatch)
    product = solve_product(Subproblem("x", NETWORK, "product", Settings())).bound
    assert outcome.bound.upper == product
    assert outcome.bound.blocks[0].source == "product"
    assert outcome.failures
    result = summarise(outcome, describe_model(NETWORK, "net"), composition="overlap", executor="flaky")
    assert any(row.status == "missing" for row in result.subproblems)


@pytest.mark.parametrize("method", ["frequency", "hybrid", "ellipsoid"])
def test_a_budget_too_small_still_ends_with_a_bound(monkeypatch, method):
    outcome, _ = estimate(Flaky(), monkeypatch, method=method, budget=0.001, lower_starts=None)
    assert math.isfinite(outcome.bound.upper)
    assert outcome.bound.upper > 0.0
    assert set(outcome.bound.certificate) <= set(worklist(outcome.plan).by_key)


def test_what_a_budget_leaves_out_is_named(monkeypatch):
    monkeypatch.setattr(driver, "affordable", lambda *_: False)
    outcome, _ = estimate(Flaky(), monkeypatch, budget="20s")
    assert [failure.kind for failure in outcome.failures] == ["BudgetSpent"]
    result = summarise(outcome, describe_model(NETWORK, "net"), composition="overlap", executor="flaky")
    assert any("--budget" in row.advice for row in result.subproblems)
    assert outcome.bound.blocks[0].source == "product"


def test_time_limits_of_a_budget_do_not_change_the_problem(monkeypatch):
    free, _ = estimate(Flaky(), monkeypatch, iterations=0)
    bounded, _ = estimate(Flaky(), monkeypatch, iterations=0, budget="1h")
    assert set(free.bound.certificate) == set(bounded.bound.certificate)
    assert free.bound.upper == bounded.bound.upper


def test_ways_are_reported(monkeypatch):
    outcome, _ = estimate(Flaky(), monkeypatch, method="hybrid", iterations=2)
    block = outcome.bound.blocks[0]
    assert {"product", "closed_form", "frequency", "hybrid"} <= set(block.alternatives)
    assert block.upper == min(block.alternatives.values())
    assert block.alternatives[block.source] == block.upper
    assert {"product", "frequency"} <= set(outcome.bound.figures)


def test_cuda_without_cuda_is_refused():
    import torch

    from lipray.errors import UsageError
    from lipray.run.start import start_executor

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for place in ("serial", "ray"):
        with pytest.raises(UsageError, match="CUDA") as caught:
            start_executor(EstimateConfig(device="cuda", executor=place))
        assert caught.value.argument == "--device"


def test_no_torus_for_a_method_by_name():
    dense = Maps(4)
    dense.dense(4)
    with pytest.raises(PlanError, match="torus"):
        estimate_network(dense.network(), EstimateConfig(method="frequency"), SerialExecutor(1))


def test_a_short_problem_on_tori_is_one_task_with_the_rules_limit():
    for options, limit in (({}, 120.0), ({"time_limit": 7}, 7.0), ({"iterations": 3}, None), ({"budget": "30s"}, 20.0)):
        config = EstimateConfig(method="frequency", lower_starts=0, **options)
        made = make_plan(NETWORK, config)
        planned = run_tasks.schedule(NETWORK, made, worklist(made), config, Clock.begin(config.budget))
        assert not planned.coordinated
        [_, task] = planned.tasks
        assert task.work.settings.time_limit == limit
        assert task.key == worklist(made).tiles[made.blocks[0].tiles[0].key]

"""Repeated and interrupted runs over a store: the same bound, and nothing solved twice."""

import errno
from collections import Counter
from dataclasses import replace

import pytest

from lipray.config import EstimateConfig
from lipray.partition.subproblem import Subproblem
from lipray.run import tasks
from lipray.run.driver import estimate_network
from lipray.run.events import TaskDone, UpperBoundImproved
from lipray.run.executor import Failure
from lipray.run.serial import SerialExecutor
from lipray.run.store import objects
from lipray.run.store.solved import open_store
from tests.maps import Maps


def network():
    maps = Maps(1, 10, 10, seed=3)
    maps.conv(3, padding=1)
    maps.act()
    maps.conv(2, padding=1, stride=2)
    maps.act()
    maps.flatten()
    maps.dense(4)
    return maps.network()


NETWORK = network()
CASES = {
    "ellipsoid": {"method": "ellipsoid", "iterations": 5},
    "blocks": {"method": "ellipsoid", "iterations": 5, "block_depth": 1},
    "tiles": {"method": "ellipsoid", "iterations": 5, "partition_factor": 2, "composition": "overlap"},
    "metric": {"method": "ellipsoid", "iterations": 5, "partition_factor": 2},
    "weighted": {"method": "ellipsoid", "iterations": 5, "partition_factor": 2, "composition": "diagonal"},
    "frequency": {"method": "frequency", "iterations": 5},
    "hybrid": {"method": "hybrid", "iterations": 5},
}


class Counting(SerialExecutor):
    """Counts what is solved; after ``most`` solves everything fails, as if the driver had been killed."""

    def __init__(self, most=10**9):
        super().__init__(1)
        self.most, self.solved = most, Counter()

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            solving = isinstance(task.work, Subproblem) and task.work.method != "product"
            if solving and sum(self.solved.values()) >= self.most:
                raise KeyboardInterrupt
            self.solved[task.key] += solving
            yield from super().run([task], keep=keep, deadline=deadline)


def run(store=None, executor=None, events=None, **options):
    config = EstimateConfig(**{"executor": "serial", "lower_starts": 4, **options})
    notify = (lambda _: None) if events is None else events.append
    return estimate_network(NETWORK, config, executor or Counting(), notify, store=store)


@pytest.fixture(params=["one task", "coordinated"])
def way(request, monkeypatch):
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0 if request.param == "coordinated" else 1e9)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", CASES)
def test_a_second_run_solves_nothing_and_says_the_same(tmp_path, case):
    store = open_store(str(tmp_path))
    plain = run(**CASES[case])
    first = run(store, **CASES[case])
    place, events = Counting(), []
    again = run(open_store(str(tmp_path)), place, events, **CASES[case])
    assert first.bound.upper == plain.bound.upper
    assert again.bound.upper == pytest.approx(plain.bound.upper, rel=1e-12)
    assert again.bound.lower == plain.bound.lower > 0.0
    assert not +place.solved
    assert any(event.stored for event in events if isinstance(event, TaskDone))
    assert not first.stored
    assert again.stored
    assert not again.failures


@pytest.mark.parametrize("most", range(1, 5))
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, most):
    options = CASES["tiles"]
    whole = Counting()
    undisturbed = run(None, whole, **options)
    needed = sum(whole.solved.values())
    assert needed > most
    store, cut = open_store(str(tmp_path)), Counting(most)
    with pytest.raises(KeyboardInterrupt):
        run(store, cut, **options)
    rest = Counting()
    outcome = run(open_store(str(tmp_path)), rest, **options)
    assert outcome.bound.upper == undisturbed.bound.upper
    assert sum(rest.solved.values()) == needed - most


def test_points_of_a_sweep_share_their_sub_problems(tmp_path):
    store = open_store(str(tmp_path))
    run(store, block_depth=1, **CASES["ellipsoid"])
    place = Counting()
    run(store, place, block_depth=1, composition="sum", **CASES["ellipsoid"])
    assert not +place.solved


def stored_bounds(folder):
    return [path for path in folder.rglob("*.json") if b'"method"' in path.read_bytes()]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", ["ellipsoid", "frequency", "metric"])
def test_a_forged_bound_does_not_count(tmp_path, case):
    """Multipliers a thousand times as large, and a bound as small as one likes, with every hash in order."""
    store = open_store(str(tmp_path))
    plain = run(store, **CASES[case])
    for key, certificate in plain.bound.certificate.items():
        if certificate.proof.kind != "product":
            lams = tuple(lam * 1e3 for lam in certificate.multipliers)
            forged = replace(certificate, bound=1e-3, proof=replace(certificate.proof, multipliers=lams))
            store.put(plain.work.by_key[key], forged)
    place = Counting()
    outcome = run(open_store(str(tmp_path)), place, **CASES[case])
    assert outcome.bound.upper == pytest.approx(plain.bound.upper, rel=1e-9)
    assert any("do not prove" in fault for fault in outcome.store_faults)
    assert list((tmp_path / "quarantine").iterdir())


def test_a_claim_below_what_the_multipliers_prove_does_not_count(tmp_path):
    store = open_store(str(tmp_path))
    plain = run(store, **CASES["ellipsoid"])
    (key, certificate), *_ = [
        (key, value) for key, value in plain.bound.certificate.items() if value.proof.kind == "dense"
    ]
    problem = plain.work.by_key[key]
    store.put(problem, replace(certificate, bound=1e-3))
    assert run(store, **CASES["ellipsoid"]).bound.upper == plain.bound.upper


def test_an_answer_to_another_question_is_not_taken(tmp_path):
    store = open_store(str(tmp_path))
    plain = run(store, **CASES["ellipsoid"])
    for key, certificate in plain.bound.certificate.items():
        if certificate.proof.kind == "dense":
            store.put(plain.work.by_key[key], replace(certificate, key="0" * 64))
    place = Counting()
    assert run(store, place, **CASES["ellipsoid"]).bound.upper == plain.bound.upper
    assert +place.solved


def test_damage_is_reported_and_solved_again(tmp_path):
    store = open_store(str(tmp_path))
    plain = run(store, **CASES["blocks"])
    damaged = stored_bounds(tmp_path)[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    place = Counting()
    outcome = run(open_store(str(tmp_path)), place, **CASES["blocks"])
    assert outcome.bound.upper == plain.bound.upper
    assert sum(place.solved.values()) == 1
    assert any("SHA-256" in fault for fault in outcome.store_faults)


def test_a_store_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    calls = []

    def full(name, content, *, durable=True):
        del content, durable
        calls.append(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.files, "write", full)
    outcome = run(store, **CASES["tiles"])
    assert outcome.bound.upper == run(**CASES["tiles"]).bound.upper
    assert [fault for fault in outcome.store_faults if "No space left" in fault]
    assert len(calls) == 3


def test_a_store_that_cannot_be_read_costs_nothing_else(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))

    def gone(_name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store.files, "read", gone)
    outcome = run(store, **CASES["ellipsoid"])
    assert outcome.bound.upper == run(**CASES["ellipsoid"]).bound.upper
    assert any("Input/output error" in fault for fault in outcome.store_faults)


def test_what_a_budget_cut_is_where_another_run_begins(tmp_path):
    """Provisional answers are a bound to begin with and are worked on again; final ones are not touched by them."""
    store = open_store(str(tmp_path))
    run(store, budget=60.0, **CASES["ellipsoid"])
    place, events = Counting(), []
    outcome = run(store, place, events, **CASES["ellipsoid"])
    assert +place.solved
    assert [event for event in events if isinstance(event, UpperBoundImproved) and event.way == "stored"]
    assert outcome.bound.upper == run(**CASES["ellipsoid"]).bound.upper
    final = Counting()
    run(store, final, **CASES["ellipsoid"])
    assert not +final.solved


def test_what_a_coordinated_problem_reached_outlives_its_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    store = open_store(str(tmp_path))

    class Dies(SerialExecutor):
        bundles = 0

        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if "round" in task.label:
                    self.bundles += 1
                    if self.bundles > 3:
                        raise KeyboardInterrupt
                yield from super().run([task], keep=keep, deadline=deadline)

    with pytest.raises(KeyboardInterrupt):
        run(store, Dies(1), method="frequency", iterations=20)
    events = []
    run(open_store(str(tmp_path)), None, events, method="frequency", iterations=20)
    assert [event for event in events if isinstance(event, UpperBoundImproved) and event.way == "stored"]


def test_witnesses_are_evaluated_again(tmp_path):
    store = open_store(str(tmp_path))
    plain = run(store, **CASES["ellipsoid"])
    forged = []
    for path in tmp_path.rglob("*.json"):
        if b'"quotient"' in path.read_bytes():
            forged.append(path)
            body = path.read_bytes().partition(b"\n")[2]
            body = body.replace(b'"quotient":', b'"quotient":9')
            path.write_bytes(objects.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert forged
    assert run(store, **CASES["ellipsoid"]).bound.lower == plain.bound.lower


def test_lost_work_is_not_a_final_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    store = open_store(str(tmp_path))

    class Loses(SerialExecutor):
        bundles = 0

        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if "round" in task.label:
                    self.bundles += 1
                    if self.bundles > 3:
                        yield Failure(task, "WorkerCrashedError", "the worker died", 3)
                        continue
                yield from super().run([task], keep=keep, deadline=deadline)

    run(store, Loses(1), method="frequency", iterations=20)
    outcome = run(store, None, method="frequency", iterations=20)
    assert not outcome.stored & set(outcome.work.by_key)
    assert outcome.bound.upper == pytest.approx(run(method="frequency", iterations=20).bound.upper, rel=1e-9)

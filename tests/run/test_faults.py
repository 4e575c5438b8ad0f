"""What can go wrong in a night on a cluster of two machines: the bound is that of the undisturbed run."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lipray.config import EstimateConfig
from lipray.run.driver import estimate_network
from lipray.run.events import TaskRetried
from lipray.run.executor import Done
from lipray.run.serial import SerialExecutor
from lipray.run.store.solved import open_store
from tests.run.test_ray import convolutions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CONFIG = EstimateConfig(partition_factor=3, lower_starts=4, method="ellipsoid", iterations=4, composition="overlap")
ROUNDS = EstimateConfig(method="frequency", iterations=4, lower_starts=0)


class Fuse(str):
    """A name of an array; a worker that looks it up does what was planted, the first one only if there is a mark."""

    __slots__ = ("deed", "mark")

    def __new__(cls, name, deed, mark=None):
        made = super().__new__(cls, name)
        made.deed, made.mark = deed, mark
        return made

    def __reduce__(self):
        return (type(self), (str(self), self.deed, self.mark))

    def __hash__(self):
        if self.mark is None:
            DEEDS[self.deed]()
        else:
            with contextlib.suppress(FileExistsError):
                Path(self.mark).touch(exist_ok=False)
                DEEDS[self.deed]()
        return str.__hash__(self)

    def __eq__(self, other):
        return str.__eq__(self, other)


def hoard():
    """Take memory until the node's monitor ends this worker."""
    kept = []
    while True:
        kept.append(bytearray(64 * 2**20))
        time.sleep(0.05)


def fail():
    raise RuntimeError("this always fails")


DEEDS = {"die": lambda: os._exit(1), "hang": lambda: time.sleep(3600), "dawdle": lambda: time.sleep(20)}
DEEDS |= {"hoard": hoard, "fail": fail}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes of one CPU each, all on loopback."""
    from lipray.run.ray import cluster as ray_cluster

    before = ray_cluster._set(ray_cluster._OPTIONS | ray_cluster._early_options())
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    size = {"object_store_memory": 100 * 2**20, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
    made.size = {name: value for name, value in size.items() if name != "include_dashboard"}
    for _ in range(2):
        made.add_node(num_cpus=1, **made.size)
    yield made
    made.shutdown()
    ray_cluster._restore(before)


@pytest.fixture(scope="module")
def joined(cluster):
    """A connection to the cluster; executors are made on it as tests need them."""
    from lipray.run.ray.cluster import connect

    connection = connect(cluster.address, workers=None, threads=1)
    yield connection
    connection.close()


@pytest.fixture
def executor(joined):
    from lipray.run.ray.executor import RayExecutor

    return lambda **options: RayExecutor(joined, threads=1, **options)


@pytest.fixture
def plant(monkeypatch):
    """``plant(word, deed, mark)``: tasks whose label has the word carry a fuse."""
    from dataclasses import replace

    from lipray.run.ray import flight as ray_flight

    real = ray_flight.pack

    def planted(word, deed, mark=None):
        def pack(task, shared, token=None):
            parcel = real(task, shared, token)
            if word not in task.label:
                return parcel
            first, *rest = parcel.arrays
            return replace(parcel, arrays=(Fuse(first, deed, mark), *rest), token=None)

        monkeypatch.setattr(ray_flight, "pack", pack)

    return planted


@pytest.fixture(scope="module")
def undisturbed():
    return estimate_network(convolutions(), CONFIG, SerialExecutor(threads=1))


def same(outcome, undisturbed):
    assert outcome.bound.upper == undisturbed.bound.upper
    assert outcome.bound.lower == undisturbed.bound.lower
    assert outcome.bound.blocks == undisturbed.bound.blocks


def retried(events):
    return Counter(event.kind for event in events if isinstance(event, TaskRetried))


def test_two_machines_give_the_bound_of_one_process(executor, undisturbed):
    place = executor()
    assert "2 CPUs, 3 nodes" in place.description
    where = set()
    outcome = estimate_network(
        convolutions(), CONFIG, place, lambda event: where.add(getattr(event, "where", "").partition(":")[2])
    )
    same(outcome, undisturbed)
    assert len(where - {""}) >= 2
    assert not outcome.failures


def test_a_worker_killed_in_a_solve_costs_its_batch(executor, plant, undisturbed, tmp_path):
    plant("tile5", "die", str(tmp_path / "mark"))
    events = []
    outcome = estimate_network(convolutions(), CONFIG, executor(), events.append)
    same(outcome, undisturbed)
    assert (tmp_path / "mark").exists()
    assert 1 <= retried(events)["WorkerCrashedError"] <= 9  # at most the batch, its tasks one by one
    assert not outcome.failures


def test_a_solver_that_hangs_is_left(executor, plant, undisturbed, tmp_path):
    plant("tile5", "hang", str(tmp_path / "mark"))
    events = []
    start = time.monotonic()
    outcome = estimate_network(convolutions(), CONFIG, executor(stuck_after=4.0), events.append)
    assert time.monotonic() - start < 120.0
    same(outcome, undisturbed)
    assert retried(events)["Stuck"] >= 1
    assert not outcome.failures


def test_a_solver_that_always_hangs_falls_back(executor, plant, undisturbed):
    plant("block1/tile5", "hang")
    outcome = estimate_network(convolutions(), CONFIG, executor(stuck_after=3.0))
    (failure,) = [item for item in outcome.failures if item.task.label == "block1/tile5"]
    assert (failure.kind, failure.attempts) == ("Stuck", 3)
    assert not outcome.complete
    assert outcome.bound.upper >= undisturbed.bound.upper
    assert outcome.bound.blocks[0].fallbacks == ("block1/tile5",)


def test_a_task_that_fails_deterministically_is_tried_once(executor, plant, undisturbed):
    plant("block1/tile5", "fail")
    events = []
    outcome = estimate_network(convolutions(), CONFIG, executor(), events.append)
    (failure,) = [item for item in outcome.failures if item.task.label == "block1/tile5"]
    assert (failure.kind, failure.attempts) == ("RuntimeError", 1)
    assert not retried(events)
    assert outcome.bound.upper >= undisturbed.bound.upper


def test_a_straggler_is_copied(executor, plant, tmp_path, monkeypatch):
    from lipray.partition.subproblem import Settings, Subproblem
    from lipray.run.executor import Task
    from lipray.run.ray import flight as ray_flight

    monkeypatch.setattr(ray_flight, "SLOW", 2.0)
    monkeypatch.setattr(ray_flight, "TICK", 0.5)
    plant("last", "dawdle", str(tmp_path / "mark"))
    problem = Subproblem("x", convolutions(), "product", Settings())
    tasks = [Task(name, name, "g", problem, 2**20, 0.5) for name in ("first", "second", "third", "last")]
    start = time.monotonic()
    outcomes = list(executor().run(tasks))
    assert time.monotonic() - start < 15.0
    assert Counter(outcome.task.key for outcome in outcomes) == Counter(task.key for task in tasks)
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert (tmp_path / "mark").exists()


def test_a_node_killed_in_the_middle_costs_what_it_was_doing(cluster, executor, plant, undisturbed, tmp_path):
    """One of two nodes goes; another joins and is used."""
    plant("tile3", "dawdle", str(tmp_path / "mark"))
    extra = cluster.add_node(num_cpus=1, **cluster.size)
    killed = []

    def kill(event):
        if (tmp_path / "mark").exists() and not killed:
            killed.append(event)
            cluster.remove_node(extra, allow_graceful=False)

    store = open_store(str(tmp_path / "store"))
    outcome = estimate_network(convolutions(), CONFIG, executor(), kill, store=store)
    assert killed
    same(outcome, undisturbed)
    again = estimate_network(convolutions(), CONFIG, executor(), store=open_store(str(tmp_path / "store")))
    same(again, undisturbed)
    assert again.stored


def test_two_drivers_share_a_store(executor, undisturbed, tmp_path):
    """What one has kept while the other was at it, the other keeps again: nothing is lost, nothing is mixed up."""
    import threading

    outcomes = []

    def drive():
        outcomes.append(
            estimate_network(convolutions(), CONFIG, SerialExecutor(1), store=open_store(str(tmp_path / "store")))
        )

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes:
        same(outcome, undisturbed)
        assert not outcome.store_faults
    last = estimate_network(convolutions(), CONFIG, executor(), store=open_store(str(tmp_path / "store")))
    same(last, undisturbed)


HOARDS = """
import json, os
from pathlib import Path
known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
used = 1.0 - int(known["MemAvailable"].split()[0]) / int(known["MemTotal"].split()[0])
os.environ["RAY_memory_usage_threshold"] = f"{min(0.95, used + 0.08):.3f}"
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
from dataclasses import replace
from lipray.config import EstimateConfig
from lipray.run.driver import estimate_network
from lipray.run.start import start_executor
place = start_executor(EstimateConfig(workers=1))
import ray
from lipray.run.ray import flight as ray_flight
from tests.run import test_faults
ray.cloudpickle.register_pickle_by_value(test_faults)
real, submit, reserved = ray_flight.pack, ray_flight.Flight._submit, []

def pack(task, shared, token=None):
    parcel = real(task, shared, token)
    first, *rest = parcel.arrays
    return replace(parcel, arrays=(test_faults.Fuse(first, "hoard"), *rest)) if "tile5" in task.label else parcel

def spy(self, trip):
    if any("tile5" in task.label for task in trip.tasks):
        reserved.append(trip.memory)
    return submit(self, trip)

ray_flight.pack, ray_flight.Flight._submit = pack, spy
outcome = estimate_network(test_faults.convolutions(), test_faults.CONFIG, place)
failures = [[item.task.label, item.kind, item.attempts] for item in outcome.failures]
print(json.dumps({"failures": failures, "upper": outcome.bound.upper, "reserved": reserved}))
place.close()
"""


@pytest.mark.slow
def test_a_worker_over_its_memory_gets_more_and_then_gives_up(tmp_path, undisturbed):
    """A node's memory monitor ends the worker; twice as much is reserved, and in the end the product bound stands."""
    (tmp_path / "script.py").write_text(HOARDS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    first, *parts = result["failures"]
    assert first == ["block1/tile5", "OutOfMemory", 3]
    # It is cut smaller then, and tried by its closed form; both hoard like it.
    assert all("tile5" in label and kind == "OutOfMemory" for label, kind, _ in parts)
    assert result["upper"] >= undisturbed.bound.upper
    assert any(later == 2 * earlier for earlier, later in itertools.pairwise(result["reserved"]))


LOSES = """
import sys
from dataclasses import replace
from lipray.run.ray import cluster as ray_cluster
ray_cluster._set(ray_cluster._OPTIONS | ray_cluster._early_options())
import ray
from ray.cluster_utils import Cluster
size = dict(object_store_memory=100 * 2**20, node_ip_address="127.0.0.1")
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False, **size))
from lipray.run.ray import flight as ray_flight
from lipray.run.driver import estimate_network
from lipray.run.events import TaskDone
from lipray.run.ray.cluster import connect
from lipray.run.store.solved import open_store
from tests.run import test_faults
ray.cloudpickle.register_pickle_by_value(test_faults)
connection = connect(cluster.address, workers=None, threads=1)
from lipray.run.ray.executor import RayExecutor
ray_flight.GONE = 4.0
real = ray_flight.pack

def pack(task, shared, token=None):
    parcel = real(task, shared, token)
    first, *rest = parcel.arrays
    return replace(parcel, arrays=(test_faults.Fuse(first, "hang"), *rest)) if "tile5" in task.label else parcel

ray_flight.pack = pack
done = []

def kill(event):
    done.append(event)
    if sum(isinstance(item, TaskDone) for item in done) == 3:
        cluster.head_node.all_processes[sys.argv[2]][0].process.kill()

place, store = RayExecutor(connection, threads=1), open_store(sys.argv[1])
outcome = estimate_network(test_faults.convolutions(), test_faults.CONFIG, place, kill, store=store)
print("LOST", outcome.stopped, outcome.bound.upper)
connection.close()
"""


@pytest.mark.parametrize("part", ["gcs_server", pytest.param("raylet", marks=pytest.mark.slow)])
def test_a_cluster_that_is_gone_costs_what_was_under_way(tmp_path, undisturbed, part):
    """Without its head a run ends with the bound so far. Where its own node goes, Ray ends the driver at once.

    Either way the store has what was solved, and the rest is done another time.
    """
    (tmp_path / "script.py").write_text(LOSES)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "store"), part],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if part == "gcs_server":
        assert done.returncode == 0, done.stderr[-2000:]
        said = done.stdout.splitlines()[-1]
        assert "has not answered" in said
        assert float(said.rpartition(" ")[2]) >= undisturbed.bound.upper
    else:
        assert done.returncode != 0
        assert "LOST" not in done.stdout
    outcome = estimate_network(convolutions(), CONFIG, SerialExecutor(1), store=open_store(str(tmp_path / "store")))
    same(outcome, undisturbed)
    assert outcome.stored

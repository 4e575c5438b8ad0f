"""Ray: the same bounds as in one process, on loopback, and what becomes of workers that die."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lipray
from lipray.config import EstimateConfig
from lipray.errors import InfeasibleResourcesError, PlanError, VerificationError
from lipray.model.network import Activation, Conv, Dense, Input, Network, Node, Reshape
from lipray.run.driver import estimate_network, estimate_together
from lipray.run.events import TaskDone
from lipray.run.joint import Point
from lipray.run.serial import SerialExecutor
from tests.listeners import beyond_loopback, listening

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def convolutions():
    draw = np.random.default_rng(7)
    weights = {"w0": draw.standard_normal((2, 1, 3, 3)), "w1": draw.standard_normal((2, 2, 3, 3))}
    weights["w2"] = draw.standard_normal((3, 72))
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


CONFIG = EstimateConfig(partition_factor=3, lower_starts=8, workers=2, composition="overlap")


class Bomb:
    """Ends the worker that unpacks it; with ``mark``, only the first one, and others find ``value`` in its place."""

    def __init__(self, mark=None, value=None):
        self.mark, self.value = mark, value

    def __reduce__(self):
        code = "__import__('os')._exit(1)"
        if self.mark is not None:
            code = f"__import__('os').path.exists({self.mark!r}) or (open({self.mark!r}, 'w').close(), {code})"
        return (eval, (f"({code}) and {self.value!r}",))


class Sleep:
    """Keeps the worker that unpacks it for some seconds, and is ``value`` then."""

    def __init__(self, seconds, value):
        self.seconds, self.value = seconds, value

    def __reduce__(self):
        return (eval, (f"__import__('time').sleep({self.seconds}) or {self.value!r}",))


@pytest.fixture(scope="module")
def executor():
    from lipray.run.start import start_executor

    place = start_executor(CONFIG)
    yield place
    place.close()


@pytest.fixture
def sabotage(monkeypatch):
    """``sabotage(word, bomb)``: tasks whose label has the word carry the bomb."""
    from lipray.run.ray import flight as ray_flight

    whole = ray_flight.pack

    def plant(word, bomb):
        def pack(task, shared, token=None):
            parcel = whole(task, shared, token)
            return replace(parcel, arrays=(*parcel.arrays, bomb)) if word in task.label else parcel

        monkeypatch.setattr(ray_flight, "pack", pack)

    return plant


def test_points_of_a_sweep_are_those_of_estimates(executor):
    """On the same width, bit for bit, and every distinct sub-problem once."""
    points = [
        Point(convolutions(), CONFIG.model_copy(update=options), name=f"{number}")
        for number, options in enumerate(
            ({"partition_factor": 1}, {"partition_factor": 3}, {"block_depth": 1}, {"block_depth": 1}), start=1
        )
    ]
    events = []
    endings = estimate_together(points, executor, notify=events.append)
    for point, ending in zip(points, endings, strict=True):
        alone = estimate_network(point.network, point.config, executor)
        assert ending.bound.upper == alone.bound.upper
        assert ending.bound.lower == alone.bound.lower
        assert ending.complete
    keys = {key for ending in endings for key in ending.work.by_key}
    done = [event for event in events if isinstance(event, TaskDone)]
    assert sum("lower" not in event.label for event in done) == len(keys)


def test_bit_for_bit_as_in_one_process(executor):
    on_ray = estimate_network(convolutions(), CONFIG, executor)
    here = estimate_network(convolutions(), CONFIG, SerialExecutor(threads=1))
    assert not on_ray.failures
    assert on_ray.bound.upper == here.bound.upper
    assert on_ray.bound.lower == here.bound.lower
    assert on_ray.bound.blocks == here.bound.blocks
    np.testing.assert_array_equal(on_ray.bound.witness[0], here.bound.witness[0])
    for key, certificate in here.bound.certificate.items():
        other = on_ray.bound.certificate[key]
        assert other.bound == certificate.bound
        for mine, theirs in zip(certificate.multipliers, other.multipliers, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("executor")
def test_workers_have_one_thread():
    import ray

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    found = ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote())
    assert found == ["1"] * 4


@pytest.mark.usefixtures("executor")
def test_listens_on_loopback_only():
    addresses = listening()
    assert len(addresses) > 5
    assert not beyond_loopback(addresses)


def test_a_dead_worker_costs_its_tile_only(executor, sabotage):
    sabotage("tile1", Bomb())
    outcome = estimate_network(convolutions(), CONFIG, executor)
    here = estimate_network(convolutions(), CONFIG, SerialExecutor(threads=1))
    failed = [failure for failure in outcome.failures if "tile1" in failure.task.label]
    assert failed
    assert {failure.kind for failure in failed} == {"WorkerCrashedError"}
    assert all(failure.attempts == 3 for failure in failed)
    assert [failure for failure in outcome.failures if failure not in failed] == []
    assert "block1/tile1" in outcome.bound.blocks[0].fallbacks
    assert outcome.bound.upper >= here.bound.upper
    assert outcome.bound.lower == here.bound.lower


def test_a_worker_that_dies_once_costs_nothing(executor, sabotage, tmp_path):
    sabotage("tile", Bomb(str(tmp_path / "mark"), value="w0"))
    outcome = estimate_network(convolutions(), CONFIG, executor)
    assert (tmp_path / "mark").exists()
    assert not outcome.failures
    assert not any(block.fallbacks for block in outcome.bound.blocks)


@pytest.fixture
def coordinated(monkeypatch):
    """Have every problem on tori coordinated, however short its rounds."""
    from lipray.run import tasks

    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)


TORI = EstimateConfig(method="frequency", iterations=2, lower_starts=0, workers=2)


@pytest.mark.usefixtures("coordinated")
def test_tiles_are_solved_together_in_rounds_of_the_workers(executor, monkeypatch):
    rounds, run = [], executor.run
    monkeypatch.setattr(executor, "run", lambda tasks, **more: rounds.append(len(tasks)) or run(tasks, **more))
    config = EstimateConfig(method="ellipsoid", partition_factor=3, iterations=3, lower_starts=0, workers=2)
    outcome = estimate_network(convolutions(), config, executor)
    here = estimate_network(convolutions(), config, SerialExecutor(threads=1))
    (block, *_) = outcome.bound.blocks
    assert block.source == "metric"
    assert outcome.bound.upper == here.bound.upper
    assert block.upper < block.alternatives["product"]
    assert not outcome.failures
    assert len([count for count in rounds if count == 9]) > 6


@pytest.mark.usefixtures("coordinated")
def test_rounds_are_shared_by_the_workers_and_the_arrays_travel_once(executor, monkeypatch):
    import ray

    rounds, puts = [], []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    run = executor.run
    monkeypatch.setattr(executor, "run", lambda tasks, **more: rounds.append(len(tasks)) or run(tasks, **more))
    outcome = estimate_network(convolutions(), TORI, executor)
    here = estimate_network(convolutions(), TORI, SerialExecutor(threads=1))
    assert outcome.bound.upper == pytest.approx(here.bound.upper, rel=1e-6)
    assert not outcome.failures
    assert len([count for count in rounds if count == 2]) > 1
    # One for the product bound's task, and one for all rounds.
    assert len(puts) == 2
    assert not executor._kept


@pytest.mark.usefixtures("coordinated")
def test_a_worker_that_dies_in_a_round_costs_one_bundle_of_it(executor, sabotage, tmp_path):
    sabotage("round", Bomb(str(tmp_path / "mark"), value="w0"))
    outcome = estimate_network(convolutions(), TORI, executor)
    assert (tmp_path / "mark").exists()
    here = estimate_network(convolutions(), TORI, SerialExecutor(threads=1))
    assert outcome.bound.upper == pytest.approx(here.bound.upper, rel=1e-6)
    assert not outcome.failures


@pytest.mark.parametrize("longest", [0.0, 1e9])
def test_a_certificate_is_verified_on_the_workers(executor, monkeypatch, longest):
    from lipray.run import verification
    from lipray.run.session import certificate_files
    from lipray.verify.record import decode, expected_arrays, unpack

    monkeypatch.setattr(verification, "LONG_ROUND", longest)
    network = convolutions()
    outcome = estimate_network(network, TORI, SerialExecutor(threads=1))
    first, second = certificate_files(network, TORI, outcome)
    record = decode("certificate.json", first)
    arrays = unpack("certificate.npz", second, expected_arrays(record))
    verdict = verification.verify_certificate(record, arrays, network, executor, memory=2**30)
    assert verdict.bound == pytest.approx(outcome.bound.upper, rel=1e-12)
    assert verdict.executor == "ray"
    arrays["0-0"][0] = float("nan")
    with pytest.raises(VerificationError, match="number 0 is nan"):
        verification.verify_certificate(record, arrays, network, executor, memory=2**30)


def test_what_is_under_way_at_a_deadline_is_cancelled(executor, sabotage):
    from lipray.partition.subproblem import Settings, Subproblem
    from lipray.run.budget import OUT_OF_TIME
    from lipray.run.executor import Done, Task

    sabotage("slow", Sleep(60.0, "w0"))
    problem = Subproblem("x", convolutions(), "product", Settings())
    tasks = [Task(name, name, name, problem, 2**20, 100.0) for name in ("slow", "slow too", "slow as well")]
    start = time.monotonic()
    outcomes = list(executor.run(tasks, deadline=start + 3.0))
    assert time.monotonic() - start < 50.0
    assert {outcome.task.key for outcome in outcomes} == {task.key for task in tasks}
    assert {outcome.kind for outcome in outcomes} == {OUT_OF_TIME}
    # The workers are free again.
    (again,) = executor.run([Task("quick", "quick", "quick", problem, 2**20, 100.0)])
    assert isinstance(again, Done)


def test_what_is_needed_is_done_after_a_deadline_even_if_it_flew_with_what_is_not(executor, sabotage):
    from lipray.partition.subproblem import Settings, Subproblem
    from lipray.run.budget import OUT_OF_TIME
    from lipray.run.executor import Done, Task

    sabotage("slow", Sleep(60.0, "w0"))
    problem = Subproblem("x", convolutions(), "product", Settings())
    names = ("slow 0", "product 0", "slow 1", "product 1", "slow 2", "slow 3", "product 2", "slow 4")
    # All are short, and of one group: they travel together.
    tasks = [Task(name, name, "one", problem, 2**20, 0.01, needed="product" in name) for name in names]
    start = time.monotonic()
    outcomes = {outcome.task.key: outcome for outcome in executor.run(tasks, deadline=start + 3.0)}
    assert time.monotonic() - start < 50.0
    assert set(outcomes) == set(names)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Done) if "product" in name else outcome.kind == OUT_OF_TIME, name


@pytest.mark.slow
@pytest.mark.usefixtures("coordinated")
def test_rounds_that_cannot_be_worked_leave_the_closed_form_of_one_task(executor, sabotage):
    sabotage("round", Bomb())
    outcome = estimate_network(convolutions(), TORI, executor)
    plain = estimate_network(convolutions(), TORI.model_copy(update={"iterations": 0}), SerialExecutor(threads=1))
    assert outcome.bound.upper == pytest.approx(plain.bound.upper, rel=1e-9)
    assert {failure.kind for failure in outcome.failures} >= {"WorkerCrashedError"}


def test_a_gpu_that_no_node_has_is_refused(executor):
    from lipray.partition.subproblem import Settings, Subproblem
    from lipray.run.executor import Task

    problem = Subproblem("x", convolutions(), "frequency", Settings(device="cuda"))
    with pytest.raises(PlanError, match="no node of the cluster offers a GPU"):
        executor.check([Task("x", "x", "x", problem, 1, 1.0)])


def test_too_much_memory_is_refused_before_anything_runs(executor):
    from lipray.partition.worklist import worklist
    from lipray.run.budget import Clock
    from lipray.run.driver import make_plan
    from lipray.run.tasks import schedule

    plan = make_plan(convolutions(), CONFIG)
    task = schedule(convolutions(), plan, worklist(plan), CONFIG, Clock.begin(None)).tasks[0]
    with pytest.raises(InfeasibleResourcesError) as caught:
        executor.check([task, replace(task, label="huge", memory=2**50)])
    assert caught.value.label == "huge"
    assert "1048576.00 GiB" in caught.value.describe()
    assert caught.value.available > 0


def test_more_threads_than_any_node_has_are_refused(executor):
    from lipray.run.ray.executor import RayExecutor

    with pytest.raises(PlanError, match="64 threads"):
        RayExecutor(executor._cluster, threads=64).check([])


@pytest.mark.usefixtures("executor")
def test_connection_of_the_process_is_used_and_left_open():
    import ray

    bound = lipray.estimate(convolutions(), executor="ray", lower_starts=0)
    assert bound.upper > 0
    assert ray.is_initialized()


MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(32, 3))
"""


def command(tmp_path, *words):
    """``lipray estimate`` of a small model, as a process of its own."""
    (tmp_path / "model.py").write_text(MODEL)
    words = [sys.executable, "-m", "lipray", "estimate", "model.py:net", "--input-shape", "1,6,6", *words]
    environment = os.environ | {"HOME": str(tmp_path)}
    return subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_running_cluster_is_joined_and_left_running(executor, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    process = command(tmp_path, "--address", address, "--json", "--lower-starts", "4")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["executor"] == "ray"
    assert 0 < result["lower"] <= result["upper"]
    assert f"Ray at {address}" in err
    assert result["failures"] == []
    bound = lipray.estimate(f"{tmp_path}/model.py:net", (1, 6, 6), lower_starts=4)
    assert (bound.upper, bound.lower) == (result["upper"], result["lower"])
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    executor.check([])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_command_leaves_its_bound_and_no_process(tmp_path, number, code):
    # Many starts, so that it is still at work when it is told to stop.
    process = command(tmp_path, "--lower-starts", "100000", "--workers", "1", "--json")
    first = process.stderr.readline()
    assert "embedded Ray" in first, process.stderr.read()
    assert "tasks, bound" in process.stderr.readline()  # a product bound is there
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert children
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    (folder,) = [path.parent for path in (tmp_path / "runs").glob("*/manifest.json")]
    assert f"lipray resume runs/{folder.name}" in err
    result = json.loads((folder / "result.json").read_text())
    assert result["state"] == "stopped"
    assert json.loads(out)["upper"] == result["upper"] > 0.0
    deadline = time.monotonic() + 20
    while (left := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def script(tmp_path, text, **environment):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)} | environment
    return subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_nothing_is_left_behind(tmp_path):
    """Two embedded runs in one process, both interrupted: no process, token file or temporary folder remains."""
    done = script(
        tmp_path,
        """
        import os, signal
        from pathlib import Path
        from lipray.config import EstimateConfig
        from lipray.run.start import start_executor

        before = dict(os.environ)
        for _ in range(2):
            place = start_executor(EstimateConfig(workers=1))
            folder = place._cluster.folder
            assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
            print(folder)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
            finally:
                place.close()
            assert not folder.exists()
        changed = {name for name in before | dict(os.environ) if before.get(name) != os.environ.get(name)}
        print("CHANGED", sorted(name for name in changed if "AUTH" in name or "THREADS" in name))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "CHANGED []" in done.stdout
    assert not (tmp_path / ".ray").exists()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for folder in done.stdout.split()[:2]:
        deadline = time.monotonic() + 20
        while folder in listed and time.monotonic() < deadline:
            time.sleep(0.5)
            listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert folder not in listed


def test_an_address_without_ray_is_refused_in_time(tmp_path):
    """Something listens, but it is not Ray."""
    done = script(
        tmp_path,
        """
        import socket, time
        from lipray.config import EstimateConfig
        from lipray.errors import ClusterError
        from lipray.run.ray import cluster as ray_cluster
        from lipray.run.start import start_executor

        ray_cluster.CONNECT_SECONDS = 5.0
        server = socket.create_server(("127.0.0.1", 0))
        start = time.monotonic()
        try:
            start_executor(EstimateConfig(address=f"127.0.0.1:{server.getsockname()[1]}"))
        except ClusterError as fault:
            print("REFUSED", time.monotonic() - start, fault.describe())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "REFUSED" in done.stdout
    assert float(done.stdout.split("REFUSED")[1].split()[0]) < 15
    assert "no Ray cluster answered" in done.stdout


def test_auto_names_the_address_it_found(tmp_path):
    done = script(
        tmp_path,
        """
        from lipray.config import EstimateConfig
        from lipray.errors import ClusterError
        from lipray.run.start import start_executor

        try:
            start_executor(EstimateConfig(address="auto"))
        except ClusterError as fault:
            print("REFUSED", fault.describe())
        """,
        RAY_ADDRESS="127.0.0.1:1",
    )
    assert "REFUSED 127.0.0.1:1: nothing answers there" in done.stdout, done.stderr

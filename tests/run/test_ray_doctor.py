"""Ray as ``lipray doctor`` sees it: an embedded one, and a running cluster whose nodes are asked one by one."""

import json
import os
import platform
import subprocess
import sys
import tempfile

import pytest

from lipray import __version__
from lipray.errors import ClusterError
from lipray.run import THREAD_VARIABLES
from lipray.run.ray import doctor as ray_doctor
from lipray.run.ray.doctor import OOM_RETRIES, Node


def node(address="10.0.0.5", why="", **changes):
    said = {"lipray": __version__, "Python": platform.python_version(), "Ray": "2.60.0", "torch": "2.13.0"}
    said |= dict.fromkeys(THREAD_VARIABLES, "1") | {OOM_RETRIES: ""} | changes
    return Node(address, {"CPU": 16.0, "memory": 2.0**36, "GPU": 1.0}, None if why else said, why)


def judged(*nodes):
    return {finding.name: finding for finding in ray_doctor._judge(nodes, name="node")}


def test_nodes_that_agree_are_well():
    found = judged(node(), node("10.0.0.6", **{OOM_RETRIES: "0"}))
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["node 10.0.0.5"].text.startswith(f"16 CPUs, 64.0 GiB, 1 GPUs; lipray {__version__}, ")
    assert "0, not set" in found["out of memory"].text


@pytest.mark.parametrize(("what", "there"), [("lipray", "0.0.1"), ("lipray", "none"), ("Python", "3.99.1")])
def test_a_node_with_another_version_is_a_fault(what, there):
    found = judged(node(), node("10.0.0.6", **{what: there}))
    assert found["node 10.0.0.5"].state == "ok"
    bad = found["node 10.0.0.6"]
    assert (bad.state, bad.code) == ("fault", ClusterError.exit_code)
    assert f"{what} {there}" in bad.text
    assert what in bad.remedy


def test_a_node_that_does_not_answer_is_a_fault_and_many_threads_a_warning():
    found = judged(node(why="no worker answered within 120 s"), node("10.0.0.6", OMP_NUM_THREADS="8"))
    assert found["node 10.0.0.5"].state == "fault"
    assert found["node 10.0.0.6"].state == "ok"
    assert found["threads of workers"].state == "warning"
    assert "OMP_NUM_THREADS of" in found["threads of workers"].text


def test_little_shared_memory_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_doctor, "object_store_bytes", lambda: 2**60)
    (found,) = ray_doctor._shared_memory(tmp_path)
    assert found.state == "warning"
    assert "--shm-size" in found.remedy
    assert not list(ray_doctor._shared_memory(tmp_path / "none"))


@pytest.mark.parametrize(
    ("code", "said", "state"),
    [(0, "", "warning"), (1, "AuthenticationError: InvalidAuthToken: missing", "ok"), (1, "cannot connect", "ok")],
)
def test_a_cluster_that_answers_without_a_token_is_open(monkeypatch, code, said, state):
    asked = []

    def answer(command, *, env, **_):
        asked.append((command, env))
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert ray_doctor.authentication("127.0.0.1:6379").state == state
    ((command, environment),) = asked
    assert command[-1] == "127.0.0.1:6379"
    assert "RAY_AUTH_TOKEN" not in environment
    if state == "warning":
        assert ray_doctor.authentication("10.0.0.5:6379").code == ClusterError.exit_code


def run(tmp_path, *words, **variables):
    """The command, as a process of its own: its findings by name."""
    environment = os.environ | {"HOME": str(tmp_path)} | variables
    command = [sys.executable, "-m", "lipray", "doctor", "--json", "--quiet", "--store", "memory://doctor", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    record = json.loads(done.stdout)
    assert record["exit_code"] == done.returncode
    return {finding["name"]: finding for finding in record["findings"]}


JOIN = """
import sys
from lipray.run.checks.findings import diagnosis, gather
from lipray.run.ray.doctor import joined
memory = []
record = diagnosis(gather("Ray", lambda: joined(sys.argv[1], memory)))
assert memory[0] > 0
print(record.model_dump_json())
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_running_cluster_is_joined_asked_and_left(tmp_path):
    from lipray.run.ray.cluster import connect

    cluster = connect(None, workers=1, threads=1)
    try:
        import ray

        here = {finding.name: finding for finding in ray_doctor.embedded()}
        command = [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
    finally:
        cluster.close()
    assert {finding.state for finding in here.values()} == {"ok"}
    assert f"lipray {__version__}" in here["worker 127.0.0.1"].text
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout.splitlines()[-1])["findings"]}
    assert {finding["state"] for finding in found.values()} == {"ok"}, found
    assert "1 node(s), 1 CPUs" in found["Ray"]["text"]
    assert f"lipray {__version__}, Python {platform.python_version()}" in found["node 127.0.0.1"]["text"]
    assert found["authentication"]["text"] == "the cluster wants a token"


@pytest.mark.ray
@pytest.mark.slow
def test_an_embedded_ray_is_started_and_ended(tmp_path):
    found = run(tmp_path)
    assert {finding["state"] for finding in found.values()} == {"ok"}, found
    assert "an embedded one starts in" in found["Ray"]["text"]
    assert "worker 127.0.0.1" in found
    assert not [path.name for path in tmp_path.iterdir() if path.name not in {".cache", ".config"}]


NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1"})
cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1")
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_every_node_is_asked(tmp_path):
    """Three nodes without a token; Unix sockets need a short path, which pytest's are not."""
    open_house = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", NODES],
            cwd=tmp_path,
            env=os.environ | open_house | {"HOME": str(tmp_path), "TMPDIR": folder, "RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            lines = iter(process.stdout.readline, "")
            address = next(line.strip() for line in lines if line.startswith("127.0.0.1:"))
            found = run(tmp_path, "--address", address, **open_house)
        finally:
            process.communicate(timeout=60)
    assert "3 node(s), 3 CPUs" in found["Ray"]["text"]
    assert found["authentication"]["state"] == "warning"
    assert "every user of this machine" in found["authentication"]["text"]
    assert {finding["state"] for name, finding in found.items() if name not in {"authentication", "token"}} == {"ok"}

"""The batch script for Slurm, with stand-ins for srun, Ray and lipray: what each of two nodes is told to do."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lipray.config import parse_duration
from tests.deploy.files import CLUSTER, ENVIRONMENT, option_values

SCRIPT = CLUSTER / "slurm.sh"
RUN = ("estimate", "model.py:net", "--store", "/shared/a folder", "--run-id", "first", "--budget", "3h")

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"
code=$?
wait
exit "$code"
"""
RAY = """#!PYTHON
import json, os, subprocess, sys
words = sys.argv[1:]
end = words.index("--")
node = os.environ["SLURM_NODEID"]
with open(os.path.join(os.environ["NOTES"], f"node{node}.json"), "w") as file:
    json.dump({"words": words[:end], "environment": dict(os.environ)}, file)
if node == "0":
    sys.exit(subprocess.run(words[end + 1 :]).returncode)
"""
PYTHON = """#!PYTHON
import json, os, signal, sys, time
def told(*_):
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
with open(os.path.join(os.environ["NOTES"], "driver.json"), "w") as file:
    json.dump(sys.argv[1:], file)
if os.environ.get("HOLD"):
    time.sleep(60)
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def place(tmp_path):
    """A Slurm of two nodes with four CPUs each, and the variables of a batch job."""
    files = {"srun": SRUN, "env/bin/ray": RAY, "env/bin/python": PYTHON, "env/bin/lipray": "#!/bin/sh\n"}
    for path, content in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.replace("PYTHON", sys.executable))
        file.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTES": str(tmp_path),
        "LIPRAY_TMPDIR": str(tmp_path),
        "LIPRAY_ENVIRONMENT": str(tmp_path / "env"),
        "LIPRAY_HEAD_IP": "192.0.2.10",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "4",
    }


def batch(place, *words, **more):
    command = ["/usr/bin/env", "bash", str(SCRIPT), *words]
    return subprocess.run(command, env=place | more, capture_output=True, text=True, check=False, timeout=60)


def note(place, name):
    with open(os.path.join(place["NOTES"], f"{name}.json")) as file:  # noqa: PTH118, PTH123
        return json.load(file)


def directives():
    lines = [line.split(maxsplit=1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    return option_values(lines)


def test_nodes_are_taken_whole():
    """`ray symmetric-run` refuses a node with another Ray on it, and ends all of a user's Ray in the end."""
    asked = directives()
    assert "exclusive" in asked
    assert asked["mem"] == "0"
    assert asked["ntasks-per-node"] == "1"


def test_a_lost_node_starts_the_job_again_and_the_end_is_announced_to_the_script_alone():
    asked = directives()
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    shell, name, seconds = asked["signal"].replace("@", ":").split(":")
    assert (shell, name) == ("B", "TERM")
    hours, minutes, rest = (int(part) for part in asked["time"].split(":"))
    assert 30 < int(seconds) < parse_duration(f"{hours}h{minutes}m{rest}s")


def test_both_nodes_start_ray_and_the_head_runs_the_driver(place):
    assert batch(place, *RUN).returncode == 0
    head, worker = note(place, "node0"), note(place, "node1")
    for node in (head, worker):
        options = option_values(node["words"])
        assert node["words"][:3] == ["symmetric-run", "--address", "192.0.2.10:6379"]
        assert node["words"][3:5] == ["--min-nodes", "2"]
        assert int(options["memory"]) > 2**28
        assert options["object-store-memory"] == str(2**31)
        assert node["environment"].items() >= ENVIRONMENT.items()
    assert note(place, "driver") == ["-m", "lipray", *RUN, "--address", "auto"]


def test_the_head_keeps_a_cpu_for_the_driver_and_has_no_dashboard(place):
    assert batch(place, *RUN).returncode == 0
    head, worker = (option_values(note(place, node)["words"]) for node in ("node0", "node1"))
    assert (head["num-cpus"], worker["num-cpus"]) == ("3", "4")
    # Ray refuses the option on workers.
    assert head["include-dashboard"] == "false"
    assert "include-dashboard" not in worker


def test_the_token_is_the_jobs_own_and_in_no_file(place):
    tokens = set()
    for _ in range(2):
        done = batch(place, *RUN)
        head, worker = (note(place, node)["environment"] for node in ("node0", "node1"))
        assert head["RAY_AUTH_MODE"] == "token"
        assert head["RAY_AUTH_TOKEN"] == worker["RAY_AUTH_TOKEN"]
        assert len(head["RAY_AUTH_TOKEN"]) == 64
        assert head["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
        tokens.add(head["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2


def test_the_drivers_exit_code_is_the_jobs(place):
    assert batch(place, *RUN, CODE="10").returncode == 10


def test_the_announcement_reaches_the_driver_and_the_script_waits_for_it(place):
    command = ["/usr/bin/env", "bash", str(SCRIPT), *RUN]
    with subprocess.Popen(command, env=place | {"HOLD": "1"}, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 30
        while not os.path.exists(os.path.join(place["NOTES"], "driver.json")):  # noqa: PTH110, PTH118
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=30)
    assert job.returncode == 143
    assert "told to stop" in said
    assert not os.path.exists(os.path.join(place["NOTES"], "lipray-7"))  # noqa: PTH110, PTH118


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (RUN, {"SLURM_JOB_ID": ""}, "error: this is a batch script; submit it with sbatch"),
        (RUN, {"LIPRAY_ENVIRONMENT": "/nonexistent"}, "error: there is no lipray in /nonexistent;"),
        ((), {}, "error: --store is needed"),
        (("estimate", "net", "--store=/s"), {}, "error: --run-id is needed"),
        (("estimate", "net", "--run-id", "x", "--storehouse"), {}, "error: --store is needed"),
    ],
    ids=str,
)
def test_it_says_what_is_missing(place, words, change, message):
    done = batch(place, *words, **change)
    assert done.returncode == 2
    assert done.stderr.startswith(message)

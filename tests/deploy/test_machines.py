"""The commands of cluster/ and docker/ with a real Ray, on machines made of network namespaces (see machines.sh)."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.deploy.files import CLUSTER, DOCKER, ROOT, document

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
NETWORK = "172.31.253"
MODEL = ROOT / "examples" / "digits_small"
ESTIMATE = f"estimate {MODEL}.py:digits_small --weights {MODEL}.safetensors --input-shape 1,8,8 --budget 60s"
SMALL = {"LIPRAY_OBJECT_STORE": str(10**8), "LIPRAY_MEMORY": str(10**9)}


@pytest.fixture(scope="module", autouse=True)
def _namespaces():
    """Skip where namespaces cannot be made: that takes Linux, iproute2 and root."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*UNSHARE, "bash", str(HERE / "machines.sh"), folder, NETWORK, "true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        except OSError as fault:
            pytest.skip(f"no namespaces here ({fault})")
        if done.returncode:
            pytest.skip(f"no namespaces here ({done.stderr.strip().splitlines()[-1]})")


@pytest.fixture
def folder():
    """A folder with a path so short that Ray's sockets fit in it."""
    path = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def on_machines(folder, script, **variables):
    """Run a script on the first of three machines; all that it starts ends with it. Returns what it wrote to stdout."""
    body = folder / "script.sh"
    body.write_text("set -euo pipefail\n" + script)
    unwanted = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"}
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [*UNSHARE, "bash", str(HERE / "machines.sh"), str(folder), NETWORK, "bash", str(body)]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, check=False, timeout=800, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def token(home):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(parents=True)
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o600)


def finished(run):
    """The result of a finished run in a store."""
    assert json.loads((run / "manifest.json").read_text())["state"] == "finished"
    result = json.loads((run / "result.json").read_text())
    assert result["lower"] <= result["upper"]
    assert result["upper"] == pytest.approx(36.86, abs=0.1)
    return result


def test_machines_reached_by_ssh(folder):
    """What the launcher does on them, and a job through the dashboard, which only the head itself can reach."""
    token(folder / "home")
    node = f"bash {CLUSTER}/node.sh"
    said = on_machines(
        folder,
        f"""
        fails() {{ if "$@"; then echo "this should fail: $*" >&2; exit 9; fi; }}
        reachable() {{ python -c "import socket; socket.create_connection(('$1', 8265), timeout=5)"; }}
        LIPRAY_STATE=$FOLDER/s10 {node} head
        for machine in 11 12; do LIPRAY_STATE=$FOLDER/s$machine on $machine {node} worker {NETWORK}.10; done
        reachable 127.0.0.1
        fails on 11 bash -c "$(declare -f reachable); reachable {NETWORK}.10"
        fails env RAY_AUTH_TOKEN=wrong python -m lipray status --address http://127.0.0.1:8265
        python -m lipray submit --address http://127.0.0.1:8265 --any-version --store $FOLDER/store --wait --json \
            {ESTIMATE.removeprefix("estimate ")}
        for machine in 12 11 10; do LIPRAY_STATE=$FOLDER/s$machine on $machine {node} stop; done
        fails reachable 127.0.0.1
        """,
        LIPRAY_ENVIRONMENT=sys.prefix,
        RAY_AUTH_MODE="token",
        **SMALL,
    )
    (manifest,) = folder.glob("store/*/manifest.json")
    finished(manifest.parent)
    assert manifest.parent.name in said


SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 on 11 unshare --pid --fork --mount-proc --kill-child "$@" &
worker=$!
SLURM_NODEID=0 "$@"
code=$?
wait "$worker" || code=$?
exit "$code"
"""
RAY = """#!/usr/bin/env bash
# `ray symmetric-run` ends all of Ray that it can see; here only what has this node's folder in its words.
[[ $1 == stop ]] || exec BIN/ray "$@"
for process in /proc/[0-9]*; do
    words=$(tr '\\0' ' ' <"$process/cmdline") || continue
    [[ $words != *"$RAY_TMPDIR"* ]] || kill -KILL "${process#/proc/}" || true
done 2>/dev/null
"""


def test_slurm(folder):
    """`ray symmetric-run` on two nodes, and the same job again, which finds its run finished."""
    programs = {"bin/srun": SRUN, "env/bin/ray": RAY.replace("BIN", str(BIN))}
    for program in ("python", "lipray"):
        programs[f"env/bin/{program}"] = f'#!/bin/sh\nexec {BIN / program} "$@"\n'
    for path, content in programs.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
        (folder / path).chmod(0o755)
    on_machines(
        folder,
        f"""
        unset RAY_TMPDIR
        for job in 1 2; do
            SLURM_JOB_ID=$job bash {CLUSTER}/slurm.sh {ESTIMATE} --store $FOLDER/store --run-id slurm
        done
        """,
        LIPRAY_ENVIRONMENT=str(folder / "env"),
        LIPRAY_TMPDIR=str(folder),
        SLURM_JOB_NUM_NODES="2",
        SLURM_CPUS_ON_NODE="2",
        RAY_gcs_rpc_server_reconnect_timeout_s="5",
        **SMALL,
    )
    finished(folder / "store" / "slurm")


def test_compose(folder):
    """The services' own commands, variables and health checks, with the token where compose would put it."""
    services = document(DOCKER / "compose.yaml")["services"]
    variables = {
        name: " ".join(f"{key}={shlex.quote(str(value))}" for key, value in service["environment"].items())
        for name, service in services.items()
    }
    command = {name: shlex.join(service["command"]) for name, service in services.items()}
    health = {name: shlex.join(service["healthcheck"]["test"][1:]) for name, service in services.items()}
    on_machines(
        folder,
        f"""
        mkdir /run/secrets
        (umask 077; echo 0123456789abcdef0123456789abcdef >/run/secrets/ray_token)
        healthy() {{ for _ in $(seq 60); do "$@" >/dev/null 2>&1 && return; sleep 2; done; return 1; }}
        env {variables["head"]} {command["head"]} &
        healthy env {variables["head"]} {health["head"]}
        for machine in 11 12; do
            on $machine env {variables["worker"]} {command["worker"]} &
            healthy on $machine env {variables["worker"]} {health["worker"]}
        done
        env {variables["head"]} python -m lipray doctor --address auto
        env {variables["head"]} python -m lipray {ESTIMATE} --address auto --store $FOLDER/store --run-id compose
        """,
    )
    finished(folder / "store" / "compose")

"""The scripts of cluster/ and docker/: linted, and what they say to wrong words."""

import os
import subprocess

import pytest

from tests.deploy.files import CLUSTER, DOCKER, SCRIPTS, name, tool

BASH = "/usr/bin/env", "bash"


def run(*words, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    return subprocess.run([*BASH, *words], env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_bash_reads_it(script):
    assert run("-n", str(script)).returncode == 0
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_shellcheck_has_nothing_to_say(script):
    done = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("words", [(), ("head", "more"), ("worker",), ("rest",)], ids=str)
def test_a_node_knows_three_words(words):
    done = run(str(CLUSTER / "node.sh"), *words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: node.sh head | worker HEAD | stop")


@pytest.mark.parametrize("words", [("head",), ("worker", "192.0.2.10")], ids=str)
def test_a_node_does_not_start_without_a_token(words, tmp_path):
    done = run(str(CLUSTER / "node.sh"), *words, HOME=str(tmp_path), LIPRAY_STATE=str(tmp_path / "state"))
    assert (done.returncode, done.stderr) == (1, f"error: there is no token at {tmp_path}/.ray/auth_token\n")
    assert not (tmp_path / "state").exists()


def test_to_stop_a_node_that_was_not_started_is_nothing(tmp_path):
    (tmp_path / "pid").write_text(str(os.getpid()))  # given out anew, to a process that is not Ray's
    assert run(str(CLUSTER / "node.sh"), "stop", LIPRAY_STATE=str(tmp_path)).returncode == 0
    assert run(str(CLUSTER / "node.sh"), "stop", LIPRAY_STATE=str(tmp_path / "none")).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage: install.sh ENVIRONMENT SOURCE CONSTRAINTS [EXTRAS]"),
        (("env", "none.whl", "constraints.txt"), "error: none.whl is not there"),
        (("env", "here.whl", "none.txt"), "error: none.txt is not there"),
        (("env", "here.whl", "constraints.txt"), "error: false is older than Python 3.11, or not there"),
    ],
    ids=str,
)
def test_an_installation_says_what_is_missing(words, message, tmp_path):
    for path in ("here.whl", "constraints.txt"):
        (tmp_path / path).touch()
    places = [str(tmp_path / word) for word in words]
    done = run(str(DOCKER / "install.sh"), *places, PYTHON="false")
    assert done.returncode == 2
    assert done.stderr.replace(f"{tmp_path}/", "").startswith(message)
    assert not (tmp_path / "env").exists()

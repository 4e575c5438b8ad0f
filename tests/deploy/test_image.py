"""The Dockerfile: linted, pinned, without privileges, and built from what .dockerignore lets through."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import DOCKER, IMAGE, ROOT, tool

DOCKERFILE = DOCKER / "Dockerfile"


def instructions():
    """Pairs of an instruction's name and the rest, continued lines joined, comments left out."""
    text = "".join(line for line in DOCKERFILE.read_text().splitlines(keepends=True) if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def stages():
    found = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def test_hadolint_has_nothing_to_say():
    done = subprocess.run(
        [tool("hadolint"), "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_both_stages_are_the_same_pinned_python():
    (default,) = [rest for word, rest in instructions() if word == "ARG" and rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-[a-z]+", default)
    assert [rest.split()[0] for word, rest in instructions() if word == "FROM"] == ["${PYTHON_IMAGE}"] * 2


def test_it_runs_without_privileges_by_number():
    """Kubernetes can tell that a number is not root; of a name it cannot."""
    last = dict(stages()[-1])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    number = last["USER"].split(":")[0]
    assert f"--uid {number}" in last["RUN"]
    assert f"--gid {number}" in last["RUN"]
    after = [word for word, _ in stages()[-1]][[word for word, _ in stages()[-1]].index("USER") :]
    assert not set(after) & {"COPY", "ADD", "RUN"}


def test_ray_is_told_what_a_cluster_of_lipray_needs():
    environment = dict(re.findall(r"(\w+)=(\S+)", dict(stages()[-1])["ENV"]))
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["RAY_task_oom_retries"] == "0"
    assert environment["PATH"].startswith("/opt/lipray/bin:")
    assert "/etc/profile.d/" in dict(stages()[-1])["RUN"]


def test_no_index_is_named_and_nothing_secret_is_asked_for():
    arguments = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    assert arguments.keys() == {"PYTHON_IMAGE", "TORCH_INDEX", "CUDA"}
    assert arguments["TORCH_INDEX"] == arguments["CUDA"] == '""'


def let_through(path):
    """Whether .dockerignore, which excludes everything first, lets a path of the repository through."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [Path(rule[1:]) for rule in rules if rule.startswith("!")]
    return any(path == one or one in path.parents for one in allowed)


def test_what_is_copied_is_let_through_and_there():
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert let_through(Path(source)), source


@pytest.mark.parametrize("path", [".git", ".venv", "runs", "tests", "docker/compose.yaml", "shared"])
def test_nothing_else_is_let_through(path):
    assert not let_through(Path(path))


def test_the_build_command_names_this_version():
    assert f"-t {IMAGE} ." in DOCKERFILE.read_text()

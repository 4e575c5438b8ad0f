"""What the files of cluster/ and docker/ are checked against: where they are, which versions hold, what checks them."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from lipray.run import THREAD_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
DOCKER = ROOT / "docker"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WHEEL = f"lipray-{VERSION}-py3-none-any.whl"
IMAGE = f"lipray:{VERSION}"
PINS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
ENVIRONMENT = dict.fromkeys(THREAD_VARIABLES, "1") | {"RAY_task_oom_retries": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""What every node's Ray is started with."""

SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *DOCKER.glob("*.sh")])
FILES = sorted(
    path
    for folder in (CLUSTER, DOCKER)
    for path in folder.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


def name(path):
    return path.relative_to(ROOT).as_posix()


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def document(path):
    (only,) = documents(path)
    return only


def estimate_options(command):
    """The options of a ``python -m lipray estimate`` inside a shell command, as the command line itself reads them."""
    from lipray.cli.estimate import estimate_command

    words = shlex.split(command)
    start = words.index("lipray")
    assert words[start - 2 : start] == ["python", "-m"]
    assert words[start + 1] == "estimate"
    return estimate_command.make_context("estimate", words[start + 2 :]).params


def option_values(words):
    """``--name=value`` of a command's words, by name."""
    return dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))


def tool(name):
    """A linter of the environment of these tests; tests that need one that is not there are skipped."""
    path = Path(sys.executable).with_name(name)
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here; it is in the extra test-deploy")
    return found

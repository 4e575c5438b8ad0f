"""What a manifest says of the place where a run was made."""

import subprocess
from pathlib import Path

import pytest

import lipray
from lipray.run.record.surroundings import git_revision, machine, versions

ROOT = Path(lipray.__file__).resolve().parents[1]


def test_the_revision_is_that_of_the_source_tree():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert git_revision() == (head.stdout.strip() or None)


def test_versions_and_the_machine():
    assert {"python", "lipray", "numpy", "torch", "scipy"} <= set(versions())
    assert machine()["cpus"] >= 1

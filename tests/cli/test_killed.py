"""A driver killed in the middle, as by SIGKILL or a machine that goes: the run is gone on with by its folder alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net
"""
WORDS = (
    "estimate",
    "model.py:net",
    "--input-shape",
    "1,9,9",
    "--method",
    "ellipsoid",
    "--partition-factor",
    "3",
    "--composition",
    "overlap",
)
OPTIONS = ("--lower-starts", "0", "--json")


def start(folder, *words):
    environment = os.environ | {"HOME": str(folder), "TMPDIR": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "lipray", *words], cwd=folder, env=environment, **pipes)


def solved(folder):
    """Labels of what was solved, not found in the store, as the run's events have it."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    done = [event for event in events if event["event"] == "task_done" and "tile" in event["label"]]
    return [event["label"] for event in done if not event["stored"]]


@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray])])
def test_what_was_solved_before_is_not_solved_again(tmp_path, executor):
    (tmp_path / "model.py").write_text(MODEL)
    workers = ("--executor", executor, "--workers", "1")
    whole = start(tmp_path, *WORDS, *OPTIONS, *workers, "--store", "other", "--run-id", "whole")
    undisturbed = json.loads(whole.communicate(timeout=200)[0])
    run = tmp_path / "runs" / "killed"
    process = start(tmp_path, *WORDS, *OPTIONS, *workers, "--run-id", "killed")
    limit = time.monotonic() + 100.0
    while len(solved(run)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert json.loads((run / "manifest.json").read_text())["state"] == "running"
    assert not (run / "result.json").exists()
    before = solved(run)
    again = start(tmp_path, "resume", str(Path("runs") / "killed"), "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert json.loads(out)["upper"] == undisturbed["upper"]
    after = solved(run)[len(before) :]
    everything = solved(tmp_path / "other" / "whole")
    assert len(everything) == 9
    # One worker: what it was at is lost, and what the record had not yet been told of is in the store all the same.
    assert set(after) | set(before) == set(everything)
    assert len(after) <= len(everything) - len(before)

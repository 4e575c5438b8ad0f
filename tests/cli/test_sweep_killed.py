"""A sweep whose driver is killed: its report is of what there is, and it is gone on with by its folder alone."""

import json
import time

import pytest

from tests.cli.test_killed import MODEL, start

pytestmark = pytest.mark.slow
SWEEP = ("sweep", "model.py:net", "--input-shape", "1,9,9", "--method", "ellipsoid,frequency", "--lower-starts", "0")
VALUES = ("--partition-factor", "1,3", "--block-depth", "1,all", "--set", "seed=0,1", "--json", "--executor", "serial")


def solved(folder):
    """Labels of what was solved, not found in the store; product bounds, which are cheap, are always made again."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    done = [event["label"] for event in events if event["event"] == "task_done" and not event["stored"]]
    return [label for label in done if not label.endswith(" product")]


def test_a_killed_sweep_is_reported_and_gone_on_with(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    whole = start(tmp_path, *SWEEP, *VALUES, "--store", "other", "--run-id", "whole")
    undisturbed = json.loads(whole.communicate(timeout=200)[0])
    folder = tmp_path / "runs" / "killed"
    process = start(tmp_path, *SWEEP, *VALUES, "--run-id", "killed")
    limit = time.monotonic() + 100.0
    while len(solved(folder)) < 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (folder / "sweep.json").exists()
    before = solved(folder)

    report = start(tmp_path, "report", "runs/killed", "--json")
    told = json.loads(report.communicate(timeout=100)[0])
    assert told["state"] == "running"
    assert "The sweep has not come to its end" in (folder / "report.html").read_text()
    assert len((folder / "sweep.csv").read_text().splitlines()) == len(undisturbed["rows"]) + 1

    again = start(tmp_path, "resume", "runs/killed", "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    resumed = json.loads(out)
    assert [(row["state"], row["upper"]) for row in resumed["rows"]] == [
        (row["state"], row["upper"]) for row in undisturbed["rows"]
    ]
    # One process: no task is done twice but for the one that it was at.
    after = solved(folder)[len(before) :]
    assert len(set(before) & set(after)) <= 1
    report = start(tmp_path, "report", "runs/killed", "--json")
    assert json.loads(report.communicate(timeout=100)[0])["state"] == "finished"
    assert "The sweep has not come to its end" not in (folder / "report.html").read_text()

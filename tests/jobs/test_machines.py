"""Three machines, as far as Ray can tell: a head without CPUs and two nodes; a job gives the bound of one process."""

import json
from pathlib import Path

import pytest

import lipray
from tests.jobs.head import Head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
"""
SHAPE = (1, 9, 9)
OPTIONS = {"method": "ellipsoid", "partition_factor": 3, "iterations": 4, "lower_starts": 8, "composition": "overlap"}


@pytest.fixture(scope="module")
def head():
    """The cluster; its nodes may join while the job is at work already."""
    running = Head(nodes=2)
    try:
        yield running.wait()
    finally:
        running.close()


def test_a_job_on_two_machines_gives_the_bound_of_one_process_bit_for_bit(head, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    words = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code, out, err = head.run(
        "submit", "model.py:net", "--input-shape", "1,9,9", *words, "--elastic", "--wait", "--json", cwd=tmp_path
    )
    assert code == 0, err
    told = json.loads(out)
    here = lipray.estimate(f"{tmp_path}/model.py:net", SHAPE, threads=1, **OPTIONS)
    assert told["result"]["upper"] == here.upper
    assert told["result"]["lower"] == here.lower
    assert [block["upper"] for block in told["result"]["blocks"]] == [block.upper for block in here.blocks]
    assert told["result"]["failures"] == []
    folder = Path(told["store"]) / told["run_id"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert len({event["where"] for event in events if event["event"] == "task_done"}) >= 2
    assert lipray.verify_run(folder, f"{tmp_path}/model.py:net").bound == here.upper

"""A tiny run and a tiny sweep, made once; tests that change them take a copy."""

import shutil

import pytest
import torch
from torch import nn

import lipray
from lipray.run.grid import make_grid, parse_axes
from lipray.run.record.records import RequestRecord
from lipray.run.serial import SerialExecutor
from lipray.run.summary import describe_model
from lipray.run.sweep import run_sweep, sweep_part
from tests.run.test_joint import NETWORK


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A store with the folders ``run`` and ``sweep``."""
    store = tmp_path_factory.mktemp("recorded")
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 3),
    )
    options = {"block_depth": 1, "partition_factor": 2, "iterations": 3, "lower_starts": 4}
    lipray.estimate(net.eval(), (1, 6, 6), out=store / "run", **options)
    flags = {"method": "ellipsoid,frequency", "partition_factor": "1,2", "block_depth": "1,all"}
    base = {"iterations": 3, "lower_starts": 4, "executor": "serial", "store": str(store), "run_id": "sweep"}
    part, configs = sweep_part(make_grid(parse_axes(flags, ()), base))
    model, request = describe_model(NETWORK, "net"), RequestRecord(model="model.py:net", folder=".")
    words = ("sweep", "model.py:net", "--partition-factor", "1,2")
    run_sweep(part, configs, lambda _: (NETWORK, model), executor=SerialExecutor(1), request=request, arguments=words)
    return store


@pytest.fixture
def store(recorded, tmp_path):
    """A copy of it."""
    return shutil.copytree(recorded, tmp_path / "store")

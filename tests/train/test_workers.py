"""Workers of Ray Train: the loss curve of one process, and a run that goes on when a worker is killed."""

import os
import signal
import threading

import numpy as np
import pytest
import yaml

from lipray.train.config import read_train_config
from lipray.train.session import run_training
from tests.listeners import beyond_loopback, listening

pytest.importorskip("tensorboardX", reason="ray.train is not installed")

# One network with centring, whose mean is that of the global batch.
FACTORY = """
from torch import nn
from lipray.train.layers import Centre, MinMax, LinearResidualConv

def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Centre(4), MinMax(), LinearResidualConv(4, 1), Centre(4), MinMax(),
        nn.Flatten(), nn.Linear(64, 3),
    )
"""

KILLED = '''
import os, signal
import torch
from pathlib import Path
from torch import nn

class Killer(nn.Module):
    """Kills its process once, in the third epoch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        mark = Path(__file__).with_name("killed")
        if self.training and x.shape[0] > 2:
            self.count += 1
            if self.count == 10 and not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
        return x

def net():
    return nn.Sequential(nn.Flatten(), Killer(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
'''


@pytest.fixture
def task(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 1, 4, 4))
    y = np.arange(96) % 3
    np.savez(tmp_path / "data.npz", x=(centres[y] + 0.3 * rng.normal(size=(96, 1, 4, 4))).astype(np.float32), y=y)
    values = {"model": "net.py:net", "data": "data.npz", "epochs": 4, "batch": 24, "radius": 0.25, "threads": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


class Watch:
    """Collects where this process and those below it listen, until it is told to stop."""

    def __enter__(self):
        self.seen, self._over = set(listening()), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.1):
            self.seen.update(listening())


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_one_machine_listen_on_loopback_only(task):
    (task / "net.py").write_text(FACTORY)
    config = read_train_config(task / "run.yaml").model_copy(update={"workers": 2})
    with Watch() as watch:
        run_training(config, out=task / "run")
    assert len(watch.seen) > 5
    assert not beyond_loopback(watch.seen)


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_take_the_steps_of_one(task):
    (task / "net.py").write_text(FACTORY)
    config = read_train_config(task / "run.yaml")
    alone = run_training(config, out=task / "alone")
    both = run_training(config.model_copy(update={"workers": 2}), out=task / "both")
    for one, two in zip(alone.rows, both.rows, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["constant"] == pytest.approx(one["constant"], rel=1e-3)
    assert (task / "both" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_worker_goes_on_from_the_last_checkpoint(task):
    (task / "net.py").write_text(KILLED)
    config = read_train_config(task / "run.yaml").model_copy(update={"workers": 2})
    trained = run_training(config, out=task / "run")
    victim = int((task / "killed").read_text())
    assert victim != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(victim, signal.SIG_DFL)
    assert [row["epoch"] for row in trained.rows] == [1, 2, 3, 4]
    (task / "whole").mkdir()
    undisturbed = run_training(config.model_copy(update={"workers": 1}), out=task / "undisturbed")
    assert trained.rows[-1]["loss"] == pytest.approx(undisturbed.rows[-1]["loss"], rel=1e-4)

"""Whole runs: what they leave, exact resumption, and every kind of bad input."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from lipray.cli.main import cli
from lipray.errors import DataError, StoreError, TrainingError
from lipray.model.load import load_network
from lipray.train.alone import CHECKPOINT, read_checkpoint
from lipray.train.config import TrainConfig, make_train_config, read_train_config
from lipray.train.loop import Parts, check_state
from lipray.train.session import run_training

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def task(tmp_path):
    """A small problem of three classes, a factory of a network, and the configuration of a run."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 1, 4, 4))
    y = np.arange(96) % 3
    x = (centres[y] + 0.3 * rng.normal(size=(96, 1, 4, 4))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "net.py").write_text(FACTORY)
    values = {
        "model": "net.py:net",
        "data": "data.npz",
        "epochs": 4,
        "batch": 8,
        "radius": "1/4",
        "learning_rate": 0.02,
        "warm_up": 0.5,
        "lookahead": 3,
        "threads": 1,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def config_of(task, **changes):
    return read_train_config(task / "run.yaml").model_copy(update=changes)


def weights(folder):
    return read_checkpoint(folder / CHECKPOINT)["module"]


def test_a_run_learns_and_leaves_what_is_needed(task):
    seen = []
    trained = run_training(config_of(task), out=task / "run", notify=seen.append)
    assert [row["epoch"] for row in seen] == [1, 2, 3, 4]
    assert seen[-1]["clean"] > 0.9
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert {"robust 0.1", "robust 0.25", "robust 0.5", "constant"} <= set(seen[-1])
    with (task / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx([row["loss"] for row in seen], rel=1e-9)
    loaded = load_network(f"{task}/net.py:net", (1, 4, 4), weights=task / "run" / "model.safetensors").network
    x = torch.rand(5, 1, 4, 4)
    from lipray.model.evaluate import evaluate

    torch.testing.assert_close(evaluate(loaded, x).float(), trained.module(x), rtol=1e-4, atol=1e-5)
    assert trained.command.startswith("lipray certify")


@pytest.mark.parametrize("bound", ["product", "optimised"])
def test_a_run_that_is_stopped_goes_on_exactly(task, bound):
    config = config_of(task, bound=bound, bound_iterations=5)
    whole = run_training(config, out=task / "whole")

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(config, out=task / "parts", notify=stop)
    resumed = run_training(config, resume=task / "parts")
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in whole.rows]
    for key, value in weights(task / "whole").items():
        assert torch.equal(value, weights(task / "parts")[key]), key


def test_a_finished_run_is_not_trained_further(task):
    first = run_training(config_of(task), out=task / "run")
    again = run_training(config_of(task), resume=task / "run", notify=lambda _: pytest.fail("an epoch was trained"))
    assert again.rows == first.rows


def test_resuming_with_another_configuration_is_refused_and_says_what_differs(task):
    run_training(config_of(task, epochs=1), out=task / "run")
    with pytest.raises(TrainingError, match=r"learning_rate: 0.02 then, 0.03 now.*") as fault:
        run_training(config_of(task, epochs=1, learning_rate=0.03), resume=task / "run")
    assert "begin a new run" in fault.value.hint
    run_training(config_of(task, epochs=1, threads=2), resume=task / "run")  # changes nothing that is computed


def test_data_may_have_moved_but_not_changed(task):
    config = config_of(task, epochs=2)
    run_training(config, out=task / "run")
    (task / "elsewhere").mkdir()
    moved = task / "elsewhere" / "data.npz"
    (task / "data.npz").rename(moved)
    assert len(run_training(config_of(task, epochs=2, data=str(moved)), resume=task / "run").rows) == 2
    with np.load(moved) as arrays:
        x, y = arrays["x"].copy(), arrays["y"]
    x[5, 0, 1, 1] += 0.25
    np.savez(moved, x=x, y=y)
    with pytest.raises(TrainingError, match="not those that the run began with"):
        run_training(config_of(task, epochs=2, data=str(moved)), resume=task / "run")
    np.savez(task / "other.npz", x=x, y=y)
    with pytest.raises(TrainingError, match=r"data: .*other.npz now"):
        run_training(config_of(task, epochs=2, data=str(task / "other.npz")), resume=task / "run")


def test_a_checkpoint_of_another_architecture_is_refused(task):
    run_training(config_of(task, epochs=1), out=task / "run")
    (task / "net.py").write_text(FACTORY.replace("12", "14"))
    with pytest.raises(TrainingError, match=r"another architecture: '1\.weight'"):
        run_training(config_of(task, epochs=1), resume=task / "run")
    with pytest.raises(TrainingError, match="it has no"):
        check_state(nn.Linear(2, 2), {})
    with pytest.raises(TrainingError, match="has no place"):
        check_state(nn.Linear(2, 2), {**nn.Linear(2, 2).state_dict(), "extra": torch.zeros(1)})


def test_a_damaged_checkpoint_is_named(task):
    run_training(config_of(task, epochs=1), out=task / "run")
    content = (task / "run" / CHECKPOINT).read_bytes()
    (task / "run" / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match="no whole checkpoint"):
        run_training(config_of(task, epochs=1), resume=task / "run")


def test_a_checkpoint_runs_no_code(task):
    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    (task / "run").mkdir()
    torch.save({"lipray": 1, "module": Hostile()}, task / "run" / CHECKPOINT)
    with pytest.raises(StoreError, match="no whole checkpoint"):
        read_checkpoint(task / "run" / CHECKPOINT)


def test_a_loss_that_is_not_finite_ends_the_run(task):
    with pytest.raises(TrainingError, match=r"is (nan|inf) in epoch"):
        run_training(config_of(task, learning_rate=1e30, clip=1e30, optimiser="sgd"), out=task / "run")


def test_generated_examples_are_mixed_in_and_chosen_by_confidence(task):
    rng = np.random.default_rng(1)
    y = np.arange(60) % 3
    confidence = np.linspace(0.0, 1.0, 60)
    np.savez(task / "more.npz", x=rng.normal(size=(60, 1, 4, 4)).astype(np.float32), y=y, confidence=confidence)
    part = {"data": str(task / "more.npz"), "ratio": (1, 1), "confidence": 0.5}
    config = make_train_config({**config_of(task).model_dump(), "epochs": 1, "generated": part}, "test")
    from lipray.train.build import read_training_data

    train, generated, _ = read_training_data(config)
    assert len(train) == 96
    assert len(generated) == 30
    assert len(run_training(config, out=task / "run").rows) == 1
    np.savez(task / "more.npz", x=train.x[:60], y=y, confidence=confidence * 0.9)
    sure = make_train_config({**config.model_dump(), "generated": {**part, "confidence": 1.0}}, "test")
    with pytest.raises(DataError, match="no sample has a confidence of 1"):
        read_training_data(sure)


def test_a_penalty_lowers_the_constant(task):
    plain = run_training(config_of(task, loss="cross-entropy", epochs=6), out=task / "plain")
    assert "constant" not in plain.rows[-1]
    small = run_training(config_of(task, loss="cross-entropy", penalty=0.3, epochs=6), out=task / "small")
    import lipray

    bounds = [lipray.estimate(t.module, (1, 4, 4), method="product", lower_starts=0).upper for t in (plain, small)]
    assert bounds[1] < 0.7 * bounds[0]


def test_a_limit_is_kept(task):
    limited = run_training(config_of(task, loss="cross-entropy", limit=1.5, epochs=6), out=task / "limited")
    assert max(row["constant"] for row in limited.rows) <= 1.5 * 1.02
    plain = run_training(config_of(task, loss="cross-entropy", penalty=1e-9, epochs=6), out=task / "plain")
    assert plain.rows[-1]["constant"] > 2.0
    import lipray

    pairs = [(0, 1), (0, 2), (1, 2)]
    margins = [
        lipray.estimate(limited.module, (1, 4, 4), method="product", lower_starts=0, pairs=[pair]).upper
        for pair in pairs
    ]
    assert max(margins) <= 1.5 * 1.02


BAD = {
    "label out of range": ("data", lambda x, y: (x, np.where(y == 2, -1, y)), 11, "outside 0"),
    "NaN": ("data", lambda x, y: (np.where(x > 1.0, np.nan, x), y), 11, "has a NaN"),
    "wrong shape": ("data", lambda x, y: (x[:, :, :3], y), 11, "does not take examples"),
    "more classes than outputs": ("data", lambda x, y: (x, y + 3), 11, "outputs of shape"),
    "unknown key": ("config", {"learning-rate": 1.0}, 3, "is no option"),
    "radius of zero": ("config", {"radius": 0}, 3, "radius"),
    "radius below zero": ("config", {"radius": "-1/4"}, 3, "radius"),
    "text for a radius": ("config", {"radius": "a quarter"}, 3, "write it like 0.5 or 36/255"),
    "unknown loss": ("config", {"loss": "magic"}, 3, "loss"),
    "batch too large": ("config", {"batch": 1000}, 13, "batch"),
    "batch not for the workers": ("config", {"workers": 5}, 3, "shared out evenly"),
    "no data": ("config", {"data": "nothing.npz"}, 11, "no such file"),
    "no model": ("config", {"model": "net.py:nothing"}, 4, "nothing"),
    "sizes of another model": ("config", {"sizes": {"width": 4}}, 3, "only the liresnet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_an_exit_code(task, case):
    where, change, code, said = BAD[case]
    if where == "data":
        with np.load(task / "data.npz") as arrays:
            x, y = change(arrays["x"], arrays["y"])
        np.savez(task / "data.npz", x=x, y=y)
    else:
        values = yaml.safe_load((task / "run.yaml").read_text())
        (task / "run.yaml").write_text(yaml.safe_dump({**values, **change}))
    result = CliRunner().invoke(cli, ["train", str(task / "run.yaml"), "--out", str(task / "run"), "--quiet"])
    assert result.exit_code == code, result.output
    assert result.output.startswith("error: ")
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (task / "run" / "model.safetensors").exists()


def test_a_layer_without_a_constant_is_refused_by_name(task):
    bad = FACTORY.replace("nn.Linear(12, 8), nn.ReLU()", "nn.Linear(12, 8), nn.LayerNorm(8)")
    (task / "net.py").write_text(bad)
    result = CliRunner().invoke(cli, ["train", str(task / "run.yaml"), "--out", str(task / "run")])
    assert result.exit_code == 4
    assert "'4'" in result.output


def test_the_command(task):
    run = ["train", str(task / "run.yaml"), "--out", str(task / "run")]
    result = CliRunner().invoke(cli, run)
    assert result.exit_code == 0, result.output
    assert "epoch 4/4" in result.output
    assert "lipray certify" in result.output
    again = CliRunner().invoke(cli, ["train", "--resume", str(task / "run"), "--json", "--quiet"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["epochs"] == 4
    taken = CliRunner().invoke(cli, run)
    assert taken.exit_code == 7
    assert "holds files already" in taken.output
    assert CliRunner().invoke(cli, ["train"]).exit_code == 2
    assert CliRunner().invoke(cli, ["train", "--resume", str(task / "nowhere")]).exit_code == 7


def test_defaults_are_those_of_the_digits_network():
    config = TrainConfig()
    assert config.model == "liresnet-digits"
    assert make_train_config(config.model_dump(mode="json"), "test") == config
    assert Parts.__slots__  # a checkpoint holds what it names and nothing else

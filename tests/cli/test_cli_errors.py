"""Every mistake a user can make: one message, a hint, an exit code; no traceback, and nothing half-written."""

import json
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from lipray.cli.main import cli

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))

def normed():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

def broken():
    raise RuntimeError("no such file: weights.bin")

def number():
    return 3
"""
JOIN = """
from torch import nn, relu

class Join(nn.Module):
    def __init__(self, channels, padding):
        super().__init__()
        self.branch = nn.Conv2d(2, channels, 3, padding=padding)

    def forward(self, x):
        return relu(x + self.branch(x))

def channels():
    return Join(3, 1)

def positions():
    return Join(2, 0)

def deep():
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 4), nn.ReLU())

def norm():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval()
    net[1].running_var[1] = float("nan")
    return net

def slope():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(3))
    net[1].weight.data[2] = float("nan")
    return net
"""
NET = ("--input-shape", "1,4,4", "--executor", "serial", "--lower-starts", "0")


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A folder with a model and good weights, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(FACTORY)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    save_file(net.state_dict(), "good.safetensors")
    return net.state_dict()


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(code, *words, says=()):
    """Run a command that must fail with ``code`` and say each of ``says``; nothing but the inputs is left."""
    before = sorted(Path().rglob("*"))
    outcome = invoke(*words)
    assert outcome.exit_code == code, outcome.output
    assert outcome.stdout == ""
    lines = outcome.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in outcome.output
    for part in says:
        assert part in outcome.stderr
    after = sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)
    assert after == [path for path in before if "__pycache__" not in path.parts]
    return outcome.stderr


@pytest.mark.parametrize("command", ["plan", "estimate"])
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nosuch.onnx", "no such file"),
        ("nosuch.py:net", "no such file"),
        ("nosuch.module:net", "nosuch"),
        ("model.py:nett", "nett"),
        ("resnet19", "resnet19"),
        ("model.py:broken", "no such file: weights.bin"),
        ("model.py:number", "int"),
    ],
)
def test_models_that_are_not_there(command, model, says):
    refused(4, command, model, "--input-shape", "1,4,4", says=[says, "hint: "])


def test_unsupported_layer_is_named():
    refused(4, "estimate", "model.py:normed", "--input-shape", "4", "--executor", "serial", says=["'1'", "LayerNorm"])


def test_a_residual_join_of_unequal_shapes_is_named():
    Path("join.py").write_text(JOIN)
    for name in ("channels", "positions"):
        words = ("estimate", f"join.py:{name}", "--input-shape", "2,6,6", "--executor", "serial")
        refused(4, *words, says=["Join", "(2, 6, 6)", "must match the size"])


def test_an_input_too_small_for_the_network_is_named():
    Path("join.py").write_text(JOIN)
    words = ("estimate", "join.py:deep", "--input-shape", "2,5,5", "--executor", "serial")
    refused(4, *words, says=["'2'", "(2, 3, 3)", "no smaller than its 4x4 kernel"])
    refused(4, "estimate", "vgg16", "--input-shape", "3,16,16", "--executor", "serial", says=["too small for vgg16"])


def test_one_channel_that_is_not_a_number_is_named():
    Path("join.py").write_text(JOIN)
    for name, tensor in (("norm", "1.running_var"), ("slope", "1.weight")):
        words = ("estimate", f"join.py:{name}", "--input-shape", "2,6,6", "--executor", "serial")
        refused(4, *words, says=[tensor, "1 of 3 entries"])


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for words in (NET, (*NET, "--method", "hybrid"), (*NET[:2], "--method", "frequency")):
        refused(2, "estimate", "model.py:net", *words, "--device", "cuda", says=["--device", "CUDA"])


@pytest.mark.parametrize(
    "kind", ["missing file", "corrupt", "empty", "missing key", "extra key", "shape", "nan", "inf"]
)
def test_bad_weights(desk, kind):
    state = {key: value.clone() for key, value in desk.items()}
    path = Path("bad.safetensors")
    says = ["bad.safetensors"]
    if kind == "missing key":
        del state["3.weight"]
        says = ["3.weight"]
    elif kind == "extra key":
        state["4.weight"] = torch.ones(2)
        says = ["4.weight"]
    elif kind == "shape":
        state["3.weight"] = torch.ones(3, 31)
        says = ["3.weight", "31", "32"]
    elif kind in {"nan", "inf"}:
        state["0.weight"][1, 0, 2, 2] = float(kind)
        says = []
    if kind == "corrupt":
        path.write_bytes(Path("good.safetensors").read_bytes()[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind != "missing file":
        save_file(state, path)
    refused(4, "estimate", "model.py:net", "--weights", path, *NET, says=says)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_is_not_opened():
    Path("weights.pt").write_bytes(pickle.dumps(Payload()))
    refused(4, "estimate", "model.py:net", "--weights", "weights.pt", *NET, says=["weights.pt"])
    torch.save(nn.Linear(2, 2), "module.pt")
    refused(4, "estimate", "model.py:net", "--weights", "module.pt", *NET, says=["module.pt"])
    refused(4, "estimate", "module.pt", "--input-shape", "2", "--executor", "serial", says=["--trust-model"])
    torch.save({"0.weight": Payload()}, "dict.pt")
    refused(4, "estimate", "model.py:net", "--weights", "dict.pt", *NET, says=["dict.pt"])
    assert not Path("executed").exists()


@pytest.mark.parametrize("shape", ["2,4,4", "1,5,4", "16", "1,4,4,1", "0,4,4"])
def test_wrong_input_shape(shape):
    code = 2 if shape in {"1,4,4,1", "0,4,4"} else 4
    refused(code, "estimate", "model.py:net", "--input-shape", shape, "--executor", "serial", says=["hape"])


def test_missing_input_shape():
    refused(4, "estimate", "model.py:net", "--executor", "serial", says=["--input-shape 3,32,32"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--partition-factor", "0"), 2, "--partition-factor"),
        (("--partition-factor", "9"), 5, "--partition-factor"),
        (("--partition-factor", "many"), 2, "--partition-factor"),
        (("--block-depth", "0"), 2, "--block-depth"),
        (("--iterations", "-1"), 2, "--iterations"),
        (("--tolerance", "0"), 2, "--tolerance"),
        (("--tolerance", "nan"), 2, "--tolerance"),
        (("--time-limit", "-3"), 2, "--time-limit"),
        (("--memory", "8 parsecs"), 2, "8 parsecs"),
        (("--memory", "0"), 2, "--memory"),
        (("--method", "magic"), 2, "magic"),
        (("--input-shape", "a,b"), 2, "a,b"),
        (("--output-rows", "3"), 2, "3"),
        (("--output-rows", "x"), 2, "--output-rows"),
        (("--pairs", "0,3"), 2, "3"),
        (("--pairs", "0"), 2, "--pairs"),
        (("--pairs", "1,1"), 2, "1"),
        (("--output-rows", "1", "--pairs", "0,1"), 2, "exclude"),
        (("--composition", "mean"), 2, "--composition"),
        (("--executor", "threads"), 2, "--executor"),
        (("--seed", "-1"), 2, "--seed"),
        (("--data", "nosuch.npy"), 2, "nosuch.npy"),
        (("--data", "good.safetensors"), 2, "--data"),
        (("--config", "nosuch.yaml"), 3, "nosuch.yaml"),
        (("--out", "model.py"), 7, "model.py"),
        (("--out", "."), 7, "holds files"),
        (("--colour", "red"), 2, "--colour"),
        (("--address", "auto"), 2, "executor"),
        (("--budget", "soon"), 2, "--budget"),
        (("--budget", "0s"), 2, "--budget"),
        (("--time-limit", "soon"), 2, "--time-limit"),
        (("--switch", "nowhere"), 2, "It can after: input, 0, 1"),
        (("--switch", "3", "--method", "hybrid"), 2, "cannot be left after"),
        (("--switch", "0", "--method", "ellipsoid"), 2, "switch"),
        (("--switch", "0", "--method", "frequency"), 2, "hybrid"),
        (("--no-chain",), 2, "block_depth"),
        (("--chain", "--method", "ellipsoid"), 2, "chain"),
        (("--device", "tpu"), 2, "--device"),
        (("--method", "frequency", "--partition-factor", "2"), 5, "does not tile"),
        (("--method", "frequency", "--memory", "1kB"), 5, "Set --memory"),
    ],
)
def test_bad_options(words, code, says):
    refused(code, "estimate", "model.py:net", "--weights", "good.safetensors", *NET, *words, says=[says])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metod: sdp", "metod"),
        ("iterations: -1", "iterations"),
        ("memory: a lot", "memory"),
        ("- a list", "key: value"),
        ("method: [", "line"),
        ("trust_model: true", "trust_model"),
        ("output_rows: 1\npairs: [[0, 1]]", "exclude"),
    ],
)
def test_bad_config_files(text, says):
    Path("run.yaml").write_text(text)
    refused(3, "estimate", "model.py:net", *NET, "--config", "run.yaml", says=["run.yaml", says])


def test_unreachable_addresses():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    base = ("estimate", "model.py:net", "--input-shape", "1,4,4", "--address")
    refused(8, *base, closed, says=[closed, "nothing answers"])
    refused(2, *base, "ray://127.0.0.1:10001", says=["--address auto"])
    refused(2, *base, "localhost", says=["HOST:PORT"])


def test_unknown_command():
    outcome = invoke("estimat")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("error: ")


def test_a_defect_is_one_line_and_debug_shows_where(monkeypatch):
    def explode(*_args, **_keywords):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("lipray.model.load.load_network", explode)
    text = refused(1, "plan", "model.py:net", says=["unexpected ZeroDivisionError: boom", "defect", "--debug"])
    assert len(text.splitlines()) == 2
    outcome = invoke("plan", "model.py:net", "--debug")
    assert outcome.exit_code == 1
    assert "Traceback" in outcome.stderr


def test_an_interrupt_is_130(monkeypatch):
    def interrupt(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("lipray.run.driver.estimate_network", interrupt)
    monkeypatch.setattr("lipray.run.session.estimate_network", interrupt)
    refused(130, "estimate", "model.py:net", *NET)


def test_zero_weights_give_zero(desk):
    save_file({key: torch.zeros_like(value) for key, value in desk.items()}, "zero.safetensors")
    outcome = invoke("estimate", "model.py:net", "--weights", "zero.safetensors", *NET[:-2], "--json", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert (result["upper"], result["lower"], result["gap"]) == (0.0, 0.0, 1.0)


def test_data_of_another_shape():
    np.save("data.npy", np.zeros((3, 2, 4, 4)))
    refused(2, "estimate", "model.py:net", *NET, "--data", "data.npy", says=["(3, 2, 4, 4)"])

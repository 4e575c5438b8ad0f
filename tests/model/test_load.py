"""Every form of MODEL loads to a network that computes the same, and every mistake is one clear error."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from lipray.errors import (
    CheckpointError,
    InputShapeError,
    LiprayError,
    ModelError,
    ModelNotFoundError,
    NonFiniteWeightsError,
    UntrustedModelError,
    UsageError,
)
from lipray.model.architectures import ARCHITECTURES
from lipray.model.architectures.initial import initialised
from lipray.model.evaluate import evaluate
from lipray.model.load import load_network

EXAMPLES = Path(__file__).parents[2] / "examples"

FACTORY = """
import torch
from torch import nn
import neighbour

def net():
    print("this must not reach standard output")
    return nn.Sequential(nn.Linear(neighbour.SIZE, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 2))

instance = net().train()
def fails():
    raise RuntimeError("the disk is full")

def leaves():
    raise SystemExit(3)

def wrong():
    return "no module"

def needs(argument):
    return net()

def gated():
    class Gate(nn.Module):
        def forward(self, x):
            return x * x
    return Gate()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("SIZE = 4\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    yield path
    sys.modules.pop("neighbour", None)


def same(network, module, shape):
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(evaluate(network, x), module.double().eval()(x), rtol=1e-10, atol=1e-10)


def complaint(kind, *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        load_network(*arguments, **options)
    assert type(caught.value) is kind
    assert caught.value.hint
    return str(caught.value)


def test_built_in_without_weights_says_so():
    loaded, again = load_network("cnn1", None), load_network("cnn1", None)
    assert loaded.network.input_shape == (1, 28, 28)
    assert "random initial weights" in loaded.notes[0]
    assert loaded.weights_hash is None
    assert loaded.content_hash == again.content_hash == loaded.network.content_hash()
    same(loaded.network, initialised(ARCHITECTURES["cnn1"]), (1, 28, 28))


def test_built_in_with_weights_of_other_classes_and_width(tmp_path):
    module = initialised(ARCHITECTURES["resnet18-cifar"], seed=4, classes=7, width=2)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "w.pt")
    loaded = load_network("resnet18-cifar", (3, 16, 16), weights=tmp_path / "w.pt")
    assert loaded.network.output_shape == (7,)
    assert loaded.notes == ("The weights are the entry 'state_dict' of the checkpoint.",)
    same(loaded.network, module, (3, 16, 16))


def test_double_weights_are_not_rounded(tmp_path, file):
    module = initialised(ARCHITECTURES["cnn1"]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1e-10)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    network = load_network("cnn1", None, weights=tmp_path / "w.safetensors").network
    same(network, module, (1, 28, 28))
    assert {array.dtype for array in network.weights.values()} == {np.dtype(np.float64)}
    state = {"0.weight": torch.full((5, 4), 1 / 3, dtype=torch.float64), "0.bias": torch.zeros(5)}
    save_file({**state, "3.weight": torch.ones(2, 5), "3.bias": torch.zeros(2)}, tmp_path / "v.safetensors")
    network = load_network(f"{file}:net", (4,), weights=tmp_path / "v.safetensors").network
    assert any((array == 1 / 3).all() for array in network.weights.values())


def test_zero_weights(tmp_path):
    state = {key: torch.zeros_like(value) for key, value in initialised(ARCHITECTURES["cnn1"]).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    network = load_network("cnn1", None, weights=tmp_path / "w.safetensors").network
    assert not any(array.any() for array in network.weights.values())


RECORDS = [path for path in sorted(EXAMPLES.glob("*.json")) if path.with_suffix(".safetensors").exists()]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_examples_reach_their_accuracy(record, monkeypatch):
    """The stored networks are the ones the records describe, and lipray evaluates them as torch does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train_digits = __import__("train_digits")
    monkeypatch.chdir(EXAMPLES.parent)
    told = json.loads(record.read_text())
    weights = record.with_suffix(".safetensors")
    loaded = load_network(told["model"], tuple(told["input_shape"]), weights=weights)
    channels, _, side = told["input_shape"]
    _, _, x, y = train_digits.images(side, channels)
    state = load_file(weights)
    assert {value.dtype for value in state.values()} == {torch.float32}
    (example,) = (each for each in train_digits.EXAMPLES.values() if each.file == record.stem)
    module = example.build()
    fit = module.load_state_dict(state, strict=False)
    assert not fit.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in fit.missing_keys)
    assert round(train_digits.accuracy(module, x, y), 4) == told["test_accuracy"] >= 0.96
    x = x[:24].double()
    with torch.no_grad():
        torch.testing.assert_close(evaluate(loaded.network, x), module.double()(x), rtol=1e-10, atol=1e-10)


def test_factory_from_a_file(file, capsys):
    loaded = load_network(f"{file}:net", (4,))
    assert loaded.name == "net"
    assert loaded.notes
    assert loaded.content_hash == load_network(f"{file}:net", (4,)).content_hash
    assert capsys.readouterr().out == ""
    assert load_network(f"{file}:instance", (4,)).network.output_shape == (2,)


def test_factory_leaves_global_state(file):
    path, state = list(sys.path), torch.random.get_rng_state()
    load_network(f"{file}:net", (4,))
    assert sys.path == path
    assert torch.equal(state, torch.random.get_rng_state())


def test_factory_from_a_module_and_the_working_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    try:
        assert load_network("nets:net", (4,)).network.input_shape == (4,)
        assert "no 'nett'" in complaint(ModelNotFoundError, "nets:nett", (4,))
        # An instance belongs to whoever made it: the loader works on a copy.
        assert load_network("nets:instance", (4,)).network.output_shape == (2,)
        assert sys.modules["nets"].instance.training
    finally:
        sys.modules.pop("nets", None)


def test_factory_with_weights(file, tmp_path):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 2))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    loaded = load_network(f"{file}:net", (4,), weights=tmp_path / "w.safetensors")
    assert loaded.weights_hash is not None
    same(loaded.network, module, (4,))


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("fails", ModelError, "RuntimeError: the disk is full"),
        ("leaves", ModelError, "SystemExit: 3"),
        ("wrong", ModelError, "str"),
        ("needs", ModelError, "argument"),
        ("ned", ModelNotFoundError, "Did you mean"),
        ("", UsageError, "FACTORY"),
    ],
)
def test_factory_errors(file, name, kind, word):
    assert word in complaint(kind, f"{file}:{name}", (4,))


def test_errors_of_the_file_itself(tmp_path):
    (tmp_path / "bad.py").write_text("def net(:\n")
    assert "SyntaxError" in complaint(ModelError, f"{tmp_path}/bad.py:net", (4,))
    (tmp_path / "lacks.py").write_text("import surely_not_installed\n")
    assert "surely_not_installed" in complaint(ModelError, f"{tmp_path}/lacks.py:net", (4,))
    assert "no such file" in complaint(ModelNotFoundError, f"{tmp_path}/none.py:net", (4,))
    assert "surely_not_there" in complaint(ModelNotFoundError, "surely_not_there:net", (4,))
    assert "FACTORY" in complaint(UsageError, f"{tmp_path}/bad.py", (4,))


@pytest.mark.parametrize(
    ("spec", "near"), [("restnet18", "resnet18"), ("VGG16-bn", "vgg16_bn"), ("lenet", "lenet5"), ("cnn-1", "cnn1")]
)
def test_misspelt_names(spec, near):
    assert near in complaint(ModelNotFoundError, spec, None).split("MODEL is")[0]


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("cnn1", (1, 28, 27)),
        ("cnn1", (784,)),
        ("resnet18", (1, 224, 224)),
        ("resnet18", (3, 224)),
        ("vgg11", (3, 16, 16)),
        ("cnn1", ()),
        ("cnn1", (1, 0, 28)),
        ("cnn1", (1, -28, 28)),
    ],
)
def test_wrong_shapes_of_built_ins(spec, shape):
    complaint(InputShapeError, spec, shape)


def test_shapes_of_factories(file):
    complaint(InputShapeError, f"{file}:net", None)
    complaint(InputShapeError, f"{file}:net", (3,))


def test_weight_errors_pass_through(tmp_path):
    state = initialised(ARCHITECTURES["cnn1"]).state_dict()
    complaint(CheckpointError, "cnn1", None, weights=tmp_path / "none.safetensors")
    save_file({k: v for k, v in state.items() if k != "fc1.bias"}, tmp_path / "a.safetensors")
    assert "missing fc1.bias" in complaint(CheckpointError, "cnn1", None, weights=tmp_path / "a.safetensors")
    state["fc1.bias"][3] = float("nan")
    save_file(state, tmp_path / "b.safetensors")
    assert "fc1.bias" in complaint(NonFiniteWeightsError, "cnn1", None, weights=tmp_path / "b.safetensors")
    torch.save(nn.Linear(2, 2), tmp_path / "c.pt")
    complaint(UntrustedModelError, "cnn1", None, weights=tmp_path / "c.pt")


def test_unsupported_layers_are_reported(file):
    with pytest.raises(ModelError) as caught:
        load_network(f"{file}:gated", (4,))
    assert isinstance(caught.value, LiprayError)


def test_pickled_module_needs_trust(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    torch.save(module, tmp_path / "m.pt")
    assert "trust" in complaint(UntrustedModelError, str(tmp_path / "m.pt"), (4,))
    loaded = load_network(str(tmp_path / "m.pt"), (4,), trust_model=True)
    same(loaded.network, module, (4,))
    assert "trusted" in loaded.notes[0]


class Views(nn.Module):
    """Writes its batch size into a view when it is exported."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(8, 2)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return self.linear(y.view(y.size(0), -1))


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), Views()]
)
def test_exported_program_needs_trust(tmp_path, module, batch):
    path = tmp_path / "m.pt2"
    free = None if batch else ({0: torch.export.Dim("n")},)
    program = torch.export.export(module.eval(), (torch.zeros(batch or 2, 1, 4, 4),), dynamic_shapes=free)
    torch.export.save(program, path)
    complaint(UntrustedModelError, str(path), (1, 4, 4))
    loaded = load_network(str(path), (1, 4, 4), trust_model=True)
    same(loaded.network, copy.deepcopy(module), (1, 4, 4))


def test_damaged_exported_program(tmp_path):
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    data = path.read_bytes()
    place = data.index(b"graph_module")
    path.write_bytes(data[:place] + b"#" * 20 + data[place + 20 :])
    complaint(ModelError, str(path), (2,), trust_model=True)


def test_torchscript_needs_trust_and_then_another_format(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "m.ts")
    complaint(UntrustedModelError, str(tmp_path / "m.ts"), (2,))
    assert "traced" in complaint(ModelError, str(tmp_path / "m.ts"), (2,), trust_model=True)


def test_weights_are_no_model(tmp_path):
    state = initialised(ARCHITECTURES["cnn1"]).state_dict()
    for save, path in ((save_file, tmp_path / "w.safetensors"), (torch.save, tmp_path / "w.pt")):
        save(state, path)
        assert f"cnn1 --weights {path}" in complaint(ModelError, str(path), None)


def test_files_that_are_nothing(tmp_path):
    complaint(ModelNotFoundError, str(tmp_path / "none.onnx"), None)
    complaint(ModelNotFoundError, str(tmp_path / "none.pt"), None)
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "b.txt").write_text("hello")
    complaint(ModelError, str(tmp_path / "a.pt"), None)
    complaint(ModelError, str(tmp_path / "b.txt"), None)


def small_onnx(path: Path) -> Path:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_onnx_files(tmp_path):
    path = small_onnx(tmp_path / "m.onnx")
    loaded = load_network(str(path), None)
    assert loaded.network.input_shape == (4,)
    assert loaded.name == "m"
    assert loaded.weights_hash is not None
    complaint(InputShapeError, str(path), (5,))
    complaint(UsageError, str(path), None, weights=path)


def test_loading_imports_neither_ray_nor_cvxpy(tmp_path):
    path = small_onnx(tmp_path / "m.onnx")
    code = (
        "import sys; from lipray.model.load import load_network\n"
        f"load_network({str(path)!r}, None); load_network('cnn1', None)\n"
        "print([m for m in ('ray', 'cvxpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

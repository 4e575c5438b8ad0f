"""What starts must start light: each command imports only what it needs."""

import subprocess
import sys

import pytest

from lipray.cli.main import cli

CHECK = """
import sys
from click.testing import CliRunner
from lipray.cli.main import cli
words, banned = {words!r}, {banned!r}
outcome = CliRunner().invoke(cli, words)
assert outcome.exit_code == 0, outcome.output
loaded = sorted(name for name in banned if name in sys.modules)
assert not loaded, f"{{words}} imported {{loaded}}"
"""


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], *([command, "--help"] for command in sorted(cli.commands))],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words, tmp_path):
    banned = ["torch", "ray", "cvxpy", "clarabel", "onnx", "numpy", "scipy", "pydantic", "rich", "jinja2", "matplotlib"]
    run(CHECK.format(words=words, banned=banned), tmp_path)


@pytest.mark.parametrize("words", [["plan", "lenet5"], ["plan", "lenet5", "--json", "--method", "sdp"]])
def test_plan_of_a_built_in_imports_neither_ray_nor_cvxpy(words, tmp_path):
    run(CHECK.format(words=words, banned=["ray", "cvxpy", "clarabel"]), tmp_path)


def test_plan_of_an_onnx_file_imports_neither_ray_nor_cvxpy(tmp_path):
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["v"], transB=1), helper.make_node("Relu", ["v"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.ones((2, 3), dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    run(CHECK.format(words=["plan", "net.onnx"], banned=["ray", "cvxpy", "clarabel"]), tmp_path)


def test_a_serial_estimate_imports_neither_ray_nor_cvxpy(tmp_path):
    (tmp_path / "model.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(3, 2)\n")
    words = ["estimate", "model.py:net", "--input-shape", "3", "--executor", "serial", "--quiet"]
    run(CHECK.format(words=words, banned=["ray", "cvxpy", "clarabel"]), tmp_path)


def test_a_report_imports_neither_torch_nor_ray_nor_cvxpy(tmp_path):
    import lipray
    from tests.run.test_joint import NETWORK

    lipray.estimate(NETWORK, out=tmp_path / "run", method="product", lower_starts=0)
    run(CHECK.format(words=["report", "run"], banned=["torch", "ray", "cvxpy", "clarabel", "scipy"]), tmp_path)


def test_a_wrong_configuration_is_refused_without_torch(tmp_path):
    (tmp_path / "wrong.yaml").write_text("loss: magic\n")
    code = CHECK.format(words=["train", "wrong.yaml"], banned=["torch", "ray", "scipy"])
    run(code.replace("outcome.exit_code == 0", "outcome.exit_code == 3"), tmp_path)


def test_import_lipray_is_cheap(tmp_path):
    banned = ["torch", "ray", "cvxpy", "numpy", "pydantic", "click"]
    run(f"import sys, lipray; assert not set({banned}) & set(sys.modules)", tmp_path)


def test_console_script_and_module_agree(tmp_path):
    module = [sys.executable, "-m", "lipray", "--version"]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lipray, version ")

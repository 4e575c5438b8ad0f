"""The commands end to end, in this process: results on stdout, progress on stderr, a folder that holds the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import lipray
from lipray.cli.main import cli
from lipray.errors import InputShapeError, UsageError
from lipray.run.lower_bound import attained
from lipray.run.record.folder import read_result

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(72, 3))
"""
OVERLAP = ("--composition", "overlap")
BASE = ("estimate", "model.py:net", "--weights", "net.safetensors", "--input-shape", "1,6,6", "--executor", "serial")


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A folder with a model and weights, which is the current one; returns the module."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(FACTORY)
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 3),
    )
    save_file(net.state_dict(), "net.safetensors")
    return net.eval()


def invoke(*words):
    outcome = CliRunner().invoke(cli, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    return outcome


def estimate(*words):
    return json.loads(invoke(*BASE, "--json", "--quiet", *words).stdout)


def test_estimate_prints_a_bracket_and_leaves_a_folder(module):
    result = estimate("--lower-starts", "8", "--out", "run")
    assert {"upper", "lower", "gap", "method", "seconds", "blocks"} <= set(result)
    assert 0 < result["lower"] <= result["upper"] <= result["blocks"][0]["alternatives"]["product"]
    assert result["gap"] == pytest.approx(result["upper"] / result["lower"])
    assert read_result(Path("run")).upper == result["upper"]
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["config"]["lower_starts"] == 8
    assert manifest["model"]["hash"] == result["model"]["hash"]
    with np.load("run/witness.npz", allow_pickle=False) as pair:
        x, y = pair["x"], pair["y"]
    with torch.no_grad():
        images = module.double()(torch.from_numpy(np.stack([x, y]))).numpy()
    assert np.linalg.norm(images[0] - images[1]) / np.linalg.norm(x - y) == pytest.approx(result["lower"], rel=1e-9)
    assert list(Path().glob(".run*")) == []


def test_table_on_stdout_and_plain_progress_on_stderr():
    outcome = invoke(*BASE, "--lower-starts", "4")
    assert "upper bound" in outcome.stdout
    assert "Run folder: runs/" in outcome.stdout
    assert "tasks" in outcome.stderr
    assert "\x1b" not in outcome.output
    runs = [path for path in Path("runs").iterdir() if path.name != "objects"]
    assert [(path / "result.json").exists() for path in runs] == [True]


def test_quiet_is_quiet():
    assert invoke(*BASE, "--lower-starts", "0", "--quiet").stderr == ""


def test_json_alone_on_stdout_with_progress_beside():
    outcome = invoke(*BASE, "--json", "--lower-starts", "0")
    json.loads(outcome.stdout)
    assert outcome.stdout.count("\n") == 1
    assert outcome.stderr


def test_tiles_are_composed_both_ways():
    result = estimate("--partition-factor", "2", "--lower-starts", "4", "--method", "ellipsoid", *OVERLAP)
    ways = result["blocks"][0]["alternatives"]
    assert {"overlap", "sum", "product"} <= set(ways)
    assert result["blocks"][0]["subproblems"] == 4
    assert result["lower"] <= result["upper"]
    assert estimate("--partition-factor", "2", "--lower-starts", "0", "--composition", "sum")["composition"] == "sum"


def test_rows_and_pairs_bound_less_than_the_whole():
    whole = estimate("--lower-starts", "0")
    row = estimate("--output-rows", "1", "--lower-starts", "4")
    pair = estimate("--pairs", "0,2", "--lower-starts", "4")
    assert row["model"]["output_shape"] == [1]
    assert 0 < row["lower"] <= row["upper"] <= whole["upper"] * 1.001
    assert 0 < pair["lower"] <= pair["upper"] <= whole["upper"] * 2**0.5 * 1.001


def test_flags_win_over_the_file_and_the_file_over_defaults():
    Path("deep").mkdir()
    Path("deep/run.yaml").write_text(
        yaml.safe_dump(
            {
                "input_shape": [1, 6, 6],
                "executor": "serial",
                "lower_starts": 0,
                "seed": 5,
                "method": "sdp",
                "weights": "../net.safetensors",
            }
        )
    )
    words = (
        "estimate",
        "model.py:net",
        "--config",
        "deep/run.yaml",
        "--method",
        "product",
        "--json",
        "-q",
        "--out",
        "o",
    )
    result = json.loads(invoke(*words).stdout)
    assert result["method"] == "product"
    config = json.loads(Path("o/manifest.json").read_text())["config"]
    assert (config["seed"], config["executor"], config["lower_starts"]) == (5, "serial", 0)


def test_plan_shows_what_would_be_done():
    words = ("plan", "model.py:net", "--input-shape", "1,6,6", "--partition-factor", "3", *OVERLAP)
    assert "distinct" in invoke(*words).stdout
    record = json.loads(invoke(*words, "--json").stdout)
    assert record["blocks"][0]["tiles"] == 9
    assert record["partition_factor"] == 3
    assert not Path("runs").exists()


def test_python_gives_what_the_command_gives(module):
    result = estimate("--lower-starts", "4")
    bound = lipray.estimate(module, (1, 6, 6), lower_starts=4)
    assert (bound.upper, bound.lower, bound.method) == (result["upper"], result["lower"], "ellipsoid")
    assert bound.gap == bound.upper / bound.lower
    assert len(bound.blocks) == len(result["blocks"])
    assert bound.certificate
    assert len(list(Path("runs").glob("*/manifest.json"))) == 1


def test_python_takes_networks_names_and_files(module):
    network = lipray.import_module(module, (1, 6, 6))
    first = lipray.estimate(network, lower_starts=2, out="kept")
    assert Path("kept/result.json").exists()
    assert attained(network, *first.witness) == first.lower
    again = lipray.estimate("model.py:net", (1, 6, 6), weights="net.safetensors", lower_starts=0)
    assert again.upper == first.upper
    Path("c.yaml").write_text("lower_starts: 0\nmethod: product\n")
    assert lipray.estimate(network, config="c.yaml").method == "product"
    assert len(lipray.plan(network, partition_factor=2, composition="overlap").blocks[0].tiles) == 4


def test_python_complains_about_its_own_arguments(module):
    with pytest.raises(UsageError, match=r"^partition_factor"):
        lipray.estimate(module, (1, 6, 6), partition_factor=0)
    with pytest.raises(UsageError, match=r"^partition: is not an option"):
        lipray.estimate(module, (1, 6, 6), partition=2)
    with pytest.raises(UsageError, match="input_shape"):
        lipray.estimate(module)
    with pytest.raises(InputShapeError):
        lipray.estimate(lipray.import_module(module, (1, 6, 6)), (1, 7, 7))


def test_events_reach_the_caller(module):
    events = []
    lipray.estimate(module, (1, 6, 6), lower_starts=2, notify=events.append)
    assert type(events[0]).__name__ == "PlanReady"
    assert type(events[-1]).__name__ == "TaskDone"


def test_a_method_on_tori_reports_its_ways_and_stages():
    result = estimate("--method", "hybrid", "--iterations", "3", "--lower-starts", "0")
    [block] = result["blocks"]
    assert (result["method"], block["method"]) == ("hybrid", "hybrid")
    assert {"product", "closed_form", "frequency"} <= set(block["alternatives"])
    assert result["upper"] == block["upper"] == min(block["alternatives"].values())
    stay = estimate("--method", "hybrid", "--switch", "none", "--iterations", "3", "--lower-starts", "0")
    assert stay["upper"] >= result["upper"] * (1 - 1e-9)
    named = estimate("--switch", "1", "--iterations", "0", "--lower-starts", "0")
    assert named["method"] == "hybrid"


def test_a_plan_names_each_blocks_method_its_tori_and_why():
    words = ("plan", "model.py:net", "--input-shape", "1,6,6")
    text = invoke(*words).stdout
    assert "ellipsoid, its LMI has order" in text
    text = " ".join(invoke(*words, "--method", "hybrid", "--switch", "1").stdout.split())
    for part in ("tori 7×7", "left after 1 for the dense window", "groups of frequencies", "closed form"):
        assert part in text
    record = json.loads(invoke(*words, "--method", "hybrid", "--switch", "none", "--json").stdout)
    [block] = record["blocks"]
    assert block["torus"]["switch"] is None
    assert block["torus"]["sides"] == [[7, 7]]
    assert block["torus"]["group_memory"] > 0
    assert block["reason"]


def test_blocks_of_a_depth_are_solved_apart_and_a_chain_is_one():
    apart = estimate("--method", "frequency", "--block-depth", "1", "--iterations", "0", "--lower-starts", "0")
    chain = estimate(
        "--method", "frequency", "--block-depth", "1", "--chain", "--iterations", "0", "--lower-starts", "0"
    )
    assert len(apart["blocks"]) == 2
    assert len(chain["blocks"]) == 1
    assert chain["upper"] <= apart["upper"] * (1 + 1e-9)


def test_a_budget_ends_with_a_bound():
    tiny = estimate("--method", "frequency", "--budget", "0.01s")
    assert 0 < tiny["upper"] < float("inf")
    ample = estimate("--method", "frequency", "--budget", "5m", "--lower-starts", "4")
    assert ample["upper"] <= tiny["upper"]
    assert 0 < ample["lower"] <= ample["upper"]


def test_margins_are_there_from_python(module):
    table = lipray.estimate(module, (1, 6, 6), method="frequency", iterations=2, lower_starts=0).pairwise
    assert table.shape == (3, 3)
    pair = lipray.estimate(module, (1, 6, 6), pairs=(0, 2), lower_starts=0).upper
    assert pair <= table[0, 2] * (1 + 1e-9)

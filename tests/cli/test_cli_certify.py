"""``lipray certify`` end to end on a trained network, and every mistake a user can make with it."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lipray.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = (
    f"{ROOT}/examples/digits_small.py:digits_small",
    "--weights",
    f"{ROOT}/examples/digits_small.safetensors",
)
QUICK = ("--restarts", "2", "--steps", "30", "--lower-starts", "0", "--no-store", "--iterations", "0")


@pytest.fixture(autouse=True)
def digits(tmp_path, monkeypatch):
    """A folder with the test digits as the example was trained on, which is the current one."""
    monkeypatch.chdir(tmp_path)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    every = load_digits()
    x = every.images.astype(np.float32)[:, None] / 16.0
    _, test = train_test_split(np.arange(len(x)), test_size=0.25, random_state=0, stratify=every.target)
    np.savez("digits.npz", x=x[test], y=every.target[test])
    return x[test], every.target[test]


def run(*words, model=MODEL):
    return CliRunner().invoke(cli, ["certify", *model, *map(str, words)])


def refused(code, words, *arguments, model=MODEL):
    outcome = run(*arguments, model=model)
    assert outcome.exit_code == code, outcome.output
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith(".")) == ["digits.npz"]
    return outcome


def test_radii_of_a_trained_network():
    outcome = run(
        "--data", "digits.npz", "--radius", "36/255", "--radius", "0.05", "--limit", "60", "--out", "out", *QUICK
    )
    assert outcome.exit_code == 0, outcome.output
    text = outcome.stdout
    for words in ("clean accuracy", "verified-robust", "under attack", "36/255", "no certified radius broken"):
        assert words in text
    record = json.loads(Path("out/robustness.json").read_text())
    with Path("out/radii.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == record["examples"] == 60
    assert 0.9 < record["clean"] == np.mean([row["correct"] == "1" for row in rows])
    first, second = record["at"]
    assert (first["radius"], second["radius"]) == ("36/255", "0.05")
    for row, radius in ((first, 36 / 255), (second, 0.05)):
        certified = [entry["correct"] == "1" and float(entry["radius"]) >= radius for entry in rows]
        alive = [entry["correct"] == "1" and float(entry["empirical"]) > radius for entry in rows]
        assert row["verified"] == np.mean(certified)
        assert row["empirical"] == np.mean(alive)
        assert row["verified"] <= row["empirical"] <= row["clean"]
    assert second["verified"] > 0.0
    with np.load("out/constants.npz", allow_pickle=False) as arrays:
        pairwise = arrays["pairwise"]
    assert pairwise.shape == (10, 10)
    for row in rows:
        constant = pairwise[int(row["prediction"]), int(row["rival"])]
        assert float(row["radius"]) == pytest.approx(float(row["margin"]) / constant, rel=1e-12)
        assert float(row["radius"]) <= float(row["empirical"])
    assert {path.name for path in Path("out").iterdir()} == {
        "radii.csv",
        "robustness.json",
        "constants.npz",
        "radii.svg",
        "radii.png",
    }
    assert Path("out/radii.png").read_bytes().startswith(b"\x89PNG")
    assert "Folder: out" in text


def test_json_alone_on_stdout_and_files_in_the_store():
    words = [word for word in QUICK if word != "--no-store"]
    outcome = run("--data", "digits.npz", "--no-attack", "--radius", "0.1", "--limit", "30", "--json", "-q", *words)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr == ""
    record = json.loads(outcome.stdout)
    assert record["attack"] is None
    assert record["at"][0]["empirical"] is None
    assert re.fullmatch(r"runs/\d+T\d+Z-digits_small-radii-[0-9a-f]{8}", record["folder"])
    assert Path(record["folder"], "radii.csv").read_text().splitlines()[1].endswith(",,")


def test_normalisation_on_the_command_line_shrinks_radii():
    def least(*more):
        words = ("--data", "digits.npz", "--limit", "20", "--no-attack", "--json", "-q", "--method", "product")
        outcome = run(*words, "--no-store", "--lower-starts", "0", "--out", f"out{len(more)}", *more)
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)["constants"]["largest"]

    assert least("--mean", "0", "--std", "0.25") == pytest.approx(4.0 * least(), rel=1e-9)


def test_a_broken_sample_ends_with_its_evidence(monkeypatch):
    from lipray.robust import certify
    from lipray.robust.constants import Constants

    real = certify.margin_constants

    def halved(*arguments, **options):
        right = real(*arguments, **options)
        return Constants(right.pairwise / 8, right.source, right.upper, right.lower, right.before, right.method)

    monkeypatch.setattr(certify, "margin_constants", halved)
    outcome = run("--data", "digits.npz", "--limit", "40", "--out", "out", *QUICK)
    assert outcome.exit_code == 12
    assert "of digits.npz" in outcome.stderr
    assert "certified to a radius of" in outcome.stderr
    assert "Both inputs are in out/broken.npz" in outcome.stderr
    assert outcome.stdout == ""
    assert [path.name for path in Path("out").iterdir()] == ["broken.npz"]
    with np.load("out/broken.npz", allow_pickle=False) as arrays:
        assert np.linalg.norm(arrays["x"] - arrays["point"]) <= arrays["distance"] <= arrays["radius"]
        assert arrays["prediction"] != arrays["other"]


@pytest.mark.parametrize("radius", ["0", "-0.1", "0/255", "36/0", "big", "nan", "inf"])
def test_radii_must_be_positive_numbers(radius):
    refused(2, "--radius", "--data", "digits.npz", "--radius", radius)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--mean", "a"), "--mean"),
        (("--mean", "0.1,0.2", "--std", "1"), "--mean"),
        (("--std", "0"), "--std"),
        (("--clip", "0"), "--clip"),
        (("--clip", "0.2,0.3"), "--clip"),
        (("--restarts", "0"), "--restarts"),
        (("--method", "guess"), "--method"),
        (("--attack-device", "moon"), "--attack-device"),
        pytest.param(
            ("--attack-device", "cuda", "--method", "product"),
            "--attack-device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_wrong_options_are_named(words, named):
    refused(2, named, "--data", "digits.npz", "--no-store", *words)


def test_data_that_do_not_fit(digits):
    x, y = digits
    wrong = {
        "nan": (np.where(x > 0.9, np.nan, x), y, "NaN"),
        "classes": (x, y + 1, "10 outputs"),
        "negative": (x, y - 1, "outside"),
        "shape": (x[:, :, :, :4], y, "does not take"),
        "labels": (x, y[:5], "labels have shape"),
    }
    for inputs, labels, words in wrong.values():
        np.savez("digits.npz", x=inputs, y=labels)
        refused(11, words, "--data", "digits.npz", "--no-store", "--lower-starts", "0")
    np.savez("digits.npz", x=x[:, :, :, :4], y=y)
    refused(11, "shape", "--data", "digits.npz", "--no-store", "--input-shape", "1,8,8")
    refused(11, "no such file", "--data", "other.npz")


def test_networks_that_are_no_classifiers(tmp_path):
    Path("nets").mkdir()
    (Path("nets") / "m.py").write_text(
        "from torch import nn\n\n"
        "def one():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))\n\n"
        "def maps():\n    return nn.Conv2d(1, 10, 3)\n\n"
        "def normed():\n    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))\n"
    )
    for name, words in (("one", "one output"), ("maps", "no vector of logits"), ("normed", "not supported")):
        outcome = run("--data", "digits.npz", "--no-store", model=(f"nets/m.py:{name}",))
        assert outcome.exit_code == 4, outcome.output
        assert words in outcome.stderr
        assert "hint:" in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "nets"]


def test_a_folder_that_holds_files_is_refused_before_any_work():
    Path("out").mkdir()
    (Path("out") / "mine").write_text("")
    outcome = run("--data", "digits.npz", "--out", "out", *QUICK)
    assert outcome.exit_code == 7
    assert [path.name for path in Path("out").iterdir()] == ["mine"]


def test_rows_of_a_configuration_file_are_refused():
    Path("c.yaml").write_text("pairs: '1,2'\n")
    outcome = run("--data", "digits.npz", "--config", "c.yaml")
    assert outcome.exit_code == 2
    assert "--pairs" in outcome.stderr

"""``lipray verify`` end to end, in this process: an estimate is verified from its folder alone, to the last digit.

What was changed is refused in one line with an exit code, never a traceback.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import lipray
from lipray.cli.main import cli
from lipray.errors import VerificationError
from lipray.run.executor import Failure
from lipray.run.serial import SerialExecutor
from lipray.run.session import INCOMPLETE
from lipray.verify.record import ARRAYS, NAME, encode
from tests.verify.test_record import changed

MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.LeakyReLU(0.1),
                         nn.Flatten(), nn.Linear(32, 3))

def tiled():
    layers = [nn.Conv1d(1, 4, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv1d(4, 4, 1), nn.ReLU()]
    return nn.Sequential(*layers)

def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def classes():
    return nn.Sequential(*small(), nn.Softmax(dim=-1))

def scores():
    return nn.Sequential(*small(), nn.LogSoftmax(dim=-1))

def linear():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.two(self.relu(self.one(x))))

def residual():
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), Residual(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(8, 2))
"""
SHAPES = {
    "net": "1,4,4",
    "tiled": "1,9",
    "small": "3",
    "classes": "3",
    "scores": "3",
    "linear": "1,4,4",
    "residual": "1,4,4",
}


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A folder with the models and their weights, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    namespace = {}
    exec(MODEL, namespace)  # noqa: S102 - the text above
    for name in SHAPES:
        torch.manual_seed(0)
        module = namespace[name]()
        if name == "tiled":  # of the size that keeps a signal's, or the product of norms would be as good
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        save_file(module.state_dict(), f"{name}.safetensors")


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def model(name, weights=None):
    return f"model.py:{name}", "--weights", weights or f"{name}.safetensors"


def estimate(name, *words, out="run", weights=None, code=0):
    base = ("estimate", *model(name, weights), "--input-shape", SHAPES[name], "--executor", "serial", "--out", out)
    outcome = invoke(*base, "--lower-starts", "0", "--json", "-q", *words)
    assert outcome.exit_code == code, outcome.output
    return json.loads(outcome.stdout)


WRITTEN = {}
"""Certificates by model and options: those that are only changed are estimated once."""


def certified(name, *words):
    """A run folder that holds the certificate of an estimate, and nothing else."""
    if (name, words) not in WRITTEN:
        estimate(name, *words, out="first")
        WRITTEN[name, words] = [(Path("first") / file).read_bytes() for file in (NAME, ARRAYS)]
    Path("run").mkdir()
    for file, content in zip((NAME, ARRAYS), WRITTEN[name, words], strict=True):
        (Path("run") / file).write_bytes(content)
    return stored()


def verified(name, path="run", weights=None):
    outcome = invoke("verify", path, *model(name, weights), "--json")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.count("\n") == 1
    return json.loads(outcome.stdout)


def refused(code, name, says, path="run", weights=None):
    """Verification fails with the exit code, in one line and a hint; nothing is written."""
    before = sorted(Path().rglob("*"))
    outcome = invoke("verify", path, *model(name, weights))
    assert outcome.exit_code == code, outcome.output
    assert outcome.stdout == ""
    faults = [line for line in outcome.stderr.splitlines() if not line.split()[0].count("/")]
    assert [line.split(":")[0] for line in faults] == ["error", "hint"]
    assert says in faults[0]
    assert "Traceback" not in outcome.output
    assert sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts) == [
        path for path in before if "__pycache__" not in path.parts
    ]


def stored(folder="run"):
    with np.load(Path(folder) / ARRAYS, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads((Path(folder) / NAME).read_text()), arrays


def rewrite(values, arrays, folder="run"):
    """A certificate changed and written again, its digests right."""
    plain = {key: value for key, value in values.items() if key not in {"arrays", "digest"}}
    first, second = encode(plain, arrays)
    (Path(folder) / NAME).write_bytes(first)
    (Path(folder) / ARRAYS).write_bytes(second)


FEW = ("--iterations", "2")
OVERLAP = ("--method", "ellipsoid", "--composition", "overlap")


@pytest.mark.parametrize(
    ("name", "words", "kinds", "compositions"),
    [
        ("net", ("--method", "product"), {"product"}, ["whole"]),
        ("small", ("--method", "sdp"), {"dense"}, ["whole"]),
        ("net", ("--method", "ellipsoid", *FEW), {"dense"}, ["whole"]),
        ("net", ("--method", "frequency", *FEW), {"torus"}, ["whole"]),
        ("net", ("--method", "hybrid", *FEW), {"torus"}, ["whole"]),
        ("net", ("--method", "hybrid", "--switch", "1", *FEW), {"torus"}, ["whole"]),
        ("net", FEW, {"dense"}, ["whole"]),
        ("residual", ("--method", "frequency", *FEW), {"torus"}, ["whole"]),
        ("residual", ("--method", "ellipsoid", "--block-depth", "1", *FEW), {"dense", "product"}, ["whole"] * 3),
        ("net", ("--method", "frequency", "--block-depth", "1", *FEW), {"torus", "product"}, ["whole"] * 2),
        ("net", ("--method", "frequency", "--block-depth", "1", "--chain", *FEW), {"torus"}, ["whole"]),
        ("tiled", ("--partition-factor", "3", *OVERLAP, *FEW), {"dense"}, ["overlap"]),
        ("tiled", ("--partition-factor", "3", "--composition", "sum", *FEW), {"dense"}, ["sum"]),
        ("tiled", ("--partition-factor", "3", "--block-depth", "2", *OVERLAP, *FEW), {"dense"}, ["overlap"] * 2),
        ("tiled", ("--partition-factor", "9", "--iterations", "0", *OVERLAP), {"dense"}, ["overlap"]),
        ("tiled", ("--partition-factor", "3", "--composition", "diagonal", *FEW), {"dense"}, ["diagonal"]),
        ("tiled", ("--partition-factor", "3", *FEW), {"metric"}, ["whole"]),
        ("net", ("--output-rows", "2,0", "--method", "ellipsoid", *FEW), {"dense"}, ["whole"]),
        ("net", ("--pairs", "0,2", "--pairs", "1,0", "--method", "frequency", *FEW), {"torus"}, ["whole"]),
        ("classes", FEW, {"dense"}, ["whole"]),
        ("scores", FEW, {"dense"}, ["whole"]),
        ("scores", ("--pairs", "0,1", *FEW), {"dense"}, ["whole"]),
        ("linear", ("--method", "ellipsoid"), None, ["whole"]),
        ("linear", ("--method", "frequency"), None, ["whole"]),
    ],
)
def test_an_estimate_is_verified_from_its_folder_to_the_last_digit(name, words, kinds, compositions):
    printed = estimate(name, *words)
    values, _ = stored()
    if kinds is not None:
        assert {problem["kind"] for problem in values["problems"]} == kinds
    verdict = verified(name)
    assert (verdict["verified"], verdict["executor"]) == (True, "serial")
    assert verdict["bound"] == verdict["claim"] == printed["upper"]
    assert [block["composition"] for block in verdict["blocks"]] == compositions
    assert [block["bound"] for block in verdict["blocks"]] == [block["upper"] for block in printed["blocks"]]
    assert len(verdict["problems"]) == len(values["problems"])
    assert all(part["bound"] == part["claim"] for part in (*verdict["blocks"], *verdict["problems"]))


def test_the_file_the_folder_and_python_give_the_same():
    printed = estimate("net", "--method", "frequency", *FEW)
    assert verified("net", Path("run") / NAME)["bound"] == printed["upper"]
    assert lipray.verify_run("run", "model.py:net", weights="net.safetensors").bound == printed["upper"]
    Path("run").rename("moved")
    assert verified("net", "moved")["bound"] == printed["upper"]
    rewrite(changed(stored("moved")[0], "claim", 1e-9), stored("moved")[1], "moved")
    with pytest.raises(VerificationError, match=r"^the whole network"):
        lipray.verify_run("moved", "model.py:net", weights="net.safetensors")


def test_the_table_and_the_progress():
    certified("tiled", "--partition-factor", "3", *OVERLAP, *FEW)
    outcome = invoke("verify", "run", *model("tiled"))
    assert outcome.exit_code == 0
    assert "verified: L̄ = " in outcome.stdout
    for part in ("block1 [", "sub-problem 0 (", "sub-problem 2 ("):
        assert part in outcome.stdout
    assert [line.split()[0] for line in outcome.stderr.splitlines()] == ["1/3", "2/3", "3/3"]
    assert invoke("verify", "run", *model("tiled"), "-q").stderr == ""


def test_zero_weights():
    save_file({key: torch.zeros_like(value) for key, value in load_file("net.safetensors").items()}, "zero.safetensors")
    assert estimate("net", "--method", "ellipsoid", weights="zero.safetensors")["upper"] == 0.0
    assert verified("net", weights="zero.safetensors")["bound"] == 0.0


class Losing(SerialExecutor):
    """Loses the second tile."""

    def run(self, tasks, **_):
        for task in tasks:
            if "tile2" in task.label:
                yield Failure(task, "WorkerCrashedError", "the worker died", 3)
            else:
                yield from super().run([task])


def test_a_tile_that_was_lost(monkeypatch):
    """The block's product bound stands in for the block; where it is zero, for the tile alone."""
    monkeypatch.setattr("lipray.run.session.start_executor", lambda _config: Losing(1))
    words = ("--partition-factor", "3", *OVERLAP, *FEW)
    printed = estimate("tiled", *words, code=INCOMPLETE)
    assert printed["blocks"][0]["fallbacks"] == ["block1/tile2"]
    assert verified("tiled")["bound"] == printed["upper"] == printed["blocks"][0]["alternatives"]["product"]
    state = load_file("tiled.safetensors")
    save_file(state | {"6.weight": torch.zeros_like(state["6.weight"])}, "zero.safetensors")
    again = estimate("tiled", *words, weights="zero.safetensors", out="zero", code=INCOMPLETE)
    assert again["upper"] == 0.0
    assert [tile["restricted"] for tile in stored("zero")[0]["blocks"][0]["tiles"]] == [False, True, False]
    assert verified("tiled", "zero", weights="zero.safetensors")["bound"] == 0.0


def test_an_infinite_bound_leaves_no_certificate():
    state = {key: value.double() * 1e200 for key, value in load_file("small.safetensors").items()}
    save_file(state, "vast.safetensors")
    assert estimate("small", "--method", "product", weights="vast.safetensors")["upper"] is None
    assert not {NAME, ARRAYS} & {path.name for path in Path("run").iterdir()}
    refused(7, "small", f"{NAME}: cannot be read (No such file", weights="vast.safetensors")


# -- what is refused


def test_other_models_and_other_weights():
    certified("net", "--method", "frequency", *FEW)
    refused(9, "linear", "the model: the certificate is for a network of another architecture")
    refused(4, "small", "1,4,4")
    state = load_file("net.safetensors")
    state["2.weight"][1, 0, 2, 1] = torch.nextafter(state["2.weight"][1, 0, 2, 1], torch.tensor(9.0))
    save_file(state, "ulp.safetensors")
    refused(
        9,
        "net",
        "the model: the certificate is for the same architecture with other weights",
        weights="ulp.safetensors",
    )
    save_file({key: value.double() for key, value in load_file("net.safetensors").items()}, "double.safetensors")
    refused(9, "net", "the model: ", weights="double.safetensors")
    refused(4, "net", "no.safetensors", weights="no.safetensors")
    refused(4, "nett", "nett", weights="net.safetensors")


def test_other_input_shapes():
    """The model is read at the certificate's shape; where it takes another one too, it has other outputs there."""
    estimate("tiled", "--method", "product")
    values, arrays = stored()
    rewrite(changed(values, "model.input_shape", [1, 10]), arrays)
    refused(9, "tiled", "the model: the certificate is for output shape (4, 9), and this has (4, 10)")
    rewrite(changed(values, "model.input_shape", [2, 9]), arrays)
    refused(4, "tiled", "2,9")
    rewrite(changed(values, "model.output_shape", [4, 8]), arrays)
    refused(9, "tiled", "the model: ")
    estimate("net", "--output-rows", "1", "--method", "product", out="row")
    values, arrays = stored("row")
    for rows in ([0], [7], [], [-1], None):
        rewrite(changed(values, "selection.rows", rows), arrays, "row")
        refused(9, "net", "the model: ", "row")


@pytest.mark.parametrize(
    ("words", "place", "value", "says"),
    [
        (("--method", "ellipsoid"), "claim", 0.99, "the whole network: "),
        (("--method", "ellipsoid"), "blocks.0.claim", 0.99, "block1: "),
        (("--method", "ellipsoid"), "problems.0.claim", 0.99, "sub-problem 0 ("),
        (("--method", "frequency"), "problems.0.claim", 0.99, "sub-problem 0 ("),
        (("--method", "product"), "problems.0.claim", 0.99, "sub-problem 0 ("),
    ],
)
def test_claims_lowered_by_a_hundredth(words, place, value, says):
    values, arrays = certified("net", *words, *FEW)
    rewrite(changed(values, place, lambda claim: claim * value), arrays)
    refused(9, "net", f"error: {says}")


@pytest.mark.parametrize("method", ["ellipsoid", "frequency"])
@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (np.nan, "is nan"),
        (-1.0, "is -"),
        (0.0, "is 0.0"),
        (np.inf, "is inf"),
        (1e-320, "must be positive"),
        (1e6, "not feasible"),
    ],
)
def test_multipliers_that_prove_nothing(method, factor, says):
    values, arrays = certified("net", "--method", method, *FEW)
    rewrite(values, arrays | {"0-1": arrays["0-1"] * factor})
    refused(9, "net", says)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("blocks.0.tiles", lambda tiles: tiles[:2], "block1: its tiles leave"),
        ("blocks.0.tiles.0.window", [[0, 4]], "block1: its tiles overlap"),
        ("blocks.0.tiles.2.problem", 0, "block1: a tile is not the one that sub-problem 0"),
        ("blocks.0.last", 9, "block1: it goes from node 0 to 9, which is no block there"),
        ("problems.1.kind", "torus", "sub-problem 1 ("),
        ("problems.1.cut", 2, "sub-problem 1 ("),
    ],
)
def test_structures_changed(place, value, says):
    values, arrays = certified("tiled", "--partition-factor", "3", *OVERLAP, *FEW)
    rewrite(changed(values, place, value), arrays)
    refused(9, "tiled", says)


@pytest.mark.parametrize("damage", ["digest", "version", "arrays", "no arrays", "large", "text"])
def test_files_that_cannot_be_read(damage):
    certified("net", "--method", "ellipsoid", *FEW)
    file, beside = Path("run") / NAME, Path("run") / ARRAYS
    text = file.read_text()
    says = {
        "digest": "its digest is not that of its content",
        "version": "has schema version 2, and this reads 1",
        "arrays": "its SHA-256 is not the one",
        "no arrays": "cannot be read (No such file",
        "large": "is larger than the",
        "text": "is no certificate",
    }[damage]
    if damage == "digest":
        file.write_text(text.replace('"method": "ellipsoid"', '"method": "sdp"'))
    elif damage == "version":
        file.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    elif damage == "arrays":
        beside.write_bytes(beside.read_bytes()[:-1])
    elif damage == "no arrays":
        beside.unlink()
    elif damage == "large":
        os.truncate(beside, 10**8)
    else:
        file.write_bytes(b"\xff" * 100)
    refused(7, "net", says)
    refused(7, "nothing", says, weights="nothing.safetensors")  # files are read before the model is


@pytest.mark.parametrize("name", [NAME, ARRAYS])
def test_one_byte_changed_anywhere(name):
    """Refused by the digests, whichever byte it is: before the model is looked at."""
    certified("net", "--method", "ellipsoid", *FEW)
    file = Path("run") / name
    content = file.read_bytes()
    draw = np.random.default_rng(0)
    for position in draw.permutation(len(content))[:150]:
        other = (content[position] + int(draw.integers(1, 256))) % 256
        file.write_bytes(content[:position] + bytes([other]) + content[position + 1 :])
        outcome = invoke("verify", "run", "model.py:nothing")
        blank = name == NAME and {content[position], other} <= set(b" \t\n\r")  # what JSON takes for blank
        assert outcome.exit_code == (4 if blank else 7), outcome.output
        assert outcome.stderr.startswith(f"error: {file}: ") or blank
        assert len(outcome.stderr.splitlines()) == 2
    file.write_bytes(content)
    assert verified("net")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("verify",), 2, "CERTIFICATE_OR_RUN_FOLDER"),
        (("verify", "nowhere", "model.py:net"), 7, "nowhere: cannot be read"),
        (("verify", "run", "model.py:net", "--executor", "threads"), 2, "--executor"),
        (("verify", "run", "model.py:net", "--memory", "much"), 2, "--memory"),
        (("verify", "run", "model.py:net", "--method", "sdp"), 2, "--method"),
    ],
)
def test_bad_words(words, code, says):
    certified("net", "--method", "product", *FEW)
    outcome = invoke(*words)
    assert outcome.exit_code == code, outcome.output
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: ")
    assert says in outcome.stderr


def test_a_run_behind_a_url_is_verified_too():
    certified("net", "--method", "product", *FEW)
    import fsspec

    bucket = fsspec.filesystem("memory")
    for name in (NAME, ARRAYS):
        bucket.pipe_file(f"/far/run/{name}", Path("run", name).read_bytes())
    assert invoke("verify", "memory://far/run", "model.py:net").exit_code == 0
    assert invoke("verify", f"memory://far/run/{NAME}", "model.py:net").exit_code == 0
    bucket.pipe_file(f"/far/run/{ARRAYS}", b"damaged")
    outcome = invoke("verify", "memory://far/run", "model.py:net")
    assert outcome.exit_code == 7
    assert "SHA-256" in outcome.stderr
    bucket.rm_file(f"/far/run/{ARRAYS}")
    assert "is not there" in invoke("verify", "memory://far/run", "model.py:net").stderr
    bucket.pipe_file(f"/far/run/{NAME}", b" " * (16 * 2**20 + 1))
    bucket.pipe_file(f"/far/run/{ARRAYS}", b"")
    assert "larger than" in invoke("verify", "memory://far/run", "model.py:net").stderr
    assert invoke("verify", "magic://far/run", "model.py:net").exit_code == 2

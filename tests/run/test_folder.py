"""The run folder: complete or absent, readable without pickle, and enough to repeat the run."""

import csv
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from lipray.certify.certificate import Certificate, Status
from lipray.compose.bound import Bound
from lipray.errors import StoreError
from lipray.run.folder import choose_folder, read_result, write_run
from lipray.run.records import ModelRecord, ResultRecord, SubproblemRecord

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODEL = ModelRecord(name="net", hash="ab" * 32, input_shape=(2,), output_shape=(1,), neurons=3)
ROW = SubproblemRecord(
    block="block1 [a, b]",
    label='with "quotes", and commas',
    copies=2,
    key="cd" * 32,
    method="ellipsoid",
    status="converged",
    bound=1.5,
    product=None,
    neurons=3,
    memory=100,
    seconds=0.25,
    iterations=7,
)


def result(**changes):
    values = {
        "model": MODEL,
        "upper": 0.1 + 0.2,
        "lower": 1e-300,
        "gap": float("inf"),
        "method": "ellipsoid",
        "composition": "overlap",
        "executor": "serial",
        "threads": 1,
        "seconds": 1.0,
        "blocks": (),
        "figures": {"product": float("inf")},
        "subproblems": (ROW,),
        "failures": (),
    }
    return ResultRecord(**(values | changes))


def bound():
    gram = np.eye(2)
    certificate = Certificate("cd" * 32, "ellipsoid", 1.5, Status.CONVERGED, gram=gram)
    witness = (np.array([1.0, 2.0]), np.array([0.5, 2.0]))
    return Bound(0.3, 0.1, "ellipsoid", (), {certificate.key: certificate}, witness=witness)


def write(folder):
    write_run(folder, bound=bound(), result=result(), config={"seed": 3, "memory": 2**33}, started=NOW, seed=3)


def test_everything_is_there_and_reads_back(tmp_path):
    folder = tmp_path / "deep" / "run"
    write(folder)
    names = {"result.json", "subproblems.csv", "manifest.json", "witness.npz", "shape_matrices.npz"}
    assert {path.name for path in folder.iterdir()} == names
    assert list(folder.parent.iterdir()) == [folder]
    back = read_result(folder)
    assert back == result()
    assert back.upper == 0.1 + 0.2
    assert back.gap is None
    with np.load(folder / "witness.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["x"], [1.0, 2.0])
    with np.load(folder / "shape_matrices.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["cd" * 32], np.eye(2))
    with (folder / "subproblems.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["label"] == ROW.label
    assert float(rows[0]["bound"]) == 1.5
    assert rows[0]["product"] == ""


def test_manifest_says_what_the_run_depended_on(tmp_path):
    write(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"python", "lipray", "torch", "ray", "cvxpy", "clarabel", "numpy", "scipy"} <= set(manifest["versions"])
    assert manifest["thread_variables"]["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert manifest["model"]["hash"] == MODEL.hash
    assert manifest["config"] == {"seed": 3, "memory": 2**33}
    assert manifest["seed"] == 3
    assert manifest["started"] == "2026-01-02T03:04:05+00:00"
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "run" / name).read_bytes()).hexdigest() == digest
    assert os.uname().nodename not in (tmp_path / "run" / "manifest.json").read_text()


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert choose_folder(tmp_path / "out", "net", "ab", NOW) == tmp_path / "out"
    write(tmp_path / "out")
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_a_place_in_use_is_refused(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(tmp_path / "elsewhere")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(StoreError, match="out"):
        choose_folder(out, "net", "ab", NOW)


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        choose_folder(tmp_path / "file" / "out", "net", "ab", NOW)


def test_names_are_safe_and_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = choose_folder(None, "../../a b/ü:c", "0123456789abcdef", NOW)
    assert folder == Path("runs") / "20260102T030405Z-a-b-c-01234567"
    folder.mkdir(parents=True)
    again = choose_folder(None, "../../a b/ü:c", "0123456789abcdef", NOW)
    assert again.name == folder.name + ".2"
    again.mkdir()
    assert choose_folder(None, "../../a b/ü:c", "0123456789abcdef", NOW).name == folder.name + ".3"


def test_nothing_is_left_of_a_write_that_failed(tmp_path, monkeypatch):
    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_damaged_results_are_refused(tmp_path):
    with pytest.raises(StoreError):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"schema_version": 1}')
    with pytest.raises(StoreError):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text(
        result().model_dump_json().replace('"schema_version":1', '"schema_version":2')
    )
    with pytest.raises(StoreError):
        read_result(tmp_path)

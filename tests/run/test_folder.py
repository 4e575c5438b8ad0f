"""The run folder: every file whole or absent, readable without pickle; places in use are refused."""

import csv
from datetime import UTC, datetime

import numpy as np
import pytest

from lipray.certify.certificate import Certificate, Status
from lipray.compose.bound import Bound
from lipray.errors import StoreError
from lipray.run.record.folder import RunFolder, choose_folder, open_run, read_manifest, read_result
from lipray.run.record.outcome_files import outcome_files
from lipray.run.record.records import ModelRecord, ResultRecord, SubproblemRecord

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
    for name, content in outcome_files(bound(), result(), None).items():
        open_run(folder).write(name, content)


def test_everything_is_there_and_reads_back(tmp_path):
    folder = tmp_path / "deep" / "run"
    write(folder)
    assert {path.name for path in folder.iterdir()} == {
        "result.json",
        "subproblems.csv",
        "witness.npz",
        "shape_matrices.npz",
    }
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


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    chosen = choose_folder(tmp_path / "out", None, "net", "ab", NOW)
    assert chosen.place == str(tmp_path / "out")
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
        choose_folder(out, None, "net", "ab", NOW)


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        choose_folder(tmp_path / "file" / "out", None, "net", "ab", NOW)
    with pytest.raises(StoreError):
        choose_folder(None, str(tmp_path / "file"), "net", "ab", NOW)


@pytest.mark.parametrize("store", [None, "kept", "memory://kept"])
def test_names_are_safe_and_never_collide(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        folder = choose_folder(None, store, "../../a b/ü:c", "0123456789abcdef", NOW)
        assert folder.place == f"{store or 'runs'}/{folder.name}"
        folder.write("manifest.json", b"{}")
        names.append(folder.name)
    first = "20260102T030405Z-a-b-c-01234567"
    assert names == [first, first + ".2", first + ".3"]
    open_run(f"{store or 'runs'}").files.remove("")


def test_what_cannot_be_written_is_a_store_error(tmp_path, monkeypatch):
    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write(tmp_path / "run")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


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


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        read_manifest(open_run(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="no manifest"):
        read_manifest(open_run(tmp_path))


def test_a_run_is_named_by_its_folder(tmp_path):
    assert open_run(f"{tmp_path}/a/b/").name == "b"
    assert isinstance(open_run("memory://a/b"), RunFolder)
    assert open_run("memory://a/b").name == "b"

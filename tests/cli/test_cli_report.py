"""``lipray report`` from the command line: paths on stdout, and what is wrong said in one line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lipray.cli.main import cli
from lipray.report.plots import canvas
from tests.cli.test_cli_run import module  # noqa: F401 - a fixture that every test uses

BASE = ("model.py:net", "--weights", "net.safetensors", "--input-shape", "1,6,6", "--executor", "serial")
QUICK = ("--method", "product", "--lower-starts", "2", "--run-id", "r", "--quiet")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(canvas, "_written", lambda _: '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def made(*words):
    outcome = invoke(*words)
    assert outcome.exit_code == 0, outcome.output
    return outcome


def test_the_report_of_a_run_names_the_commands_that_check_it():
    made("estimate", *BASE, *QUICK)
    outcome = made("report", "runs/r", "--format", "html,csv")
    assert outcome.stdout.splitlines() == ["runs/r/report.html", "runs/r/subproblems.csv"]
    page = Path("runs/r/report.html").read_text()
    verify = "lipray verify runs/r model.py:net --weights net.safetensors"
    assert verify in page
    assert invoke(*verify.split()[1:], "--quiet").exit_code == 0


def test_the_report_of_a_sweep_and_its_points():
    made("sweep", *BASE, *QUICK[2:], "--method", "product", "--partition-factor", "1,2")
    made("report", "runs/r/", "--points", "--format", "html")
    assert '<a href="001/report.html">001</a>' in Path("runs/r/report.html").read_text()
    told = json.loads(made("report", "runs/r", "--json", "--out", "there.html").stdout)
    assert told["report"] == "there.html"
    assert told["tables"][0] == "there.csv"
    assert told["state"] == "finished"
    assert Path("there.csv").read_bytes() == Path("runs/r/sweep.csv").read_bytes()


def test_a_run_without_results_has_no_table():
    made("estimate", *BASE, *QUICK)
    manifest = json.loads(Path("runs/r/manifest.json").read_text()) | {"state": "running", "files": {}}
    Path("runs/r/manifest.json").write_text(json.dumps(manifest))
    outcome = made("report", "runs/r")
    assert outcome.stdout.splitlines() == ["runs/r/report.html"]
    assert "there is no table yet" in outcome.stderr


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("runs/none",), "runs/none: holds no run", 7),
        ((".",), "holds no run", 7),
        (("runs/r", "--format", "pdf"), "'pdf' is no list of html, csv, parquet", 2),
        (("runs/r", "--out", "x.txt"), "'x.txt' is no name of a page", 2),
        (("runs/r", "--out", "nowhere/x.html"), "no file in a folder that is there", 2),
        (("nofs://x/y",), "nofs", 2),
        (("runs/damaged",), "is no manifest that this version reads", 7),
        (("runs/r/manifest.json",), "manifest.json", 7),
    ],
)
def test_what_is_wrong_is_one_message(words, told, code):
    for name in ("r", "damaged"):
        Path(f"runs/{name}").mkdir(parents=True)
        Path(f"runs/{name}/manifest.json").write_text("{}")
    outcome = invoke("report", *words)
    assert outcome.exit_code == code, outcome.output
    assert told in outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.output
    assert not list(Path().rglob("report.html"))


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    made("estimate", *BASE, *QUICK)
    from lipray.run.store.files import LocalFiles

    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFiles, "write", full)
    outcome = invoke("report", "runs/r")
    assert outcome.exit_code == 7
    assert "No space left" in outcome.stderr

"""``lipray sweep`` end to end: a table, a folder, and what goes wrong named before any work."""

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from lipray.cli.main import cli
from lipray.run.stop import Stopped
from tests.cli.test_cli_run import module  # noqa: F401 - a fixture that every test uses

BASE = ("model.py:net", "--weights", "net.safetensors", "--input-shape", "1,6,6", "--executor", "serial")
SWEEP = ("sweep", *BASE, "--iterations", "2", "--lower-starts", "2", "--run-id", "s", "--quiet")


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def sweep(*words):
    outcome = invoke(*SWEEP, *words)
    assert outcome.exit_code == 0, outcome.output
    return outcome


def test_a_table_on_stdout_and_what_comes_next_on_stderr():
    outcome = sweep("--method", "ellipsoid,frequency", "--partition-factor", "1,2", "--block-depth", "1,all")
    assert "Sweep of net: 8 points" in outcome.stdout
    assert "refused: 006, 008" in outcome.stdout
    assert "next: lipray report runs/s" in outcome.stderr
    assert (Path("runs") / "s" / "001" / "certificate.json").exists()
    verified = invoke("verify", "runs/s/001", BASE[0], "--weights", "net.safetensors", "--quiet", "--json")
    assert json.loads(verified.stdout)["verified"]
    again = sweep("--method", "ellipsoid,frequency", "--partition-factor", "1,2", "--block-depth", "1,all")
    assert again.stdout == outcome.stdout
    assert "finished already" in again.stderr
    listed = json.loads(invoke("runs", "--json").stdout)
    assert (listed["run"], listed["points"], listed["state"]) == ("s", 8, "finished")


def test_json_is_the_record():
    record = json.loads(sweep("--set", "iterations=0,2", "--set", "composition=overlap,sum", "--json").stdout)
    assert record["folder"] == "runs/s"
    assert [row["swept"] for row in record["rows"]] == [
        {"iterations": iterations, "composition": way} for iterations in (0, 2) for way in ("overlap", "sum")
    ]
    assert record["rows"][2]["upper"] <= record["rows"][0]["upper"]
    assert record["rows"][0]["upper"] == record["rows"][1]["upper"]


def test_each_point_may_have_a_network_of_its_own():
    record = json.loads(sweep("--set", "output_rows=0;0,1", "--json").stdout)
    assert record["rows"][0]["upper"] <= record["rows"][1]["upper"] * 1.001
    shapes = [json.loads(Path(f"runs/s/00{n}/result.json").read_text())["model"]["output_shape"] for n in (1, 2)]
    assert shapes == [[1], [2]]


def test_a_sweep_that_was_stopped_is_gone_on_with_by_its_folder(monkeypatch):
    from lipray.run import serial

    attempt, solved = serial.attempt, []

    def stop(task):
        if getattr(task.work, "method", "product") != "product":
            solved.append(task.label)
            if len(solved) == 2:
                raise Stopped(signal.SIGTERM)
        return attempt(task)

    monkeypatch.setattr(serial, "attempt", stop)
    words = ("--partition-factor", "1,2", "--block-depth", "1,all")
    stopped = invoke(*SWEEP, *words)
    assert stopped.exit_code == 143
    assert "hint: lipray resume runs/s" in stopped.stderr
    monkeypatch.setattr(serial, "attempt", attempt)
    resumed = invoke("resume", "runs/s", "--json", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert {row["state"] for row in json.loads(resumed.stdout)["rows"]} == {"finished"}
    assert invoke("resume", "runs/s", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("--set", "iteratons=1"), "'iteratons' is not an option of lipray", 2),
        (("--method", "elipsoid"), "--method: 'elipsoid'", 2),
        (("--partition-factor", "0"), "--partition-factor: '0'", 2),
        (("--set", "switch=nowhere", "--method", "hybrid"), "nowhere", 2),
        (("--set", "weights=other.safetensors"), "other.safetensors", 4),
        (("--method", "frequency", "--partition-factor", "2,4"), "does not tile maps", 5),
        (("--method", "sdp,ellipsoid", "--switch", "a"), "switch needs a method on tori", 2),
    ],
)
def test_what_is_wrong_is_said_before_any_work(words, told, code):
    outcome = invoke(*SWEEP, *words)
    assert outcome.exit_code == code, outcome.output
    assert told in outcome.stderr
    assert "Traceback" not in outcome.output
    assert not Path("runs/s").exists()

"""Jobs on a Ray head with its dashboard: submitted, watched, stopped, and gone on with."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lipray
from tests.jobs.head import Head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))

"""
NET = ("model.py:net", "--input-shape", "1,4,4")


@pytest.fixture(scope="module")
def head():
    """The cluster."""
    running = Head()
    try:
        yield running.wait()
    finally:
        running.close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a model, from which everything is submitted."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def submitted(head, desk):
    """Two submissions at one time, both waited for: a bound, and a model that is not there."""
    words = {
        "whole": ("submit", *NET, "--lower-starts", "0", "--wait", "--json"),
        "absent": ("submit", "/absent/net.onnx", "--no-ship", "--wait"),
    }
    started = {name: head.start(*item, cwd=desk) for name, item in words.items()}
    ended = {name: process.communicate(timeout=300) for name, process in started.items()}
    assert head.token not in str(ended)
    return {name: (started[name].returncode, *texts) for name, texts in ended.items()}


def test_a_job_gives_the_bound_of_one_process(submitted, desk):
    code, out, err = submitted["whole"]
    assert code == 0, err
    told = json.loads(out)
    here = lipray.estimate(f"{desk}/model.py:net", (1, 4, 4), lower_starts=0, threads=1)
    assert told["result"]["upper"] == here.upper
    assert told["result"]["method"] == "ellipsoid"
    assert told["exit_code"] == 0
    assert told["state"] == "succeeded"
    assert told["run_id"] == told["submission_id"]
    assert told["lipray_version"] == lipray.__version__
    assert re.fullmatch(r"[0-9a-f]{64}", told["config_hash"])
    folder = Path(told["store"]) / told["run_id"]
    assert folder.parent == desk / "runs"
    assert json.loads((folder / "result.json").read_text())["upper"] == here.upper
    assert lipray.verify_run(folder, f"{desk}/model.py:net").bound == here.upper
    # The log is followed on stderr, up to the result, which is stdout's.
    assert "driver: lipray" in err
    assert "tasks, bound" in err
    assert "Lipschitz constant" not in err


def test_the_exit_code_of_the_driver_comes_through(submitted):
    code, out, err = submitted["absent"]
    assert code == 4
    assert out == ""
    assert "error: /absent/net.onnx: there is no such file" in err
    assert "failed, the model cannot be read" in err
    assert "Traceback" not in err


def test_submitting_twice_gives_one_run_that_can_be_asked_for(head, submitted, desk):
    first = json.loads(submitted["whole"][1])
    name = first["submission_id"]
    # A model of the same content elsewhere.
    (desk / "other").mkdir()
    shutil.copy(desk / "model.py", desk / "other" / "same.py")
    again = ("submit", "other/same.py:net", "--input-shape", "1x4x4", "--lower-starts", "0", "--wait", "--json")
    twice, listed, logs, absent = head.run_all(
        again, ("status", "--json"), ("logs", name), ("stop", "raysubmit_x"), cwd=desk
    )
    assert (twice[0], json.loads(twice[1])) == (0, first)
    assert "already submitted, and succeeded" in twice[2]
    assert len(json.loads(listed[1])) == 2
    assert [job["submission_id"] for job in json.loads(listed[1])].count(name) == 1
    assert logs[0] == 0
    assert "tasks, bound" in logs[1]
    assert "Lipschitz constant (l2) of net" in logs[1]
    assert absent[:2] == [2, ""]
    assert "has no job 'raysubmit_x' of lipray" in absent[2]


@pytest.mark.usefixtures("submitted")
def test_a_stopped_job_leaves_a_bound_and_is_gone_on_with(head, desk):
    words = ("submit", *NET, "--lower-starts", "3000", "--name", "long")
    code, out, err = head.run(*words, cwd=desk)
    assert code == 0, err
    name = out.strip()
    assert name.startswith("lipray-long-")
    place = desk / "runs" / name
    end = time.monotonic() + 90
    while not re.search(r'"upper": [0-9.]', progress := _read(place / "progress.json")) and time.monotonic() < end:
        time.sleep(0.3)
    assert "tasks" in progress
    start = time.monotonic()
    code, out, err = head.run("stop", name, "--json", cwd=desk)
    assert time.monotonic() - start < 30
    assert code == 0, err
    told = json.loads(out)
    assert told["state"] == "stopped"
    assert told["result"]["upper"] > 0
    assert json.loads((place / "manifest.json").read_text())["state"] == "stopped"
    assert lipray.verify_run(place, f"{desk}/model.py:net").bound == told["result"]["upper"]


@pytest.mark.slow
def test_a_head_that_is_lost_costs_no_work(desk):
    """The cluster goes while the log is followed; on another one the same submission goes on with the run."""
    words = ("submit", *NET, "--lower-starts", "600", "--name", "lost", "--wait")
    first = Head()
    try:
        process = first.wait().start(*words, cwd=desk)
        lines = []
        while "tasks, bound" not in (line := process.stderr.readline()):
            assert line, lines
            lines.append(line)
    finally:
        first.close()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 8, err
    assert out == ""
    assert "no cluster answers" in err
    assert "Traceback" not in err
    name = re.search(r"lipray-lost-[0-9a-f]+", "".join(lines))[0]
    second = Head()
    try:
        code, out, err = second.wait().run(*words, "--json", cwd=desk)
    finally:
        second.close()
    assert code == 0, err
    told = json.loads(out)
    assert (told["submission_id"], told["result"]["state"]) == (name, "finished")
    manifest = json.loads((desk / "runs" / name / "manifest.json").read_text())
    assert manifest["attempt"] == 2
    assert any(row["stored"] for row in told["result"]["subproblems"])


@pytest.mark.slow
def test_what_was_stopped_is_gone_on_with_under_its_run(head, desk):
    words = ("submit", *NET, "--lower-starts", "300", "--name", "again")
    code, out, err = head.run(*words, cwd=desk)
    assert code == 0, err
    name = out.strip()
    code, out, err = head.run("stop", name, cwd=desk)
    assert code == 0, err
    assert f"To go on: lipray {' '.join(words)}" in err
    code, out, err = head.run(*words, "--wait", "--json", cwd=desk)
    assert code == 0, err
    told = json.loads(out)
    assert (told["submission_id"], told["run_id"], told["attempt"]) == (f"{name}-2", name, 2)
    code, out, err = head.run("status", name, "--json", cwd=desk)
    assert json.loads(out)["attempt"] == 2
    code, out, err = head.run("status", f"{name}-1", "--json", cwd=desk)
    assert json.loads(out)["state"] == "stopped"


@pytest.mark.slow
def test_a_folder_is_shipped_and_so_is_lipray(head, desk, tmp_path):
    """The shipped lipray has a version of its own, so that no other one can have run."""
    (tmp_path / "parts.py").write_text(MODEL)
    (tmp_path / "whole.py").write_text("from parts import net\n")
    copy = tmp_path / ".copy" / "lipray"
    shutil.copytree(Path(lipray.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    start = copy / "__init__.py"
    start.write_text(start.read_text().replace(f'"{lipray.__version__}"', f'"{lipray.__version__}+shipped"'))
    words = ("submit", "whole:net", "--input-shape", "1,4,4", "--method", "product", "--lower-starts", "0", "--json")
    ship = ("--working-dir", ".", "--wait")
    code, out, err = head.run(*words, *ship, "--ship-lipray", cwd=tmp_path, PYTHONPATH=str(copy.parent))
    assert code == 0, err
    told = json.loads(out)
    assert told["lipray_version"] == f"{lipray.__version__}+shipped"
    bound = lipray.estimate(f"{desk}/model.py:net", (1, 4, 4), method="product", lower_starts=0, threads=1)
    assert told["result"]["upper"] == bound.upper
    # Without it the cluster has another version, and says so at once.
    code, out, err = head.run(
        *words, "--working-dir", ".", "--name", "other", cwd=tmp_path, PYTHONPATH=str(copy.parent)
    )
    assert code == 8
    assert f"it has lipray {lipray.__version__}, and {lipray.__version__}+shipped submitted this job" in err


@pytest.mark.slow
def test_a_job_may_set_threads_itself(head, desk):
    """Submitted by Ray's own command, with a thread variable that lipray sets for its workers too."""
    place = desk / "by-hand"
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.url),
        *("--runtime-env-json", '{"env_vars": {"OMP_NUM_THREADS": "2"}}', "--"),
        *("python", "-m", "lipray", "estimate", "lenet5", "--method", "product", "--lower-starts", "0"),
        *("--address", "auto", "--store", str(place), "--run-id", "by-hand"),
    ]
    done = subprocess.run(words, env=head.environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((place / "by-hand" / "manifest.json").read_text())["state"] == "finished"


def _read(path):
    return path.read_text() if path.is_file() else ""

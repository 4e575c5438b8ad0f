"""``lipray doctor``: a table or JSON on stdout, progress on stderr, and the exit code of the first fault."""

import json
import socket

import pytest
from click.testing import CliRunner

from lipray.cli.main import cli
from lipray.errors import ClusterError
from lipray.run.checks import machine
from lipray.run.checks.findings import good
from lipray.run.ray import doctor as ray_doctor


@pytest.fixture(autouse=True)
def _light(monkeypatch, tmp_path):
    """No Ray and no process of its own; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "threads", lambda: [good("threads", "one")])
    monkeypatch.setattr(ray_doctor, "embedded", lambda: [good("Ray", "starts")])
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def doctor(*words):
    return CliRunner().invoke(cli, ["doctor", *words])


def test_all_is_well(tmp_path):
    outcome = doctor()
    assert outcome.exit_code == 0, outcome.output
    assert "0 fault(s)" in outcome.stdout
    for name in ("Python", "packages", "cores", "memory", "threads", "store", "disk", "token", "Ray", "what fits"):
        assert f" {name} " in outcome.stdout
    assert "looking at store" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_json_is_one_object_and_quiet_is_quiet():
    outcome = doctor("--json", "--quiet")
    record = json.loads(outcome.stdout)
    assert outcome.stderr == ""
    assert record["exit_code"] == 0
    assert record["schema_version"] == 1
    assert {"name", "state", "text", "remedy", "code"} == set(record["findings"][0])


def test_the_first_fault_gives_the_exit_code_and_its_remedy(monkeypatch, tmp_path):
    def broken():
        raise ClusterError("embedded", "Ray did not start", hint="Use --executor serial.")

    monkeypatch.setattr(ray_doctor, "embedded", broken)
    outcome = doctor()
    assert outcome.exit_code == 8
    assert "Ray: Use --executor serial." in outcome.stdout
    (tmp_path / "file").write_text("")
    outcome = doctor("--store", "file/store", "--json")
    assert outcome.exit_code == 7
    record = json.loads(outcome.stdout)
    assert [finding["code"] for finding in record["findings"] if finding["state"] == "fault"] == [7, 8]


@pytest.mark.parametrize(("address", "code"), [("ray://there:10001", 2), ("nonsense", 2), ("ftp://there", 2)])
def test_addresses_that_are_none(address, code):
    outcome = doctor("--address", address)
    assert outcome.exit_code == code
    assert "Traceback" not in outcome.output


def test_nothing_listens_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
        outcome = doctor("--address", address)
        assert outcome.exit_code == 8, outcome.output
        assert "what fits" not in outcome.stdout

"""What ``lipray doctor`` says of a dashboard and of the token, which it never shows."""

import json
import platform
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest

from lipray.errors import ClusterError, UsageError
from lipray.jobs import doctor
from lipray.jobs.address import resolve
from lipray.jobs.greeting import Head
from lipray.run.checks.findings import gather

TOKEN = "a-token-that-must-not-be-shown"  # noqa: S105 - nobody's


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    """No token of this machine's."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def cluster():
    """``cluster(token, version)``: the URL of a server that answers as a dashboard does."""
    servers = []

    def start(token=None, version=None, answer=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                given = self.headers.get("Authorization")
                code = 200 if token is None or given == f"Bearer {token}" else 401 if given is None else 403
                said = answer or json.dumps({"version": "4", "ray_version": version or metadata.version("ray")})
                if self.path != "/api/version":
                    code = 404
                self.send_response(code)
                self.end_headers()
                self.wfile.write(said.encode() if code == 200 else b"")

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def look(url):
    found = gather("dashboard", lambda: doctor.dashboard(url))
    assert not any(TOKEN in finding.model_dump_json() for finding in found)
    return {finding.name: finding for finding in found}


def test_a_cluster_with_a_token_is_well(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    found = look(cluster(TOKEN))
    assert {name: finding.state for name, finding in found.items()} == {
        "address": "ok",
        "authentication": "ok",
        "dashboard": "ok",
    }
    assert found["dashboard"].text == f"answers with Ray {metadata.version('ray')}"


@pytest.mark.parametrize(("mine", "text"), [(None, "wants a token"), ("another", "refuses the token")])
def test_a_token_that_is_missing_or_wrong_is_a_fault(cluster, monkeypatch, mine, text):
    if mine is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", mine)
    found = look(cluster(TOKEN))
    assert found["authentication"].state == "ok"
    assert (found["dashboard"].state, found["dashboard"].code) == ("fault", ClusterError.exit_code)
    assert text in found["dashboard"].text
    assert found["dashboard"].remedy


def test_an_open_cluster_is_a_warning_on_loopback_and_a_fault_elsewhere(cluster, monkeypatch):
    found = look(cluster())
    assert found["authentication"].state == "warning"
    assert found["dashboard"].state == "ok"
    monkeypatch.setattr(doctor, "greet", lambda *_: Head(metadata.version("ray"), platform.python_version()))
    found = look("http://192.0.2.1:8265")
    assert (found["authentication"].state, found["authentication"].code) == ("fault", ClusterError.exit_code)
    assert found["address"].state == "warning"
    assert look("https://192.0.2.1:8265")["address"].state == "ok"


def test_another_version_of_ray_is_a_fault(cluster):
    found = look(cluster(version="2.9.3"))
    assert found["dashboard"].state == "fault"
    assert found["dashboard"].text == "answers with Ray 2.9.3"
    assert f"Ray {metadata.version('ray')}" in found["dashboard"].remedy


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}"])
def test_what_is_no_dashboard_is_a_fault(cluster, answer):
    found = look(cluster(answer=answer))
    assert (found["dashboard"].state, found["dashboard"].code) == ("fault", ClusterError.exit_code)
    assert "authentication" not in found


def test_nothing_there_and_addresses_that_are_none(cluster):
    url = cluster()
    port = resolve(url).port
    assert look("http://127.0.0.1:1")["dashboard"].code == ClusterError.exit_code
    assert look(f"ftp://127.0.0.1:{port}")["dashboard"].code == UsageError.exit_code
    found = look(f"http://me:{TOKEN}@127.0.0.1:{port}")
    assert found["dashboard"].code == UsageError.exit_code


def token():
    found = gather("token", doctor.token)
    assert len(found) == 1
    assert TOKEN not in found[0].model_dump_json()
    return found[0]


def test_where_the_token_is(monkeypatch, tmp_path):
    assert token().text.startswith("none here")
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN)
    file.chmod(0o600)
    assert token().state == "ok"
    assert token().text == f"in {file}, mode 0600"
    file.chmod(0o644)
    assert token().state == "warning"
    assert token().remedy == f"chmod 600 {file}"
    other = tmp_path / "other"
    other.write_text(TOKEN)
    other.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert token().remedy == f"chmod 600 {other}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert (token().state, token().text) == ("ok", "in RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token().state == "warning"


def test_a_token_that_cannot_be_read_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert (token().state, token().code) == ("fault", UsageError.exit_code)

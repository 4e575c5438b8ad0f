"""What goes wrong between here and a cluster: one clear message, exit code 8, and no Ray imported for it."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from lipray.cli.main import cli
from lipray.cli.submit import wait_for
from lipray.errors import ClusterError, UsageError
from lipray.jobs import client, greeting
from lipray.jobs.address import VARIABLE, resolve
from lipray.jobs.greeting import check_versions, greet
from lipray.jobs.job import Job, State
from lipray.jobs.submit import Submission, check_start, choose_store, complaint

SECRET = "a-secret-word"  # noqa: S105 - nobody's


class Dashboard(http.server.BaseHTTPRequestHandler):
    """What a cluster's head answers, or something else."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers.get("Authorization")))
        if server.location is not None:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        code, body = server.answers.get(self.path, (404, b"404: Not Found"))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def dashboard():
    """``dashboard(...)`` starts one on loopback and gives it."""
    running = []

    def start(ray="2.60.0", python="3.11.9", *, code=200, body=None, location=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
        server.seen, server.location = [], location
        server.answers = {
            "/api/version": (code, json.dumps({"ray_version": ray}).encode() if body is None else body),
            "/api/v0/cluster_metadata": (200, json.dumps({"data": {"pythonVersion": python}}).encode()),
        }
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """An empty folder, with a token in the environment and no address."""
    monkeypatch.chdir(tmp_path)
    for name in (VARIABLE, "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)


def nobody():
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def refused(url, *words, says, code=8):
    outcome = CliRunner().invoke(cli, [*words, "--address", url])
    assert outcome.exit_code == code, outcome.output
    assert outcome.stdout == ""
    assert outcome.stderr.count("error: ") == 1
    assert "hint: " in outcome.stderr
    assert says in outcome.stderr
    assert SECRET not in outcome.output
    assert "Traceback" not in outcome.output
    assert "defect" not in outcome.output


COMMANDS = [("submit", "lenet5"), ("status",), ("status", "x"), ("logs", "x"), ("logs", "x", "--follow"), ("stop", "x")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_cluster_that_has_gone(words, tmp_path):
    refused(nobody(), *words, says="no cluster answers (Connection refused)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_wrong_token(words, dashboard):
    refused(dashboard(code=403).url, *words, says="the cluster refuses the token")


def test_no_token_where_one_is_wanted(dashboard, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    refused(dashboard(code=401).url, "status", says="the cluster wants a token, and there is none here")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"ray_version": 3}', b"\xff"])
def test_what_is_no_ray(dashboard, body):
    refused(dashboard(body=body).url, "status", says="is no Ray dashboard")


@pytest.mark.parametrize(("code", "says"), [(404, "is no Ray dashboard"), (503, "does not answer now (HTTP 503)")])
def test_other_answers(dashboard, code, says):
    refused(dashboard(code=code).url, "status", says=says)


def test_one_who_listens_and_says_nothing(monkeypatch):
    monkeypatch.setattr(greeting, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        refused(f"http://127.0.0.1:{server.getsockname()[1]}", "status", says="nothing within")
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("ray", "python", "says"),
    [("2.9.3", None, "the cluster has Ray 2.9.3"), (None, "3.9.18", "the cluster has Python 3.9.18")],
)
def test_other_versions(dashboard, ray, python, says):
    here = greeting.metadata.version("ray"), greeting.platform.python_version()
    server = dashboard(ray or here[0], python or here[1])
    refused(server.url, "submit", "lenet5", says=says)


def test_versions_that_agree_but_for_the_last_part():
    ray, python = greeting.metadata.version("ray"), greeting.platform.python_version()
    major = ".".join(ray.split(".")[:2])
    check_versions(resolve("http://127.0.0.1:1"), greeting.Head(f"{major}.99", python))
    check_versions(resolve("http://127.0.0.1:1"), greeting.Head(ray, None))


def test_the_token_is_sent_and_not_where_a_redirect_points(dashboard):
    other = dashboard()
    first = dashboard(location=f"{other.url}/api/version")
    assert greet(resolve(other.url), SECRET).python == "3.11.9"
    assert {token for _, token in other.seen} == {f"Bearer {SECRET}"}
    other.seen.clear()
    greet(resolve(first.url), SECRET)
    assert other.seen
    assert {token for _, token in other.seen} == {None}
    assert {token for _, token in first.seen} == {f"Bearer {SECRET}"}


def test_loopback_is_not_reached_through_a_proxy(dashboard, monkeypatch):
    monkeypatch.setenv("http_proxy", nobody())
    assert greet(resolve(dashboard().url), SECRET).ray == "2.60.0"


def test_another_machine_is_not_even_asked(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    for words in COMMANDS:
        refused("http://192.0.2.1:8265", *words, says="neither a token nor TLS", code=2)
    monkeypatch.setattr(greeting, "SECONDS", 0.2)
    outcome = CliRunner().invoke(cli, ["status", "--address", "http://192.0.2.1:8265", "--insecure"])
    assert outcome.exit_code == 8
    assert "note: http://192.0.2.1:8265 has no token and no TLS" in outcome.stderr


def test_another_machine_wants_a_store():
    remote, local = resolve("http://10.0.0.5:8265"), resolve("http://127.0.0.1:8265")
    for given in (None, "runs"):
        outcome = CliRunner().invoke(
            cli, ["submit", "lenet5", "--address", remote.url, *(("--store", given) if given else ())]
        )
        assert outcome.exit_code == 2, outcome.output
        assert "--store" in outcome.stderr
    with pytest.raises(UsageError, match="holds a password") as caught:
        choose_store("s3://key:geheim@bucket/runs", remote)
    assert "geheim" not in str(caught.value)
    assert choose_store("/shared/runs", remote) == "/shared/runs"
    assert choose_store("s3://bucket/runs", remote) == "s3://bucket/runs"
    assert choose_store(None, local).endswith("/runs")
    assert choose_store("here", local).startswith("/")


def test_ray_without_its_dashboard_is_told_how_to_install(monkeypatch, dashboard):
    found = client.importlib.util.find_spec
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None if name == "aiohttp" else found(name))
    refused(dashboard().url, "status", says="Run: pip install 'ray[default]'")


def test_faults_are_told_without_ray():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from lipray.cli.main import cli\n"
        f"for words in {[list(words) for words in COMMANDS]!r}:\n"
        f"    assert CliRunner().invoke(cli, [*words, '--address', {nobody()!r}]).exit_code == 8\n"
        "found = {'ray', 'torch', 'cvxpy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def failed(exit_code, message=""):
    return Job("job", "job", 1, State.FAILED, "m", "/runs", "0", "c", "", False, 1.0, 2.0, exit_code, message)


class Logs:
    """Jobs of which nothing is known but a log."""

    address = resolve("http://127.0.0.1:1")

    def __init__(self, text):
        self.text = text

    def logs(self, _job):
        return self.text


@pytest.mark.parametrize(
    ("code", "log", "says"),
    [
        (127, "sh: 1: exec: python: not found", "no python on its PATH"),
        (1, "/usr/bin/python: No module named lipray", "the cluster's python has no lipray"),
        (
            8,
            "error: the cluster: it has lipray 9\nhint: Install it.",
            "job: it has lipray 9",
        ),
        (1, "Traceback (most recent call last):", "the driver did not start (exit code 1)"),
        (None, "", "the job was not run to its end (runtime_env setup failed)"),
    ],
)
def test_a_job_that_fails_before_lipray_begins(code, log, says):
    with pytest.raises(ClusterError) as caught:
        check_start(Logs(log), failed(code, "runtime_env setup failed\nmore"))
    assert says in caught.value.describe()


def test_a_job_that_fails_later_keeps_its_own_code():
    check_start(Logs("driver: lipray 0.1.0, Ray 2, Python 3\nerror: model: no such file\n"), failed(4))


@pytest.mark.parametrize("new", [True, False])
def test_a_job_that_fails_while_its_start_is_watched_says_why(new, capsys):
    """Nothing is left to follow then; of a job that was there already the log is not told again."""
    log = "driver: lipray 0.1.0, Ray 2, Python 3\nerror: model: no such file\n"
    assert wait_for(Logs(log), Submission(failed(4), new)) == failed(4)
    assert capsys.readouterr().err == (log if new else "")


def test_the_last_error_of_a_log_is_told():
    assert complaint("a\nerror: one\nhint: do\nerror: two\nb\n") == ("two", "")
    assert complaint("error: one\nhint: do\n") == ("one", "do")
    assert complaint("") == ("", "")


@pytest.mark.parametrize(
    ("state", "exit_code", "status"),
    [(State.STOPPED, None, 143), (State.FAILED, 10, 10), (State.FAILED, -9, 137), (State.SUCCEEDED, 0, 0)],
)
def test_exit_codes(state, exit_code, status):
    job = Job("job", "job", 1, state, "m", "/runs", "0", "c", "", False, 1.0, 2.0, exit_code, "")
    assert job.status_code == status
    assert job.meaning not in {"", "unknown"}


class Tail:
    """A client of Ray's whose connection breaks off; each list is what comes before it does."""

    def __init__(self, *pieces, whole="one\ntwo\nthree\nfour\nfive\n"):
        self.pieces, self.whole = list(pieces), whole

    async def tail_job_logs(self, _name):
        for text in self.pieces.pop(0):
            yield text
        if self.pieces:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, _name):
        return self.whole


def follow(tail, monkeypatch, *, alive=True):
    def answer(address, _token):
        if not alive:
            raise ClusterError(address.url, "no cluster answers")

    monkeypatch.setattr(client, "greet", answer)
    monkeypatch.setattr(client, "PAUSE", 0.0)
    jobs = object.__new__(client.Jobs)
    jobs.address, jobs._token, jobs._client = resolve("http://127.0.0.1:1"), None, tail
    seen = []
    jobs.follow(failed(0), seen.append)
    return "".join(seen)


def test_a_log_that_breaks_off_is_taken_up_where_it_was(monkeypatch):
    tail = Tail(["one\ntwo\n", "thr"], [], ["on", "e\ntwo\nthree\nfour\n"], ["one\ntwo\nthree\nfour\n", "five\n"])
    assert follow(tail, monkeypatch) == "one\ntwo\nthree\nfour\nfive\n"


def test_what_is_printed_last_is_not_lost(monkeypatch):
    """Ray sees the end of a driver before the end of its log."""
    assert follow(Tail(["one\ntwo\n"]), monkeypatch) == "one\ntwo\nthree\nfour\nfive\n"


def test_a_log_that_breaks_off_because_the_cluster_has_gone(monkeypatch):
    with pytest.raises(ClusterError, match="no cluster answers"):
        follow(Tail(["one\n"], ["never"]), monkeypatch, alive=False)


def test_a_log_that_always_breaks_off_is_given_up(monkeypatch):
    with pytest.raises(ClusterError, match="closed unexpectedly"):
        follow(Tail(*[["one\n"]] * 20), monkeypatch)

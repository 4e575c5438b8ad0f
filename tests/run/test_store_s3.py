"""A store in a bucket of a real S3-compatible server on loopback: kept, shared, damaged, gone, and refused."""

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from lipray.certify.solve import solve
from lipray.cli.main import cli
from lipray.errors import StoreError, UsageError
from lipray.run import tasks
from lipray.run.checks import place as places
from lipray.run.events import TaskDone
from lipray.run.lower_bound import ascend
from lipray.run.store import remote
from lipray.run.store.files import open_files
from lipray.run.store.solved import open_store
from tests.run.test_recall import CASES, Counting
from tests.run.test_recall import run as run_case
from tests.run.test_store import ASCENT, PROBLEM, same

s3fs = pytest.importorskip("s3fs", reason='needs the extra test-s3: python -m pip install -e ".[test-s3]"')
moto = pytest.importorskip("moto.server", reason='needs the extra test-s3: python -m pip install -e ".[test-s3]"')

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


LATER = pytest.mark.slow


def run(*arguments, **options):
    """An estimate in this process, without a lower bound unless it is asked for."""
    return run_case(*arguments, **{"lower_starts": 0, **options})


@pytest.fixture(scope="module", autouse=True)
def _silence():
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def server():
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield url(server)
    server.stop()


def url(server):
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def client(monkeypatch):
    """``client(endpoint)``: lipray and its processes find the server there; returns a client that remembers nothing."""
    import fsspec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)

    def connect(endpoint, **options):
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", endpoint)  # for processes; here fsspec has read it already
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint, **options})
        return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    yield connect
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(client, server):
    """A new bucket, by a client that is not lipray's, and the place of a store in it."""
    name = f"bucket-{secrets.token_hex(8)}"
    system = client(server)
    system.mkdir(name)
    return system, f"s3://{name}/some/prefix"


def files(system, place, ending=""):
    return sorted(path for path in system.find(place.removeprefix("s3://")) if path.endswith(ending))


def test_what_is_kept_comes_back(bucket):
    _, place = bucket
    store = open_store(place)
    assert store.get(PROBLEM) is None
    for work, value in ((PROBLEM, solve(PROBLEM)), (ASCENT, ascend(ASCENT))):
        store.put(work, value)
        same(open_store(place).get(work), value)


@pytest.mark.parametrize("case", ["blocks", pytest.param("hybrid", marks=LATER)])
def test_a_second_run_solves_nothing_and_says_the_same(bucket, case):
    _, place = bucket
    first, counting = run(open_store(place), lower_starts=2, **CASES[case]), Counting()
    again = run(open_store(place), counting, lower_starts=2, **CASES[case])
    assert again.bound.upper == pytest.approx(first.bound.upper, rel=1e-12)
    assert again.bound.lower == first.bound.lower > 0.0
    assert not +counting.solved
    assert not again.store_faults


def test_two_drivers_share_a_bucket(bucket):
    _, place = bucket
    outcomes = {}

    def drive(number):
        outcomes[number] = run(open_store(place), **CASES["tiles"])

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert outcomes[0].bound.upper == outcomes[1].bound.upper == run(**CASES["tiles"]).bound.upper
    assert not outcomes[0].store_faults
    assert not outcomes[1].store_faults
    counting = Counting()
    run(open_store(place), counting, **CASES["tiles"])
    assert not +counting.solved


def flip(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def cut(content):
    return content[:-7]


def empty(_content):
    return b""


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        (".json", cut),
        (".npz", flip),
        *(
            pytest.param(*both, marks=LATER)
            for both in ((".json", flip), (".json", empty), (".npz", cut), (".npz", empty))
        ),
    ],
)
def test_damage_is_put_away_and_done_again(bucket, ending, damage):
    system, place = bucket
    store = open_store(place)
    plain = run(store, **CASES["ellipsoid"])
    for path in files(system, f"{place}/objects", ending):
        system.pipe_file(path, damage(system.cat_file(path)))
    counting = Counting()
    outcome = run(open_store(place), counting, **CASES["ellipsoid"])
    assert outcome.bound.upper == plain.bound.upper
    assert +counting.solved
    assert outcome.store_faults
    assert files(system, f"{place}/quarantine", ending)
    counting = Counting()
    assert not run(open_store(place), counting, **CASES["ellipsoid"]).store_faults
    assert not +counting.solved


def test_a_forged_bound_does_not_count(bucket):
    """Multipliers a thousand times as large, and a bound as small as one likes, with every hash in order."""
    system, place = bucket
    store = open_store(place)
    plain = run(store, **CASES["ellipsoid"])
    for key, certificate in plain.bound.certificate.items():
        if certificate.proof.kind != "product":
            lams = tuple(lam * 1e3 for lam in certificate.multipliers)
            proof = replace(certificate.proof, multipliers=lams)
            store.put(plain.work.by_key[key], replace(certificate, bound=1e-3, proof=proof))
    outcome = run(open_store(place), **CASES["ellipsoid"])
    assert outcome.bound.upper == plain.bound.upper
    assert any("do not prove" in fault for fault in outcome.store_faults)
    assert files(system, f"{place}/quarantine")


def test_what_another_process_wrote_is_seen_though_the_folder_was_listed(bucket):
    system, place = bucket
    mine = open_files(place)
    mine.write("folder/one", b"1")
    assert mine.names("folder") == ["one"]
    system.pipe_file(f"{place}/folder/two", b"2")
    assert mine.read("folder/two") == b"2"
    assert mine.names("folder") == ["one", "two"]
    mine.append("folder/two", b"3")
    assert system.cat_file(f"{place}/folder/two") == b"23"
    system.pipe_file(f"{place}/folder/three", b"3")
    mine.move("folder/three", "other/three")
    assert mine.names("other") == ["three"]
    mine.remove("folder")
    mine.remove("folder")
    assert mine.names("folder") == []
    mine.move("folder/none", "other/none")
    assert mine.names("other") == ["three"]


def test_a_missing_bucket_is_not_made(client, server):
    system = client(server)
    files = open_files("s3://no-such-bucket/prefix")
    assert files.read("name") is None
    with pytest.raises(FileNotFoundError, match="there is no no-such-bucket"):
        files.write("name", b"content")
    assert not system.exists("no-such-bucket")
    store = open_store("s3://no-such-bucket/prefix")
    with pytest.raises(StoreError, match="there is no no-such-bucket"):
        store.put(PROBLEM, solve(PROBLEM))


def test_urls_that_are_no_place(client, server):
    client(server)
    for place in ("s3://", "s3:///"):
        with pytest.raises(UsageError, match="names no bucket"):
            open_files(place)
    with pytest.raises(UsageError, match="holds a password") as caught:
        open_files("s3://me:secret@bucket/prefix")
    assert "secret" not in str(caught.value)


IMPATIENT = {"config_kwargs": {"retries": {"max_attempts": 0}}}
"""What a client is told that shall not try again for long."""


def test_a_server_that_goes_in_the_middle_costs_the_store_only(client, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    system = client(url(server), **IMPATIENT)
    system.mkdir("going")
    store = open_store("s3://going/prefix")
    solved = Counting()

    class Listener(list):
        def append(self, event):
            super().append(event)
            if isinstance(event, TaskDone) and +solved.solved and not stopped.is_set():
                stopped.set()
                server.stop()

    stopped = threading.Event()
    outcome = run(store, solved, Listener(), **CASES["tiles"])
    assert stopped.is_set()
    plain = run(**CASES["tiles"])
    assert outcome.bound.upper == plain.bound.upper
    assert not outcome.failures
    assert any("cannot be written" in fault for fault in outcome.store_faults), outcome.store_faults
    # Another run begins where nothing answers.
    outcome = run(open_store("s3://going/prefix"), **CASES["ellipsoid"])
    assert outcome.bound.upper == run(**CASES["ellipsoid"]).bound.upper
    assert any("cannot be read" in fault for fault in outcome.store_faults), outcome.store_faults


def test_a_server_that_never_answers_is_given_up(client, monkeypatch):
    monkeypatch.setattr(remote, "READ_SECONDS", 1.0)
    monkeypatch.setattr(remote, "WRITE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        outcome = run(open_store("s3://silent/prefix"), **CASES["ellipsoid"])
        assert time.monotonic() - began < 60.0
        s3fs.S3FileSystem.clear_instance_cache()
    assert outcome.bound.upper == run(**CASES["ellipsoid"]).bound.upper
    assert any("no answer within" in fault for fault in outcome.store_faults), outcome.store_faults


def test_the_doctor_uses_a_bucket_and_leaves_nothing(bucket, client, server):
    system, place = bucket
    (found,) = places.store(place)
    assert found.state == "ok", found.text
    assert files(system, place) == []
    client(server)
    (found,) = places.store("s3://no-such-bucket/prefix")
    assert (found.state, found.code) == ("fault", StoreError.exit_code)
    assert "cannot be written (there is no no-such-bucket" in found.text


MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(32, 3))
"""


def words(tmp_path, place, *more):
    (tmp_path / "model.py").write_text(MODEL)
    model = [f"{tmp_path}/model.py:net", "--input-shape", "1,6,6", "--iterations", "3", "--lower-starts", "2"]
    return ["estimate", *model, "--store", place, "--json", *more]


def command(tmp_path, place, *more):
    """``lipray estimate`` as a process of its own."""
    environment = os.environ | {"HOME": str(tmp_path)}
    line = [sys.executable, "-m", "lipray", *words(tmp_path, place, *more)]
    return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_the_command_keeps_to_a_bucket(bucket, tmp_path, monkeypatch):
    _, place = bucket
    monkeypatch.chdir(tmp_path)
    line = words(tmp_path, place, "--executor", "serial", "--partition-factor", "2", "--method", "ellipsoid")
    results = [json.loads(invoke(*line)) for _ in range(2)]
    assert results[0]["upper"] == results[1]["upper"]
    assert results[0]["lower"] == results[1]["lower"]
    assert stored(results[0]) == {False}
    assert stored(results[1]) == {True}


def invoke(*line):
    done = CliRunner().invoke(cli, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_runs_live_in_a_bucket_and_are_listed_and_gone_on_with(bucket, tmp_path, monkeypatch):
    system, place = bucket
    monkeypatch.chdir(tmp_path)
    serial = ("--executor", "serial", "--method", "product", "--quiet", "--run-id")
    first = json.loads(invoke(*words(tmp_path, place, *serial, "one")))
    assert first["folder"] == f"{place}/one"
    kept = {path.rpartition("/")[2] for path in files(system, f"{place}/one")}
    assert {"manifest.json", "plan.json", "events.jsonl", "progress.json", "result.json"} <= kept
    manifest = json.loads(system.cat_file(f"{place}/one/manifest.json"))
    assert (manifest["state"], manifest["store"]) == ("finished", place)
    listed = [json.loads(line) for line in invoke("runs", place, "--json").splitlines()]
    assert "one" in json.dumps(listed)
    # Cut off before its end: the result is gone, and the manifest says that it runs.
    system.rm_file(f"{place}/one/result.json")
    running = manifest | {"state": "running", "files": {}, "finished": ""}
    system.pipe_file(f"{place}/one/manifest.json", json.dumps(running).encode())
    again = json.loads(invoke("resume", f"{place}/one", "--json", "--quiet"))
    assert again["upper"] == first["upper"]
    assert json.loads(system.cat_file(f"{place}/one/manifest.json"))["attempt"] == 2
    events = system.cat_file(f"{place}/one/events.jsonl").decode().splitlines()
    assert sum(json.loads(line)["event"] == "plan_ready" for line in events) == 2
    assert not list(tmp_path.glob("runs"))


def stored(result):
    """Whether the sub-problems came from the store; products of norms never do."""
    return {row["stored"] for row in result["subproblems"] if row["method"] != "product"}


def refused(tmp_path, place):
    """The message of a command that cannot use its store, in this process."""
    done = CliRunner().invoke(cli, words(tmp_path, place, "--executor", "serial", "--method", "product", "--quiet"))
    assert done.exit_code == StoreError.exit_code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_command_with_a_missing_bucket_says_so(client, server, tmp_path):
    system = client(server)
    assert "there is no no-such-bucket" in refused(tmp_path, "s3://no-such-bucket/prefix")
    assert not system.exists("no-such-bucket")


@pytest.fixture
def guarded(tmp_path):
    """A server that knows no credentials, with one bucket made before it began to look at them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "1"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_command_with_wrong_credentials_says_so(client, guarded, tmp_path):
    system = client(guarded)
    system.call_s3("create_bucket", Bucket="guarded")
    with pytest.raises(PermissionError):
        system.pipe_file("guarded/file", b"content")
    assert "Access Key Id" in refused(tmp_path, "s3://guarded/prefix")


def test_a_command_without_credentials_says_so(client, server, tmp_path, monkeypatch):
    client(server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "credentials" in refused(tmp_path, "s3://some/prefix")


@LATER
@pytest.mark.ray
def test_on_ray(bucket, tmp_path):
    system, place = bucket
    results = []
    for _ in range(2):
        done = command(tmp_path, place, "--workers", "2", "--partition-factor", "2", "--method", "ellipsoid")
        assert done.returncode == 0, done.stderr
        assert "Unclosed" not in done.stderr
        assert "Traceback" not in done.stderr
        results.append(json.loads(done.stdout))
    assert results[0]["upper"] == results[1]["upper"]
    assert stored(results[1]) == {True}
    assert not results[1]["store_faults"]
    assert files(system, f"{place}/objects", ".json")


@LATER
def test_large_files_go_in_parts_and_come_back_whole(bucket):
    _, place = bucket
    content = os.urandom(2**20) * 130
    mine = open_files(place)
    mine.write("large", content)
    assert mine.read("large") == content
    mine.move("large", "moved")
    assert mine.read("moved") == content
    assert mine.names("") == ["moved"]


@LATER
@pytest.mark.parametrize("case", ["tiles", "frequency"])
def test_a_server_that_is_gone_is_given_up_in_time_without_being_told(client, monkeypatch, case):
    """With a client that tries again for long, as it comes; a journal has many files to keep."""
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    options = CASES[case] | {"iterations": 40}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client(f"http://127.0.0.1:{port}")
    began = time.monotonic()
    outcome = run(open_store("s3://gone/prefix"), **options)
    assert time.monotonic() - began < 240.0
    assert outcome.bound.upper == run(**options).bound.upper
    assert outcome.store_faults

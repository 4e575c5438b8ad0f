"""Files behind fsspec, without a service: folders that are real, buckets that are not made, and errors of all kinds."""

import asyncio
import signal
import threading
import time
from dataclasses import replace

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from lipray.errors import StoreError, UsageError
from lipray.run import stop
from lipray.run.store import remote
from lipray.run.store.files import LocalFiles, open_files
from lipray.run.store.remote import RemoteFiles
from lipray.run.store.solved import Store, open_store
from tests.run.test_recall import CASES, run


def test_folders_are_made_where_they_are_real(tmp_path):
    files = RemoteFiles(LocalFileSystem(), str(tmp_path / "some" / "where"))
    files.write("deep/down/file", b"one")
    files.write("deep/down/file", b"two")
    assert (tmp_path / "some/where/deep/down/file").read_bytes() == b"two"
    files.move("deep/down/file", "other/place/file")
    assert files.read("deep/down/file") is None
    assert files.read("other/place/file") == b"two"
    assert files.names("") == ["deep", "other"]
    assert files.below("other").names("place") == ["file"]
    files.move("none", "nowhere/none")
    files.remove("deep")
    files.remove("deep")
    assert files.names("deep") == []


def test_a_url_of_this_machine_is_a_local_folder(tmp_path):
    for place in (f"file://{tmp_path}/store", f"local://{tmp_path}/store"):
        files = open_files(place)
        assert isinstance(files, LocalFiles)
        files.write("name", place.encode())
        assert (tmp_path / "store" / "name").read_text() == place


def test_passwords_are_not_taken():
    with pytest.raises(UsageError, match="holds a password") as caught:
        open_files("sftp://me:secret@host/folder")
    assert "secret" not in str(caught.value)


class Service(AsyncFileSystem):
    """An object store that fails in a given way."""

    cachable = False

    def __init__(self, fault, **options):
        super().__init__(**options)
        self.fault, self.made, self.left = fault, [], False

    async def _pipe_file(self, *_, **__):
        if self.fault is None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.left = True
                raise
        raise self.fault

    async def _exists(self, *_, **__):
        return False

    async def _makedirs(self, path, **_):
        self.made.append(path)


def test_a_bucket_is_not_made():
    system = Service(FileNotFoundError("no such bucket"))
    with pytest.raises(FileNotFoundError, match="there is no bucket, "):
        RemoteFiles(system, "bucket/prefix").write("name", b"")
    assert not system.made


class OddError(Exception):
    """Not an OSError."""


def test_other_errors_come_as_those_of_files():
    with pytest.raises(OSError, match=r"^first line$"):
        RemoteFiles(Service(OddError("first line\nsecond")), "bucket").write("name", b"")
    with pytest.raises(OSError, match="OddError"):
        RemoteFiles(Service(OddError()), "bucket").write("name", b"")
    with pytest.raises(PermissionError, match="no"):
        RemoteFiles(Service(PermissionError("no")), "bucket").write("name", b"")


def test_what_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "WRITE_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.[5-9] s"):
        RemoteFiles(Service(None), "bucket").write("name", b"")
    assert time.monotonic() - began < 20.0


def test_a_service_that_is_gone_is_left_alone_for_a_while(monkeypatch):
    monkeypatch.setattr(remote, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(remote, "QUICK", 0.1)
    files = RemoteFiles(Service(None), "bucket")

    def seconds(work):
        began = time.monotonic()
        with pytest.raises(OSError, match="no answer within"):
            work()
        return time.monotonic() - began

    assert seconds(lambda: files.write("name", b"")) > 0.4
    # A journal, a listing and a read cost nothing then; what must be kept is tried.
    assert seconds(lambda: files.below("journal").write("name", b"", durable=False)) < 0.2
    assert seconds(lambda: files.names("folder")) < 0.2
    assert seconds(lambda: files.read("name")) < 0.2
    assert seconds(lambda: files.below("run").write("name", b"")) > 0.4
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    assert seconds(lambda: files.write("name", b"")) > 0.4
    assert seconds(lambda: files.write("name", b"", durable=False)) > 0.4


def test_who_is_told_to_stop_does_not_wait_for_a_service(monkeypatch):
    monkeypatch.setattr(remote, "HURRY_SECONDS", 0.5)
    files = RemoteFiles(Service(None), "bucket")

    def tell():
        time.sleep(0.5)
        with pytest.raises(stop.Stopped):
            stop.tell(signal.SIGTERM)

    teller = threading.Thread(target=tell)
    began = time.monotonic()
    teller.start()
    try:
        for _ in range(2):  # what is under way, and what comes then
            with pytest.raises(TimeoutError, match="no answer"):
                files.write("name", b"content")
        assert 1.0 < time.monotonic() - began < 5.0
    finally:
        teller.join()
        stop.forget()


def test_what_is_waited_for_can_be_left(monkeypatch):
    """An exception that a signal raises in the main thread ends the call, and the request with it."""
    system = Service(None)

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    monkeypatch.setattr(remote, "WRITE_SECONDS", 30.0)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            RemoteFiles(system, "bucket").write("name", b"")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5.0
    deadline = time.monotonic() + 5.0
    while not system.left and time.monotonic() < deadline:
        time.sleep(0.05)
    assert system.left


def test_faults_that_take_no_time_are_asked_about_again():
    system = Service(PermissionError("not now"))
    files = RemoteFiles(system, "bucket")
    with pytest.raises(PermissionError):
        files.write("name", b"", durable=False)
    system.fault = PermissionError("never")
    with pytest.raises(PermissionError, match="never"):
        files.write("name", b"", durable=False)


def test_a_store_that_goes_while_an_answer_is_put_away_costs_nothing(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    plain = run(store, **CASES["ellipsoid"])
    for key, certificate in plain.bound.certificate.items():
        if certificate.proof.kind == "dense":
            lams = tuple(lam * 1e3 for lam in certificate.multipliers)
            proof = replace(certificate.proof, multipliers=lams)
            store.put(plain.work.by_key[key], replace(certificate, bound=1e-3, proof=proof))

    def gone(*_):
        raise StoreError(str(tmp_path), "cannot be read (it is gone)")

    monkeypatch.setattr(Store, "reject", gone)
    outcome = run(open_store(str(tmp_path)), **CASES["ellipsoid"])
    assert outcome.bound.upper == plain.bound.upper
    assert any("it is gone" in fault for fault in outcome.store_faults)

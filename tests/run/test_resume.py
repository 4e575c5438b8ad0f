"""A run that is told to stop, loses its driver, or its disk: the bound is valid, and going on costs only the rest."""

import errno
import json
import signal
from dataclasses import replace

import pytest

from lipray.config import EstimateConfig
from lipray.errors import SolveError, StoreError, UsageError
from lipray.partition.subproblem import Subproblem
from lipray.run import tasks
from lipray.run.executor import Failure
from lipray.run.record import logbook
from lipray.run.record.folder import open_run, read_manifest, read_result
from lipray.run.record.listing import list_runs
from lipray.run.record.logbook import Logbook
from lipray.run.record.records import ProgressRecord, RequestRecord
from lipray.run.resume import configuration_of, find_run, same_run
from lipray.run.serial import SerialExecutor
from lipray.run.session import run_estimate
from lipray.run.stop import Stopped
from lipray.run.store.files import LocalFiles
from tests.run.test_recall import CASES, NETWORK

HERE = RequestRecord(model="model.py:net", folder=".")


class Told(SerialExecutor):
    """Told to stop before the ``after``-th solve (bundles of a coordinated problem included)."""

    def __init__(self, after, number=signal.SIGTERM):
        super().__init__(1)
        self.after, self.number, self.solved = after, number, 0

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            method = getattr(task.work, "method", "")
            if "round" in task.label or (isinstance(task.work, Subproblem) and method != "product"):
                if self.solved >= self.after:
                    raise Stopped(self.number)
                self.solved += 1
            yield from super().run([task], keep=keep, deadline=deadline)


class Fails(SerialExecutor):
    """Every sub-problem fails, product bounds aside; with ``everything`` those too."""

    def __init__(self, *, everything=False):
        super().__init__(1)
        self.everything = everything

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            if isinstance(task.work, Subproblem) and (self.everything or task.work.method != "product"):
                yield Failure(task, "RuntimeError", "no luck")
            else:
                yield from super().run([task], keep=keep, deadline=deadline)


def go(store, executor=None, earlier=None, events=None, **options):
    config = EstimateConfig(**{"executor": "serial", "lower_starts": 1, "store": str(store), **options})
    notify = (lambda _: None) if events is None else events.append
    place = executor or SerialExecutor(1)
    return run_estimate(NETWORK, "net", config, executor=place, request=HERE, earlier=earlier, notify=notify)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_told_to_stop_a_run_ends_with_a_valid_bound_and_goes_on(tmp_path, after, number, name):
    every = Told(10**9)
    whole = go(tmp_path / "other", every, **CASES["tiles"])
    stopped = go(tmp_path, Told(after, number), run_id="r", **CASES["tiles"])
    assert (stopped.state, stopped.stopped) == ("stopped", name)
    assert stopped.bound.lower <= whole.bound.upper <= stopped.bound.upper
    folder = open_run(tmp_path / "r")
    manifest = read_manifest(folder)
    assert (manifest.state, manifest.why, manifest.attempt) == ("stopped", name, 1)
    assert read_result(folder, manifest).upper == stopped.bound.upper
    rest = Told(10**9)
    earlier = find_run(folder)
    resumed = go(tmp_path, rest, earlier, run_id="r", **CASES["tiles"])
    assert resumed.bound.upper == whole.bound.upper
    assert resumed.state == "finished"
    assert rest.solved == every.solved - after
    assert read_manifest(folder).attempt == 2
    assert read_result(folder, read_manifest(folder)).upper == whole.bound.upper


def test_told_before_there_is_a_bound_nothing_is_said(tmp_path):
    class AtOnce(SerialExecutor):
        def run(self, *_args, **_keywords):
            raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        go(tmp_path, AtOnce(1), run_id="r", **CASES["tiles"])
    assert read_manifest(open_run(tmp_path / "r")).state == "stopped"
    assert go(tmp_path, None, find_run(open_run(tmp_path / "r")), run_id="r", **CASES["tiles"]).state == "finished"


@pytest.mark.parametrize("method", ["frequency", "hybrid"])
@pytest.mark.parametrize("after", [1, 8, 21])
def test_a_coordinated_problem_goes_on_from_its_last_round(tmp_path, monkeypatch, method, after):
    """The same bound, bit for bit; every bundle is done once, but that proofs that were kept are made again.

    These are the bound to begin with, the last one on the way, and the answer.
    """
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    monkeypatch.setattr("lipray.certify.frequency.solve.INTERIOR_POINT_ORDER", 0)  # first-order steps: rounds
    monkeypatch.setattr("lipray.run.store.journal.THRIFT", 0.0)
    options = {"method": method, "iterations": 9}
    plain = Told(10**9)
    whole = go(tmp_path / "other", plain, **options)
    first, rest = Told(after), Told(10**9)
    stopped = go(tmp_path, first, run_id="r", **options)
    if after >= plain.solved:
        assert stopped.bound.upper == whole.bound.upper
        return
    assert stopped.state == "stopped"
    assert stopped.bound.upper >= whole.bound.upper
    resumed = go(tmp_path, rest, find_run(open_run(tmp_path / "r")), run_id="r", **options)
    assert resumed.bound.upper == whole.bound.upper
    assert first.solved + rest.solved <= plain.solved + 3
    assert not (tmp_path / "journal").exists() or not list((tmp_path / "journal").rglob("*"))


def happened(store):
    return [json.loads(line) for line in (store / "r" / "events.jsonl").read_text().splitlines()]


def test_a_forged_journal_makes_nothing_smaller(tmp_path, monkeypatch):
    """Results of proofs that a journal claims do not count; the bound is proven again."""
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    from lipray.run.store import journal

    whole = go(tmp_path / "other", method="frequency", iterations=9)
    go(tmp_path, Told(6), run_id="r", method="frequency", iterations=9)
    forged = 0
    for path in (tmp_path / "journal").rglob("*"):
        if path.is_file():
            head, arrays = journal.unpack(path.read_bytes())
            for item in head.get("results", ()):
                item["values"]["top"] = 1e-9 if "top" in item["values"] else 0.0
                item["values"]["error"] = 0.0
            path.write_bytes(journal.pack(head, [array * 1e-9 for array in arrays]))
            forged += 1
    assert forged
    earlier = find_run(open_run(tmp_path / "r"))
    resumed = go(tmp_path, None, earlier, run_id="r", method="frequency", iterations=9)
    assert resumed.bound.lower <= resumed.bound.upper
    assert resumed.bound.upper >= whole.bound.upper * (1.0 - 1e-6)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_journal_costs_only_work(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(tasks, "LONG_ROUND", 0.0)
    options = {"method": "frequency", "iterations": 9}
    whole = go(tmp_path / "other", **options)
    go(tmp_path, Told(6), run_id="r", **options)
    files = [path for path in (tmp_path / "journal").rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:middle], "flipped": flipped, "emptied": b""}[damage])
    resumed = go(tmp_path, None, find_run(open_run(tmp_path / "r")), run_id="r", **options)
    assert resumed.bound.upper == whole.bound.upper
    assert resumed.state == "finished"


def test_failures_end_a_run_incomplete(tmp_path):
    finished = go(tmp_path, Fails(), run_id="r", **CASES["ellipsoid"])
    assert finished.state == "incomplete"
    assert finished.bound.upper == finished.bound.figures["product"]
    assert read_manifest(open_run(tmp_path / "r")).state == "incomplete"
    again = go(tmp_path, None, find_run(open_run(tmp_path / "r")), run_id="r", **CASES["ellipsoid"])
    assert again.state == "finished"
    assert again.bound.upper < finished.bound.upper


def test_a_run_without_any_bound_leaves_word(tmp_path):
    with pytest.raises(SolveError):
        go(tmp_path, Fails(everything=True), run_id="r", **CASES["tiles"])
    manifest = read_manifest(open_run(tmp_path / "r"))
    assert manifest.state == "failed"
    assert "no product bound" in manifest.why


def test_what_happened_is_written_down(tmp_path):
    events = []
    finished = go(tmp_path, events=events, run_id="r", **CASES["tiles"])
    written = happened(tmp_path)
    assert written[0]["event"] == "plan_ready"
    assert len(written) == len(events)
    done = [item for item in written if item["event"] == "task_done"]
    assert done[-1]["upper"] == finished.bound.upper
    assert all(item["began"] > 1.7e9 for item in done)
    progress = ProgressRecord.model_validate_json((tmp_path / "r" / "progress.json").read_bytes())
    assert progress.done == progress.tasks == len(done)
    assert progress.upper == finished.bound.upper
    manifest = read_manifest(open_run(tmp_path / "r"))
    assert manifest.state == "finished"
    assert set(manifest.files) >= {"result.json", "certificate.json", "certificate.npz", "witness.npz"}
    assert manifest.request == HERE


def test_a_record_that_cannot_be_written_does_not_take_the_run_along(tmp_path, monkeypatch):
    whole = go(tmp_path / "other", **CASES["tiles"])
    write = LocalFiles.write

    def full(self, name, content, *, durable=True):
        if name != "manifest.json" or b'"state":"running"' not in content.replace(b" ", b""):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, content, durable=durable)

    plan = logbook.PLAN
    monkeypatch.setattr(LocalFiles, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        go(tmp_path, run_id="r", **CASES["tiles"])  # the first files: nothing was done yet

    def later(self, name, content, *, durable=True):
        if name not in {"manifest.json", plan}:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, content, durable=durable)

    monkeypatch.setattr(LocalFiles, "write", later)
    finished = go(tmp_path, run_id="s", **CASES["tiles"])
    assert finished.bound.upper == whole.bound.upper
    assert finished.folder is None
    assert "No space left" in finished.fault.describe()


def test_a_run_is_not_gone_on_with_as_another(tmp_path):
    go(tmp_path, Told(1), run_id="r", **CASES["tiles"])
    earlier = find_run(open_run(tmp_path / "r"))
    config = configuration_of(earlier.manifest, "r")
    same_run(earlier, config, NETWORK.content_hash())
    elsewhere = config.model_copy(update={"executor": "ray", "threads": 2, "address": "auto"})
    same_run(earlier, elsewhere, NETWORK.content_hash())
    with pytest.raises(UsageError, match="iterations was 5 and is 6"):
        same_run(earlier, config.model_copy(update={"iterations": 6}), NETWORK.content_hash())
    with pytest.raises(UsageError, match="another network"):
        same_run(earlier, config, "0" * 64)
    old = replace(earlier, manifest=earlier.manifest.model_copy(update={"algorithm": 0}))
    with pytest.raises(UsageError, match="algorithms"):
        same_run(old, config, NETWORK.content_hash())
    strange = earlier.manifest.model_copy(update={"config": {**earlier.manifest.config, "method": "magic"}})
    with pytest.raises(StoreError, match="method"):
        configuration_of(strange, "r")


def test_runs_are_listed_as_they_stand(tmp_path):
    go(tmp_path, run_id="a", **CASES["tiles"])
    go(tmp_path, Told(0), run_id="b", **CASES["blocks"])
    go(tmp_path, Fails(), run_id="c", **CASES["frequency"])
    go(tmp_path, run_id="d", **CASES["hybrid"])
    manifest = read_manifest(open_run(tmp_path / "d"))
    lost = manifest.model_copy(update={"state": "running", "files": {}})
    (tmp_path / "d" / "manifest.json").write_text(lost.model_dump_json())
    progress = json.loads((tmp_path / "d" / "progress.json").read_text())
    (tmp_path / "d" / "progress.json").write_text(json.dumps(progress | {"time": progress["time"] - 1e4}))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "manifest.json").write_text("{")
    listed = {run.run: run for run in list_runs(str(tmp_path))}
    assert {name: run.state for name, run in listed.items()} == {
        "a": "finished",
        "b": "stopped",
        "c": "incomplete",
        "d": "lost",
        "e": "damaged",
    }
    assert listed["a"].upper >= listed["a"].lower > 0.0
    assert listed["b"].why == "SIGTERM"


def test_the_time_that_was_spent_counts(tmp_path, monkeypatch):
    """Of a budget the rest is left to a resumed run, a tenth of it at least."""
    budgets = []
    from lipray.run import session

    real = session.estimate_network

    def spy(network, config, executor, notify, clock, store):
        budgets.append(clock.budget)
        return real(network, config, executor, notify, clock, store)

    monkeypatch.setattr(session, "estimate_network", spy)
    go(tmp_path, Told(0), run_id="r", budget=1000.0, **CASES["tiles"])
    for spent, left in ((400.0, 600.0), (990.0, 100.0)):
        earlier = replace(find_run(open_run(tmp_path / "r")), spent=spent)
        again = go(tmp_path, Told(0), earlier, run_id="r", budget=1000.0, **CASES["tiles"])
        assert budgets[-1] == left
        assert again.bound.seconds >= spent


def test_silence_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "SILENCE", 0.05)
    monkeypatch.setattr(logbook, "BEAT", 0.02)
    heard = []

    class Slow(SerialExecutor):
        def run(self, work, *, keep=False, deadline=None):
            import time

            time.sleep(0.3)
            yield from super().run(work, keep=keep, deadline=deadline)

    go(tmp_path, Slow(1), events=heard, run_id="r", **CASES["tiles"])
    silences = [event for event in heard if type(event).__name__ == "Silence"]
    assert silences
    assert silences[0].left > 0


def test_a_logbook_that_never_began_writes_nothing(tmp_path):
    go(tmp_path, run_id="r", **CASES["tiles"])
    manifest = read_manifest(open_run(tmp_path / "r"))
    book = Logbook(open_run(tmp_path / "other"), manifest, lambda _: None)
    book.close()
    assert not (tmp_path / "other").exists()

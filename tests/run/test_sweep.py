"""A sweep: a run folder per point and one table, which goes on where it was ended."""

import csv
import io
import json
import signal

import pytest

from lipray.config import EstimateConfig
from lipray.errors import ClusterError, PlanError, UsageError
from lipray.partition.subproblem import Subproblem
from lipray.run.driver import estimate_network
from lipray.run.events import PointDone
from lipray.run.executor import Failure
from lipray.run.grid import make_grid, parse_axes
from lipray.run.record.folder import open_run, read_manifest, read_result
from lipray.run.record.listing import list_runs
from lipray.run.record.records import RequestRecord
from lipray.run.record.sweep_folder import point_folder, read_sweep
from lipray.run.resume import find_run, same_run, same_sweep, sweep_configurations
from lipray.run.serial import SerialExecutor
from lipray.run.stop import Stopped
from lipray.run.store.files import LocalFiles
from lipray.run.summary import describe_model
from lipray.run.sweep import run_sweep, sweep_part
from tests.run.test_joint import NETWORK, Watching, config, distinct

HERE = RequestRecord(model="model.py:net", folder=".")
MODEL = describe_model(NETWORK, "net")
FLAGS = {"method": "ellipsoid,frequency", "partition_factor": "1,2", "block_depth": "1"}
BASE = {"iterations": 3, "lower_starts": 4, "executor": "serial"}


def asked(store, flags=FLAGS, sets=(), **options):
    return sweep_part(make_grid(parse_axes(flags, sets), {**BASE, "store": str(store), "run_id": "s", **options}))


def go(store, executor=None, earlier=None, events=None, **options):
    part, configs = asked(store, **options)
    notify = (lambda _: None) if events is None else events.append
    return run_sweep(
        part,
        configs,
        lambda _: (NETWORK, MODEL),
        executor=executor or SerialExecutor(1),
        request=HERE,
        earlier=earlier,
        notify=notify,
    )


class Told(Watching):
    """Told to stop before so many solves."""

    def run(self, work, *, keep=False, deadline=None):
        for task in work:
            solving = isinstance(task.work, Subproblem) and task.work.method != "product"
            if solving and sum(self.solved.values()) >= self.most:
                raise Stopped(signal.SIGTERM)
            yield from super().run([task], keep=keep, deadline=deadline)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    store, place, events = tmp_path_factory.mktemp("store"), Watching(), []
    return store, go(store, place, events=events), place, events


def test_every_point_is_the_run_it_would_be_alone(swept):
    store, finished, _, events = swept
    folder = open_run(store / "s")
    assert finished.record.state == "finished"
    for row in finished.record.rows[:3]:
        alone = estimate_network(NETWORK, config(iterations=3, **row.swept), SerialExecutor(1))
        result = read_result(point_folder(folder, row.point))
        assert row.upper == result.upper == alone.bound.upper
        assert row.lower == result.lower == alone.bound.lower
        manifest = read_manifest(point_folder(folder, row.point))
        assert manifest.state == "finished"
        assert {"certificate.json", "result.json", "subproblems.csv"} <= set(manifest.files)
        written = (store / "s" / row.point / "events.jsonl").read_text().splitlines()
        assert json.loads(written[0])["event"] == "plan_ready"
        assert json.loads(written[-1])["event"] == "task_done"
    refused = finished.record.rows[3]
    assert refused.state == "refused"
    assert "does not tile maps" in refused.why
    assert [event.point for event in events if isinstance(event, PointDone)]


def test_the_table_counts_what_is_shared_once(swept):
    store, finished, place, _ = swept
    record = finished.record
    done = [row for row in record.rows if row.upper is not None]
    grid = [{"iterations": 3, **row.swept} for row in done]
    assert +place.solved == dict.fromkeys(distinct(grid), 1)
    assert record.distinct == len(distinct(grid))
    assert sum(row.added_core_seconds for row in done) == pytest.approx(record.core_seconds)
    assert sum(row.core_seconds for row in done) > record.core_seconds > 0.0
    assert all(0.0 < row.critical_seconds <= 1.01 * row.core_seconds + 0.01 for row in done)
    assert all(row.product >= row.upper for row in done)
    assert any(row.shared for row in done)
    rows = list(csv.DictReader(io.StringIO((store / "s" / "sweep.csv").read_text())))
    assert [row["method"] for row in rows] == ["ellipsoid", "ellipsoid", "frequency", "frequency"]
    assert [float(row["upper"] or "nan") for row in rows[:3]] == [row.upper for row in done]
    assert rows[3]["upper"] == ""
    assert read_sweep(open_run(store / "s")) == record


def test_parquet_beside_it_says_the_same(swept):
    parquet = pytest.importorskip("pyarrow.parquet")
    store, finished, _, _ = swept
    table = parquet.read_table(store / "s" / "sweep.parquet").to_pylist()
    assert [row["upper"] for row in table] == [row.upper for row in finished.record.rows]
    assert table[0]["partition_factor"] == 1


def test_without_pyarrow_there_is_csv(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    go(tmp_path, flags={"partition_factor": "1"})
    assert (tmp_path / "s" / "sweep.csv").exists()
    assert not (tmp_path / "s" / "sweep.parquet").exists()


def test_a_sweep_is_one_line_of_a_listing(swept):
    store, finished, _, _ = swept
    (listed,) = list_runs(str(store))
    assert (listed.run, listed.state, listed.points) == ("s", "finished", 4)
    assert listed.upper == min(row.upper for row in finished.record.rows if row.upper is not None)
    assert listed.done == listed.tasks > 0


@pytest.mark.parametrize("after", [0, 3])
def test_told_to_stop_a_sweep_goes_on_where_it_was(tmp_path, swept, after):
    _, whole, every, _ = swept
    first, rest = Told(after), Watching()
    stopped = go(tmp_path, first)
    assert (stopped.record.state, stopped.stopped) == ("stopped", "SIGTERM")
    folder = open_run(tmp_path / "s")
    assert read_manifest(folder).state == "stopped"
    for row, sure in zip(stopped.record.rows[:3], whole.record.rows, strict=False):
        assert row.upper >= sure.upper
        assert row.state in ("finished", "stopped")
        assert read_result(point_folder(folder, row.point)).upper == row.upper
    resumed = go(tmp_path, rest, find_run(folder))
    assert [row.upper for row in resumed.record.rows] == [row.upper for row in whole.record.rows]
    assert sum(rest.solved.values()) == sum(every.solved.values()) - after
    manifest = read_manifest(folder)
    assert (manifest.state, manifest.attempt) == ("finished", 2)


def test_points_that_are_finished_are_not_done_again(tmp_path, swept):
    """Not even proven again; what a killed sweep left is read from its folders."""
    store, whole, _, _ = swept
    import shutil

    shutil.copytree(store, tmp_path / "runs")
    folder = open_run(tmp_path / "runs" / "s")
    for name in ("sweep.json", "sweep.csv", "002/manifest.json"):
        (tmp_path / "runs" / "s" / name).unlink()
    lost = read_manifest(folder).model_copy(update={"state": "running", "files": {}})
    (tmp_path / "runs" / "s" / "manifest.json").write_text(lost.model_dump_json())
    place = Watching()
    again = go(tmp_path / "runs", place, find_run(folder))
    assert not +place.solved
    assert {label.split()[0] for label in place.order} == {"002"}
    assert [row.upper for row in again.record.rows] == [row.upper for row in whole.record.rows]
    assert read_sweep(folder).state == "finished"


def test_its_configurations_come_back_from_the_manifest(swept):
    store, _, _, _ = swept
    _, configs = asked(store)
    manifest = read_manifest(open_run(store / "s"))
    again = sweep_configurations(manifest, "s")
    assert {name: item.model_dump(exclude={"store"}) for name, item in again.items()} == {
        name: item.model_dump(exclude={"store"}) for name, item in configs.items()
    }


def test_a_sweep_is_not_gone_on_with_as_another(swept):
    store, _, _, _ = swept
    earlier = find_run(open_run(store / "s"))
    part, configs = asked(store)
    first, content = next(iter(configs.values())), NETWORK.content_hash()
    same_sweep(earlier, part, first, content)
    with pytest.raises(UsageError, match="other values"):
        same_sweep(earlier, asked(store, flags={"partition_factor": "1,2,3"})[0], first, content)
    with pytest.raises(UsageError, match="iterations was 3 and is 4"):
        same_sweep(earlier, part, first.model_copy(update={"iterations": 4}), content)
    with pytest.raises(UsageError, match="is a sweep"):
        same_run(earlier, first, content)
    point = find_run(point_folder(open_run(store / "s"), "001"))
    with pytest.raises(UsageError, match="is a run"):
        same_sweep(point, part, first, content)


def test_where_no_point_can_be_planned_that_is_the_error(tmp_path):
    with pytest.raises(PlanError, match="does not tile"):
        go(tmp_path, flags={"method": "frequency", "partition_factor": "2,3"})
    assert not (tmp_path / "s").exists()


def test_told_before_there_is_a_bound_nothing_is_said(tmp_path):
    class AtOnce(SerialExecutor):
        def run(self, *_args, **_keywords):
            raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        go(tmp_path, AtOnce(1))
    assert read_manifest(open_run(tmp_path / "s")).state == "stopped"


def test_a_cluster_that_is_lost_leaves_the_bounds_so_far(tmp_path):
    class Lost(Watching):
        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if sum(self.solved.values()) >= 1:
                    raise ClusterError("here", "gone")
                yield from super().run([task], keep=keep, deadline=deadline)

    finished = go(tmp_path, Lost())
    assert finished.record.state == "stopped"
    assert "gone" in finished.stopped
    assert all(row.upper is not None for row in finished.record.rows[:3])


def test_failures_make_it_incomplete(tmp_path):
    class Fails(SerialExecutor):
        def run(self, work, *, keep=False, deadline=None):
            for task in work:
                if task.label.startswith("001") and getattr(task.work, "method", "") == "ellipsoid":
                    yield Failure(task, "RuntimeError", "no luck")
                else:
                    yield from super().run([task], keep=keep, deadline=deadline)

    record = go(tmp_path, Fails(1)).record
    assert record.state == "incomplete"
    # The first point's sub-problems are the second's too, as far as they are shared.
    assert record.rows[1].shared
    assert [row.state for row in record.rows] == ["incomplete", "incomplete", "finished", "refused"]
    assert record.rows[0].failed >= record.rows[1].failed > 0


def test_a_point_that_cannot_be_written_does_not_take_the_sweep_along(tmp_path, monkeypatch):
    write = LocalFiles.write

    def full(self, name, content, *, durable=True):
        if self._folder.name == "002":
            raise OSError(28, "No space left on device")
        write(self, name, content, durable=durable)

    monkeypatch.setattr(LocalFiles, "write", full)
    finished = go(tmp_path)
    assert "No space left" in finished.fault.describe()
    assert [row.state for row in finished.record.rows] == ["finished", "finished", "finished", "refused"]
    assert read_sweep(open_run(tmp_path / "s")).rows[1].upper == finished.record.rows[1].upper


def test_values_are_checked_one_by_one_and_together():
    axes = parse_axes({"block_depth": "2,all,2"}, ["output_rows=7;3,5", "chain=yes,default", "tolerance=1e-3,1e-6"])
    assert [axis.values for axis in axes] == [(2, None), ((7,), (3, 5)), (True, None), (1e-3, 1e-6)]
    assert [axis.names for axis in axes] == [(2, "all"), ("7", "3,5"), ("yes", "default"), (1e-3, 1e-6)]
    grid = make_grid(parse_axes({"method": "ellipsoid,hybrid"}, []), {"switch": "none"})
    assert [point.config is None for point in grid.points] == [True, False]
    assert "switch needs a method on tori" in grid.points[0].refusal.describe()


@pytest.mark.parametrize(
    ("flags", "sets", "told"),
    [
        ({"method": "elipsoid"}, [], "--method"),
        ({"partition_factor": "1,x"}, [], "--partition-factor: 'x'"),
        ({"partition_factor": ","}, [], "no values"),
        ({}, ["iteratons=1,2"], "Did you mean iterations"),
        ({}, ["bananas=1"], "Known options"),
        ({}, ["iterations"], "gives no values"),
        ({}, ["iterations=-1"], "--set iterations"),
        ({}, ["budget=1m,2m"], "one for the whole sweep"),
        ({}, ["workers=1,2"], "one for the whole sweep"),
        ({"method": "sdp"}, ["method=sdp"], "given by --method already"),
    ],
)
def test_what_is_wrong_with_a_value_is_named(flags, sets, told):
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        parse_axes(flags, sets)


def test_a_sweep_has_its_limits():
    axes = parse_axes({"partition_factor": ",".join(map(str, range(1, 40)))}, [f"seed={','.join(map(str, range(40)))}"])
    with pytest.raises(UsageError, match="1560 points"):
        make_grid(axes, {})
    with pytest.raises(UsageError, match="not an option"):
        make_grid([], {"bananas": 1})
    assert isinstance(make_grid([], {}).points[0].config, EstimateConfig)

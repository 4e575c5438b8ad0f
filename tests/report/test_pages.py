"""Pages: what the records say, escaped, complete in themselves, the same every time, whatever the run's state."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lipray.errors import StoreError, UsageError
from lipray.report.numbers import lower_text, upper_text
from lipray.report.plots import canvas
from lipray.report.write import write_report
from lipray.run.record.folder import open_run, read_manifest, read_result
from lipray.run.record.sweep_folder import point_folder, read_sweep

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\x00\x1b{{ 7 * 7 }}'


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are put together and not drawn, which takes most of a page's time."""
    monkeypatch.setattr(canvas, "_written", lambda _: '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')


class Page(HTMLParser):
    """Text of a page, and the attributes and tags in it."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.links = "", set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += "" if self.lasttag == "style" else f" {data} "


def report(place, **options):
    written = write_report(str(place), **options)
    return Path(written.report).read_text()


def shown(place):
    return " ".join(Page(report(place)).text.split())


def change(folder, **values):
    """Other values in a manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def everywhere(folder, old, new):
    """Another word in all records of a folder and those below it."""
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        if path.name != "certificate.json":
            path.write_text(path.read_text().replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))
    for path in sorted(folder.rglob("manifest.json"), reverse=True):
        rehash(path.parent)


def rehash(folder):
    """Digests that fit what is there."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    names = manifest["files"]
    change(folder, files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_page_is_complete_in_itself(store, name):
    text = report(store / name)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base", "img", "audio", "video"}
    for link in page.links:
        assert link == "data:," or re.fullmatch(r"#[\w-]+|[\w.-]+\.csv|\d{3}/", link), link
    assert "@import" not in text
    assert "url(h" not in text.replace("'", "").replace('"', "")
    assert len(text) < 300_000


@pytest.mark.usefixtures("undrawn")  # plots are looked at by themselves
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_the_same_folder_gives_the_same_bytes(store, name):
    assert report(store / name) == report(store / name)


@pytest.mark.usefixtures("undrawn")
def test_a_run_says_what_its_records_say(store):
    result = read_result(store / "run")
    text = shown(store / "run")
    assert upper_text(result.upper, 9) in text
    assert lower_text(result.lower, 9) in text
    for block in result.blocks:
        assert block.label in text
    for row in result.subproblems:
        assert row.label in text
    manifest = read_manifest(open_run(store / "run"))
    for told in (manifest.model.hash, manifest.versions["torch"], manifest.files["certificate.json"]):
        assert told in text
    assert "Nothing: no task failed" in text or "sub-problem(s)" in text
    assert f"lipray.verify_run('{store / 'run'}', module)" in text
    assert "lipray resume" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_says_what_its_record_says(store):
    text = shown(store / "sweep")
    record = read_sweep(open_run(store / "sweep"))
    assert f"Sweep of net: {len(record.rows)} points" in text
    assert f"{len([row for row in record.rows if row.upper is not None])} / {len(record.rows)}" in text
    assert "does not tile maps" in text
    assert "refused" in text
    assert "lipray sweep model.py:net --partition-factor 1,2" in text
    assert "Bound against partition factor" in text
    assert "Bound against core-seconds" in text


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_names_are_shown_and_never_run(store, name):
    everywhere(store / name, "net" if name == "sweep" else "Sequential", EVIL)
    everywhere(store / name, "block1", f"{EVIL}1")
    text = report(store / name)
    page = Page(text)
    assert "<script>alert(1)</script>" in page.text
    assert 'onerror="alert(2)"' in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not page.tags & {"script", "img"}
    assert "\x00" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("state", ["failed", "stopped", "running", "incomplete"])
@pytest.mark.usefixtures("undrawn")
def test_a_run_in_any_state_has_a_report_of_what_there_is(store, state):
    folder = store / "run"
    change(folder, state=state, files={}, finished=None, why="MemoryError: <all> of it" if state == "failed" else "")
    for name in ("result.json", "certificate.json", "subproblems.csv"):
        (folder / name).unlink()
    text = shown(folder)
    assert f" {state} " in text
    assert "upper bound so far" in text
    assert "What is to be solved" in text
    assert "Task timeline" in text
    assert ("MemoryError: <all> of it" in text) == (state == "failed")
    assert write_report(str(folder)).tables == ()


@pytest.mark.usefixtures("undrawn")
def test_a_run_whose_driver_was_lost_says_so(store):
    folder = store / "run"
    change(folder, state="running", files={})
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(progress | {"time": 1e9}))
    text = shown(folder)
    assert " lost its driver has ended without a word" in text
    assert "Made from Python" in text


@pytest.mark.parametrize(
    "left", [("manifest.json",), ("manifest.json", "plan.json"), ("manifest.json", "events.jsonl")]
)
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_has_left_little_has_a_report_of_that(store, left):
    folder = store / "run"
    change(folder, state="failed", files={}, why="it broke")
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    assert "it broke" in shown(folder)


@pytest.mark.usefixtures("undrawn")
def test_failures_retries_and_faults_are_listed(store):
    folder = store / "run"
    result = json.loads((folder / "result.json").read_text())
    result["failures"] = [
        {"label": f"tile{n}", "kind": "TimeoutError", "why": "slow <b>", "attempts": 3} for n in range(60)
    ]
    result["store_faults"] = ["bucket gone"]
    result["blocks"][0]["fallbacks"] = ["block1/tile4"]
    result["subproblems"][0] |= {"status": "missing", "bound": None, "advice": "buy memory"}
    (folder / "result.json").write_text(json.dumps(result))
    rehash(folder)
    change(folder, state="incomplete")
    with (folder / "events.jsonl").open("a") as events:
        line = {"time": 2e9, "event": "task_retried", "label": "t", "kind": "NodeDied", "why": "gone", "attempt": 2}
        events.write(json.dumps(line) + "\n" + '{"time": 3')
    text = shown(folder)
    for told in ("slow <b>", "and 10 more", "NodeDied: gone", "bucket gone", "block1/tile4", "buy memory"):
        assert told in text
    assert "1 line(s) of events.jsonl could not be read" in text
    assert "Nothing: no task" not in text


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_sweep_is_made_of_what_its_points_have_left(store):
    folder = store / "sweep"
    whole = read_sweep(open_run(folder))
    change(folder, state="running", files={})
    for name in ("sweep.json", "sweep.csv", "sweep.parquet"):
        (folder / name).unlink(missing_ok=True)
    (folder / "002" / "manifest.json").unlink()
    change(folder / "003", state="failed", files={}, why="no luck")
    (folder / "001" / "result.json").write_text("{}")
    text = shown(folder)
    assert "The sweep has not come to its end" in text
    for told in ("3 open", "2 failed", "no luck", "is not the file that the run wrote"):
        assert told in text
    table = (folder / "sweep.csv").read_text().splitlines()
    assert len(table) == len(whole.rows) + 1
    assert f",{whole.rows[3].upper!r}," in table[4]


def test_a_sweep_without_any_point_yet(store):
    folder = store / "sweep"
    change(folder, state="stopped", files={}, why="SIGTERM")
    import shutil

    for path in folder.glob("0*"):
        shutil.rmtree(path)
    assert "0 / 8" in shown(folder)


def test_damaged_results_are_an_error_and_leave_no_page(store):
    with (store / "run" / "result.json").open("a") as file:
        file.write(" ")
    with pytest.raises(StoreError, match="is not the file that the run wrote"):
        write_report(str(store / "run"))
    with (store / "sweep" / "sweep.json").open("a") as file:
        file.write(" ")
    with pytest.raises(StoreError, match="is not the file that the sweep wrote"):
        write_report(str(store / "sweep"))
    assert not list(store.rglob("report.html"))


def test_thousands_of_tasks_make_no_heavy_page(store):
    folder, draw = store / "run", random.Random(1)  # noqa: S311 - times
    clock, lines = {f"10.0.{n % 9}.1:{n}": 1e9 for n in range(150)}, [{"time": 1e9, "event": "plan_ready"}]
    for number in range(4000):
        where = min(clock, key=clock.get)
        began, took = clock[where], draw.expovariate(0.5)
        clock[where] = began + took
        lines.append(
            {"time": began + took, "event": "task_done", "label": f"block{number % 7}/tile{number}", "seconds": took}
            | {"began": began, "where": where, "upper": 9e9 / (number + 1), "lower": 1.0, "status": "converged"}
        )
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((folder / "result.json").read_text())
    result["subproblems"] = [result["subproblems"][-1] | {"key": str(n)} for n in range(4000)]
    result["blocks"] = [result["blocks"][0] | {"label": f"block{n}"} for n in range(100)]
    (folder / "result.json").write_text(json.dumps(result))
    rehash(folder)
    text = report(folder)
    assert len(text) < 2_000_000
    assert "4,000 tasks" in text
    assert "60 of 4000" in text


@pytest.mark.usefixtures("undrawn")
def test_tables_beside_a_page_elsewhere(store, tmp_path):
    written = write_report(str(store / "sweep"), out=str(tmp_path / "x.html"))
    assert written.tables[0] == str(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == (store / "sweep" / "sweep.csv").read_bytes()
    page = Page((tmp_path / "x.html").read_text())
    assert {"x.csv", "store/sweep/001/"} <= set(page.links)
    run = write_report(str(store / "run"), out=str(tmp_path / "y.html"))
    assert (tmp_path / "y.csv").read_bytes() == (store / "run" / "subproblems.csv").read_bytes()
    assert run.state == "finished"
    assert not (store / "run" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_points_have_pages_that_the_table_leads_to(store):
    folder = store / "sweep"
    page = Page(report(folder, points=True))
    made = sorted(path.parent.name for path in folder.glob("0*/report.html"))
    assert made == [row.point for row in read_sweep(open_run(folder)).rows if row.upper is not None]
    assert {f"{name}/report.html" for name in made} <= set(page.links)
    assert "lipray verify" in (folder / "001" / "report.html").read_text()
    assert read_manifest(point_folder(open_run(folder), "001")).run == "001"


@pytest.mark.usefixtures("undrawn")
def test_tables_that_the_run_has_written_stay_as_they_are(store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.*") if path.is_file()}
    write_report(str(store / "run"))
    write_report(str(store / "sweep"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    made = {path.relative_to(store).as_posix() for path in store.rglob("*.*") if path.is_file()} - {
        path.relative_to(store).as_posix() for path in before
    }
    assert made <= {"run/report.html", "run/subproblems.parquet", "sweep/report.html"}


@pytest.mark.usefixtures("undrawn")
def test_parquet_says_what_the_csv_says(store):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_report(str(store / "run"))
    table = parquet.read_table(store / "run" / "subproblems.parquet").to_pylist()
    assert [row["bound"] for row in table] == [row.bound for row in read_result(store / "run").subproblems]


@pytest.mark.usefixtures("undrawn")
def test_without_pyarrow_there_is_csv_and_a_word(store, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    written = write_report(str(store / "run"))
    assert "lipray[parquet]" in written.lacking
    assert written.tables == (f"{store}/run/subproblems.csv",)
    with pytest.raises(UsageError, match="pyarrow"):
        write_report(str(store / "run"), formats=["parquet"])


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_what_draws_there_are_tables(store, monkeypatch, missing):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=missing) as fault:
        write_report(str(store / "run"))
    assert "lipray[report]" in fault.value.hint
    assert write_report(str(store / "run"), formats=["csv"]).report is None


@pytest.mark.usefixtures("undrawn")
def test_a_store_behind_a_url(store):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (store / "run").iterdir():
        memory.pipe_file(f"/bucket/run/{path.name}", path.read_bytes())
    written = write_report("memory://bucket/run")
    assert written.report == "memory://bucket/run/report.html"
    assert memory.cat_file("/bucket/run/report.html").startswith(b"<!doctype html>")

"""A sweep for the command line: many estimates of one model in, a table and a run folder per point out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lipray.config import EstimateConfig
from lipray.errors import LiprayError, PlanError, StoreError
from lipray.model.network import Network
from lipray.run.budget import Clock
from lipray.run.driver import Ending, RunOutcome, estimate_together
from lipray.run.events import Listener, PointDone, ignore
from lipray.run.executor import Executor
from lipray.run.grid import Grid, GridPoint
from lipray.run.joint import Point
from lipray.run.record.folder import MANIFEST, RUNS, RunFolder, choose_folder, read_manifest, read_result, run_folder
from lipray.run.record.logbook import Logbook
from lipray.run.record.records import (
    ManifestRecord,
    ModelRecord,
    PointRecord,
    RequestRecord,
    ResultRecord,
    State,
    SweepPart,
)
from lipray.run.record.sweep_folder import SWEEP, point_folder
from lipray.run.record.sweep_records import SweepRecord, columns, sweep_rows, totals
from lipray.run.record.tables import csv_bytes, flatten, parquet_bytes
from lipray.run.session import Continued, conclude, give_up, make_manifest, measured, result_of, what_is_left
from lipray.run.start import start_executor
from lipray.run.stop import Stopped
from lipray.run.store.solved import open_store

Prepare = Callable[[EstimateConfig], tuple[Network, ModelRecord]]
"""The network of a configuration, its outputs selected, and its record; the same object for the same network."""


@dataclass(frozen=True, slots=True)
class SweepFinished:
    """A sweep that has ended: its record, where it was written, and how it ended.

    ``fault`` is set where its folder, or a point's, could not be written.
    """

    record: SweepRecord
    folder: str
    stopped: str | None = None
    fault: StoreError | None = None


@dataclass(slots=True)
class _Course:
    """A sweep under way: what has come of its points."""

    folder: RunFolder
    part: SweepPart
    configs: Mapping[str, EstimateConfig]
    prepare: Prepare
    request: RequestRecord | None
    arguments: tuple[str, ...]
    results: dict[str, ResultRecord] = field(default_factory=dict)
    endings: dict[str, tuple[str, str]] = field(default_factory=dict)
    books: dict[str, Logbook] = field(default_factory=dict)
    late: dict[str, RunOutcome] = field(default_factory=dict)
    faults: list[StoreError] = field(default_factory=list)

    def record(self, state: State, place: Executor, seconds: float, faults: tuple[str, ...] = ()) -> SweepRecord:
        """The sweep as it stands."""
        first = next(iter(self.configs.values()))
        distinct, core_seconds = totals(self.results)
        found = [fault for result in self.results.values() for fault in result.store_faults]
        return SweepRecord(
            sweep=self.folder.name,
            model=self.prepare(first)[1],
            state=state,
            axes=self.part.axes,
            rows=sweep_rows(self.part, self.results, self.endings),
            executor=place.name,
            threads=first.threads or (None if place.name == "serial" else 1),
            distinct=distinct,
            core_seconds=core_seconds,
            seconds=seconds,
            store_faults=tuple(dict.fromkeys((*found, *faults, *(fault.describe() for fault in self.faults)))),
        )

    def bracket(self) -> tuple[float | None, float | None]:
        """The best bracket of any point, where they all bound the same network."""
        results = self.results.values()
        if len({result.model.hash for result in results}) != 1:
            return None, None
        uppers = [result.upper for result in results if result.upper is not None]
        return min(uppers, default=None), max(result.lower for result in results)

    def write(self, name: str, outcome: RunOutcome, place: Executor) -> None:
        """A point's run folder."""
        config = self.configs[name]
        network, model = self.prepare(config)
        finished = conclude(outcome, network, model, config, place, self.books[name])
        self.results[name] = finished.result
        if finished.fault is not None:
            self.faults.append(finished.fault)


def run_sweep(
    part: SweepPart,
    configs: Mapping[str, EstimateConfig],
    prepare: Prepare,
    *,
    notify: Listener = ignore,
    executor: Executor | None = None,
    arguments: tuple[str, ...] = (),
    request: RequestRecord | None = None,
    clock: Clock | None = None,
    earlier: Continued | None = None,
) -> SweepFinished:
    """Estimate all points of a sweep over one executor, and keep a folder of it.

    Args:
        part: the points as they were asked for.
        configs: by point, of those that can be asked for.
        prepare: gives a configuration's network.
        notify: called with the events of the sweep.
        executor: where to run; by default one is started and closed.
        arguments: the command line, for the manifests.
        request: what was asked for, so that the sweep can be gone on with by its folder alone.
        clock: of the budget that all points share.
        earlier: go on with this sweep.

    Raises:
        LiprayError: no point can be planned, an option is wrong, or the folder cannot be written.
        Stopped: told to stop before any point had a bound.
    """
    first = next(iter(configs.values()))
    clock = clock or Clock.begin(first.budget)
    _, model = prepare(first)
    folder = _folder(first, model) if earlier is None else earlier.folder
    course = _Course(folder, part, configs, prepare, request, arguments)
    if earlier is not None:
        course.results.update(_finished(folder, configs, prepare))
    store = None if first.store is None else open_store(first.store)
    manifest = make_manifest(folder, model, first, arguments, request, earlier)
    manifest = manifest.model_copy(update={"config": _common(configs), "sweep": part})
    book = Logbook(folder, manifest, notify, spent=0.0 if earlier is None else earlier.spent)
    names = [name for name in configs if name not in course.results]
    points = [_point(course, name, earlier) for name in names]
    began = time.monotonic()
    place = executor or start_executor(first)
    try:
        ends = estimate_together(
            points,
            place,
            clock=what_is_left(clock, earlier),
            store=store,
            notify=measured(place, book, folder.name),
            conclude=lambda number, ending: _take(course, names[number], ending, place, book),
        )
        _check(course, ends)
        spent = (0.0 if earlier is None else earlier.spent) + time.monotonic() - began
        return _finish(course, ends, place, book, spent)
    except (LiprayError, Stopped) as fault:
        give_up(book, fault)
        raise
    finally:
        book.close()
        if executor is None:
            place.close()


def sweep_part(grid: Grid) -> tuple[SweepPart, dict[str, EstimateConfig]]:
    """The points of a grid for the manifest, and the configurations of those that have one."""
    configs = {point.name: point.config for point in grid.points if point.config is not None}
    common = _common(configs)

    def record(point: GridPoint) -> PointRecord:
        dumped = {} if point.config is None else point.config.model_dump(mode="json")
        options = {key: value for key, value in dumped.items() if key not in common}
        refused = "" if point.refusal is None else point.refusal.describe()
        return PointRecord(point=point.name, swept=dict(point.swept), options=options, refused=refused)

    axes = {axis.option: axis.names for axis in grid.axes}
    return SweepPart(axes=axes, points=tuple(record(point) for point in grid.points)), configs


def _folder(config: EstimateConfig, model: ModelRecord) -> RunFolder:
    if config.run_id is not None:
        return run_folder(config.store or RUNS, config.run_id)
    return choose_folder(config.out, config.store, f"{model.name}-sweep", model.hash, datetime.now(UTC))


def _common(configs: Mapping[str, EstimateConfig]) -> dict[str, object]:
    dumped = [config.model_dump(mode="json") for config in configs.values()]
    return {key: value for key, value in dumped[0].items() if all(other[key] == value for other in dumped)}


def _point(course: _Course, name: str, earlier: Continued | None) -> Point:
    config = course.configs[name]
    network, model = course.prepare(config)
    folder = point_folder(course.folder, name)
    manifest = make_manifest(folder, model, config, course.arguments, course.request, None)
    if earlier is not None:
        manifest = manifest.model_copy(update={"attempt": earlier.manifest.attempt + 1})
    course.books[name] = Logbook(folder, manifest, ignore, live=False)
    return Point(network, config, course.books[name], name)


def _finished(folder: RunFolder, configs: Mapping[str, EstimateConfig], prepare: Prepare) -> dict[str, ResultRecord]:
    """The results of points that an earlier attempt has finished."""
    found = {}
    for name, config in configs.items():
        there = point_folder(folder, name)
        if there.read(MANIFEST) is None:
            continue
        with contextlib.suppress(StoreError):  # a point that cannot be read is done again
            manifest: ManifestRecord = read_manifest(there)
            if manifest.state == "finished" and manifest.model.hash == prepare(config)[1].hash:
                found[name] = read_result(there, manifest)
    return found


def _take(course: _Course, name: str, ending: Ending, place: Executor, book: Logbook) -> None:
    """What came of a point: written down at once, or once the sweep's table is, where there is little time."""
    state, bound = "failed", None
    if isinstance(ending, RunOutcome):
        config = course.configs[name]
        course.results[name] = result_of(ending, course.prepare(config)[1], config, place)
        state, bound = course.results[name].state, ending.bound.upper
        if ending.stopped is None:
            course.write(name, ending, place)
        else:
            course.late[name] = ending
    elif isinstance(ending, LiprayError):
        state = "refused" if isinstance(ending, PlanError) else "failed"
        course.endings[name] = (state, ending.describe())
    done = len(course.results) + len(course.endings)
    if book.begun:
        with contextlib.suppress(Stopped):  # who is told to stop is told again
            book(PointDone(name, state, bound, done, len(course.configs), *course.bracket()))


def _check(course: _Course, ends: tuple[Ending, ...]) -> None:
    """Raise what kept all points from a bound."""
    if course.results:
        return
    told = [ending for ending in ends if isinstance(ending, BaseException) and not isinstance(ending, PlanError)]
    faults = [ending for ending in ends if isinstance(ending, BaseException)]
    raise (told or faults)[0]


def _finish(course: _Course, ends: tuple[Ending, ...], place: Executor, book: Logbook, seconds: float) -> SweepFinished:
    outcomes = [ending for ending in ends if isinstance(ending, RunOutcome)]
    stopped = next((item.stopped for item in outcomes if item.stopped), None)
    told = next((ending for ending in ends if isinstance(ending, Stopped)), None)
    stopped = stopped or (told.name if told is not None else None)
    rows = sweep_rows(course.part, course.results, course.endings)
    whole = all(row.state in ("finished", "refused") for row in rows)
    state: State = "stopped" if stopped else "finished" if whole else "incomplete"
    record = course.record(state, place, seconds, tuple(book.faults))
    fault: StoreError | None = None
    try:
        if course.late:
            course.folder.write(SWEEP, _json(record))
        for name, outcome in course.late.items():
            course.write(name, outcome, place)
        book.finish(_files(record), state, stopped or "")
    except StoreError as problem:
        fault = problem
    return SweepFinished(record, course.folder.place, stopped, fault or next(iter(course.faults), None))


def _files(record: SweepRecord) -> dict[str, bytes]:
    rows, names = [flatten(row) for row in record.rows], columns(record)
    files = {"sweep.csv": csv_bytes(rows, names)}
    parquet = parquet_bytes(rows, names)
    if parquet is not None:
        files["sweep.parquet"] = parquet
    return files | {SWEEP: _json(record)}


def _json(record: SweepRecord) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"

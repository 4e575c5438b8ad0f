"""A whole estimate for the command line and the Python interface: network in, bracket and run folder out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lipray.compose.bound import Bound
from lipray.compose.claims import claims
from lipray.config import EstimateConfig
from lipray.errors import LiprayError, StoreError
from lipray.model.network import Network
from lipray.run import THREAD_VARIABLES
from lipray.run.budget import Clock
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.events import Listener, ignore
from lipray.run.executor import Executor
from lipray.run.record.folder import RunFolder, choose_folder, run_folder
from lipray.run.record.logbook import Logbook
from lipray.run.record.outcome_files import outcome_files
from lipray.run.record.records import ManifestRecord, ModelRecord, RequestRecord, ResultRecord, State
from lipray.run.record.surroundings import git_revision, machine, versions
from lipray.run.start import start_executor
from lipray.run.stop import Stopped
from lipray.run.store.objects import ALGORITHM
from lipray.run.store.solved import open_store
from lipray.run.summary import describe_model, summarise
from lipray.verify.record import encode

INCOMPLETE = 10
"""Exit code of a run whose bound is valid, with product bounds in the place of sub-problems that failed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An estimate that has a bound: its record, where it was written, if anywhere, and how it ended.

    ``fault`` is set where the run folder could not be written.
    """

    bound: Bound
    result: ResultRecord
    folder: str | None
    state: State = "finished"
    stopped: str | None = None
    fault: StoreError | None = None


@dataclass(frozen=True, slots=True)
class Continued:
    """An earlier attempt at a run: its folder, its manifest, and the seconds spent so far."""

    folder: RunFolder
    manifest: ManifestRecord
    spent: float = 0.0


def select_outputs(network: Network, config: EstimateConfig) -> Network:
    """The network with the outputs that ``config`` names: all, some rows, or differences of rows.

    Raises:
        UsageError: the network has no such rows.
    """
    if config.output_rows is not None:
        from lipray.model.select import select_rows

        return select_rows(network, config.output_rows)
    if config.pairs is not None:
        from lipray.model.select import select_pairs

        return select_pairs(network, config.pairs)
    return network


def certificate_files(network: Network, config: EstimateConfig, outcome: RunOutcome) -> tuple[bytes, bytes] | None:
    """The certificate of a finished estimate, as the contents of its two files; ``None`` where the bound is infinite.

    Raises:
        SolveError: a bound has no proof, which is a defect.
    """
    made = claims(network, outcome.plan, outcome.work, outcome.bound, rows=config.output_rows, pairs=config.pairs)
    return None if made is None else encode(*made)


def run_estimate(
    network: Network,
    name: str,
    config: EstimateConfig,
    *,
    notes: tuple[str, ...] = (),
    file_hash: str | None = None,
    write: bool = True,
    notify: Listener = ignore,
    executor: Executor | None = None,
    arguments: tuple[str, ...] = (),
    request: RequestRecord | None = None,
    clock: Clock | None = None,
    earlier: Continued | None = None,
) -> Finished:
    """Estimate and, if ``write``, keep a run folder, from the moment on that the work is planned.

    Args:
        network: the whole network, before output rows are selected.
        name: of the model, for the folder and the report.
        config: what to do.
        notes: remarks of the importer.
        file_hash: SHA-256 of the file of the weights.
        write: whether to keep a run folder (at ``config.out``, or in the store).
        notify: called with every event.
        executor: where to run; by default one is started and closed.
        arguments: the command line, for the manifest.
        request: what was asked for, so that the run can be gone on with by its folder alone.
        clock: of the budget, where it began to run before this call.
        earlier: go on with this run.

    Raises:
        LiprayError: see ``estimate_network``; also StoreError, before any work, if the folder cannot be written.
        Stopped: told to stop before there was a valid bound.
    """
    clock = clock or Clock.begin(config.budget)
    chosen = select_outputs(network, config)
    model = describe_model(chosen, name, notes, file_hash)
    store = None if config.store is None else open_store(config.store)
    book = _logbook(config, model, notify, arguments, request, earlier) if write else None
    began = time.monotonic()
    place = executor or start_executor(config)
    try:
        listener = measured(place, book or notify, name if book is None else book.name)
        outcome = estimate_network(chosen, config, place, listener, what_is_left(clock, earlier), store)
        if earlier is not None:
            spent = earlier.spent + time.monotonic() - began
            outcome = replace(outcome, bound=replace(outcome.bound, seconds=spent))
        return conclude(outcome, chosen, model, config, place, book)
    except (LiprayError, Stopped) as fault:
        give_up(book, fault)
        raise
    finally:
        if book is not None:
            book.close()
        if executor is None:
            place.close()


def result_of(outcome: RunOutcome, model: ModelRecord, config: EstimateConfig, place: Executor) -> ResultRecord:
    """The record of an estimate that has a bound, with how it ended."""
    threads = config.threads or (None if place.name == "serial" else 1)
    result = summarise(outcome, model, composition=config.composition, executor=place.name, threads=threads)
    state: State = "stopped" if outcome.stopped else "finished" if outcome.complete else "incomplete"
    return result.model_copy(update={"state": state})


def conclude(
    outcome: RunOutcome,
    network: Network,
    model: ModelRecord,
    config: EstimateConfig,
    place: Executor,
    book: Logbook | None,
) -> Finished:
    """Write down what came of it; a folder that cannot be written does not take the bound along."""
    result = result_of(outcome, model, config, place)
    state = result.state
    if book is None:
        return Finished(outcome.bound, result, None, state, outcome.stopped)
    result = result.model_copy(update={"store_faults": (*result.store_faults, *book.faults)})
    try:
        files = outcome_files(outcome.bound, result, certificate_files(network, config, outcome))
        book.finish(files, state, outcome.stopped or "")
    except StoreError as fault:
        return Finished(outcome.bound, result, None, state, outcome.stopped, fault)
    return Finished(outcome.bound, result, book.place, state, outcome.stopped)


def give_up(book: Logbook | None, fault: LiprayError | Stopped) -> None:
    """Leave word in the manifest of a run that ends without a bound."""
    if book is None or not book.begun:
        return
    stopped = isinstance(fault, Stopped)
    why = fault.name if isinstance(fault, Stopped) else fault.describe()
    try:
        book.finish({}, "stopped" if stopped else "failed", why)
    except StoreError:
        return  # the fault that is raised says more


def measured(place: Executor, listener: Listener, run: str) -> Listener:
    """On Ray, a run's figures go to Ray's metrics too."""
    if place.name != "ray":
        return listener
    from lipray.run.ray.metrics import Metrics

    return Metrics(run, listener)


def what_is_left(clock: Clock, earlier: Continued | None) -> Clock:
    """The budget that earlier attempts have left, a tenth of it at least."""
    if earlier is None or clock.budget is None:
        return clock
    return Clock(max(clock.budget - earlier.spent, 0.1 * clock.budget), clock.start)


def _logbook(
    config: EstimateConfig,
    model: ModelRecord,
    notify: Listener,
    arguments: tuple[str, ...],
    request: RequestRecord | None,
    earlier: Continued | None,
) -> Logbook:
    now = datetime.now(UTC)
    if earlier is not None:
        folder = earlier.folder
    elif config.run_id is not None:
        folder = run_folder(config.store or "runs", config.run_id)
    else:
        folder = choose_folder(config.out, config.store, model.name, model.hash, now)
    manifest = make_manifest(folder, model, config, arguments, request, earlier)
    return Logbook(folder, manifest, notify, spent=0.0 if earlier is None else earlier.spent)


def make_manifest(
    folder: RunFolder,
    model: ModelRecord,
    config: EstimateConfig,
    arguments: tuple[str, ...],
    request: RequestRecord | None,
    earlier: Continued | None,
) -> ManifestRecord:
    """What a run that begins, or goes on, depends on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return ManifestRecord(
        run=folder.name,
        state="running",
        attempt=1 if earlier is None else earlier.manifest.attempt + 1,
        started=now if earlier is None else earlier.manifest.started,
        model=model,
        config=config.model_dump(mode="json"),
        request=request,
        store=_absolute(config.store),
        algorithm=ALGORITHM,
        seed=config.seed,
        versions=versions(),
        thread_variables={name: os.environ.get(name, "") for name in THREAD_VARIABLES},
        machine=machine(),
        git=git_revision(),
        arguments=arguments,
    )


def _absolute(store: str | None) -> str | None:
    return store if store is None or "://" in store else os.path.abspath(store)  # noqa: PTH100 - it need not exist

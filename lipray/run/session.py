"""A whole estimate for the command line and the Python interface: network in, bracket and run folder out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lipray.compose.bound import Bound
from lipray.compose.claims import claims
from lipray.config import EstimateConfig
from lipray.model.network import Network
from lipray.run.budget import Clock
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.events import Listener, ignore
from lipray.run.executor import Executor
from lipray.run.folder import choose_folder, write_run
from lipray.run.records import ResultRecord
from lipray.run.start import start_executor
from lipray.run.store import open_store
from lipray.run.summary import describe_model, summarise
from lipray.verify.record import encode


@dataclass(frozen=True, slots=True)
class Finished:
    """An estimate that ended well: the bound, its record, and where it was written, if anywhere."""

    bound: Bound
    result: ResultRecord
    folder: Path | None


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
    clock: Clock | None = None,
) -> Finished:
    """Estimate and, if ``write``, leave a run folder; it appears only when the estimate has ended well.

    Args:
        network: the whole network, before output rows are selected.
        name: of the model, for the folder and the report.
        config: what to do.
        notes: remarks of the importer.
        file_hash: SHA-256 of the file of the weights.
        write: whether to write a run folder (at ``config.out``, or under ``runs/``).
        notify: called with every event.
        executor: where to run; by default one is started and closed.
        arguments: the command line, for the manifest.
        clock: of the budget, where it began to run before this call.

    Raises:
        LiprayError: see ``estimate_network``; also StoreError, before any work, if the folder cannot be written.
    """
    started = datetime.now(UTC)
    clock = clock or Clock.begin(config.budget)
    chosen = select_outputs(network, config)
    model = describe_model(chosen, name, notes, file_hash)
    folder = choose_folder(config.out, name, model.hash, started) if write else None
    store = None if config.store is None else open_store(config.store)
    place = executor or start_executor(config)
    try:
        outcome = estimate_network(chosen, config, place, notify, clock, store)
    finally:
        if executor is None:
            place.close()
    threads = config.threads or (None if place.name == "serial" else 1)
    result = summarise(outcome, model, composition=config.composition, executor=place.name, threads=threads)
    if folder is not None:
        write_run(
            folder,
            bound=outcome.bound,
            certificate=certificate_files(chosen, config, outcome),
            result=result,
            config=config.model_dump(mode="json"),
            started=started,
            seed=config.seed,
            arguments=arguments,
        )
    return Finished(outcome.bound, result, folder)

"""``lipray sweep``: one model, many options at once, and what they share solved once."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipray.cli.estimate import set_threads
from lipray.cli.options import load, sweep_options

if TYPE_CHECKING:
    from lipray.config import EstimateConfig
    from lipray.model.load import Loaded
    from lipray.model.network import Network
    from lipray.run.budget import Clock
    from lipray.run.record.records import ModelRecord, RequestRecord, SweepPart
    from lipray.run.record.sweep_records import SweepRecord
    from lipray.run.session import Continued
    from lipray.run.sweep import SweepFinished


@click.command("sweep")
@sweep_options
def sweep_command(
    model: str,
    *,
    config: Path | None,
    method: str | None,
    partition_factor: str | None,
    block_depth: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    trust_model: bool,
    no_store: bool,
    quiet: bool,
    debug: bool,
    **flags: Any,
) -> int:
    """Estimate MODEL with every combination of the values given, and print a table.

    Sub-problems that several points have in common are solved once. Every point leaves a run folder in the sweep's,
    and sweep.csv holds the table. Options that take one value are those of estimate, for all points.
    """
    del debug  # read by the group
    began = time.monotonic()
    from lipray.run.grid import make_grid, parse_axes

    axes = parse_axes({"method": method, "partition_factor": partition_factor, "block_depth": block_depth}, sets)
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    grid = make_grid(axes, _stored(given, config, no_store=no_store), config)
    first = next(point.config for point in grid.points if point.config is not None)
    set_threads(first)
    networks = Networks(model, trust=trust_model)

    from lipray.run.budget import Clock
    from lipray.run.record.folder import RUNS, run_folder
    from lipray.run.record.records import RequestRecord
    from lipray.run.record.sweep_folder import read_sweep
    from lipray.run.resume import find_run, same_sweep
    from lipray.run.sweep import sweep_part

    part, configs = sweep_part(grid)
    for options in configs.values():
        networks(options)
    earlier = None if first.run_id is None else find_run(run_folder(first.store or RUNS, first.run_id))
    if earlier is not None:
        same_sweep(earlier, part, first, networks(first)[1].hash)
        known = read_sweep(earlier.folder) if earlier.manifest.state == "finished" else None
        if known is not None:
            show(known, earlier.folder.place, as_json=as_json)
            click.echo("this sweep was finished already", err=True)
            return 0
    request = RequestRecord(model=model, trust_model=trust_model, folder=str(Path.cwd()))
    clock = Clock(first.budget, began)
    return drive_sweep(part, configs, networks, request, clock, earlier=earlier, quiet=quiet, as_json=as_json)


class Networks:
    """The networks of configurations: loaded once per input shape and weights, selected once per choice of outputs."""

    def __init__(self, model: str, *, trust: bool) -> None:
        self._model, self._trust = model, trust
        self._loaded: dict[object, Loaded] = {}
        self._chosen: dict[object, tuple[Network, ModelRecord]] = {}

    def __call__(self, config: EstimateConfig) -> tuple[Network, ModelRecord]:
        """The network of a configuration, and its record."""
        source = (config.input_shape, config.weights)
        key = (*source, config.output_rows, config.pairs)
        if key not in self._chosen:
            from lipray.run.session import select_outputs
            from lipray.run.summary import describe_model

            if source not in self._loaded:
                self._loaded[source] = load(self._model, config, trust=self._trust)
            found = self._loaded[source]
            network = select_outputs(found.network, config)
            self._chosen[key] = network, describe_model(network, found.name, found.notes, found.weights_hash)
        return self._chosen[key]


def drive_sweep(
    part: SweepPart,
    configs: Mapping[str, EstimateConfig],
    networks: Networks,
    request: RequestRecord,
    clock: Clock,
    *,
    earlier: Continued | None = None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a sweep, print its table to stdout, and return the exit code.

    Args:
        part: the points as they were asked for.
        configs: by point.
        networks: gives a configuration's network.
        request: what was asked for, for the manifest.
        clock: of the budget, since the command began.
        earlier: the sweep to go on with.
        quiet: no progress on stderr.
        as_json: print one JSON object.
    """
    from lipray.cli.console import end_cleanly
    from lipray.cli.progress import show_progress
    from lipray.run.sweep import run_sweep

    # Ray prints some of its errors to stdout, which is the result's alone.
    with end_cleanly() as watch, redirect_stdout(sys.stderr), show_progress(quiet=quiet) as notify:
        finished = run_sweep(
            part,
            configs,
            networks,
            notify=watch(notify),
            arguments=tuple(sys.argv[1:]),
            request=request,
            clock=clock,
            earlier=earlier,
        )
    show(finished.record, finished.folder, as_json=as_json)
    return _ending(finished)


def show(record: SweepRecord, folder: str, *, as_json: bool) -> None:
    """Print a sweep to stdout."""
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(record, folder))
    else:
        from lipray.cli.console import print_result
        from lipray.report.sweep import sweep_table

        print_result(sweep_table(record, folder))


def _stored(given: dict[str, Any], file: Path | None, *, no_store: bool) -> dict[str, Any]:
    """The options with the store that estimate would use."""
    if no_store:
        return given | {"store": None}
    from lipray.config import read_config
    from lipray.run.record.folder import RUNS

    written = {} if file is None else read_config(file)
    return given if "store" in given or written.get("store") is not None else given | {"store": RUNS}


def _ending(finished: SweepFinished) -> int:
    """Say on stderr what is not as it should be, and what to do."""
    from lipray.cli.drive import code_of
    from lipray.run.record.tables import MISSING, parquet_bytes

    record, place = finished.record, shlex.quote(finished.folder)
    if finished.fault is not None:
        click.echo(f"error: the bounds above are valid, but {finished.fault.describe()}", err=True)
        return finished.fault.exit_code
    if parquet_bytes([], []) is None:
        click.echo(f"note: {MISSING}", err=True)
    code = code_of(record.state, finished.stopped or "")
    if record.state == "stopped":
        click.echo(f"stopped by {finished.stopped}: every bound is valid, and the best so far", err=True)
    elif record.state == "incomplete":
        click.echo("incomplete: the bounds are valid, but product bounds stand in for what failed", err=True)
    if code:
        click.echo(f"hint: lipray resume {place} goes on, from what is in the store", err=True)
    else:
        click.echo(f"next: lipray report {place}", err=True)
    return code

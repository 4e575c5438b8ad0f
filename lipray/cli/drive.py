"""What ``estimate`` and ``resume`` share: a run with progress, signals and metrics, and its result printed."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lipray.config import EstimateConfig
    from lipray.model.load import Loaded
    from lipray.run.budget import Clock
    from lipray.run.record.records import RequestRecord, ResultRecord
    from lipray.run.session import Continued, Finished


def drive(
    loaded: Loaded,
    options: EstimateConfig,
    request: RequestRecord,
    clock: Clock,
    *,
    earlier: Continued | None = None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run an estimate, print its result to stdout, and return the exit code.

    Args:
        loaded: the model.
        options: what to do.
        request: what was asked for, for the manifest.
        clock: of the budget, since the command began.
        earlier: the run to go on with.
        quiet: no progress on stderr.
        as_json: print one JSON object.
    """
    from lipray.cli.console import end_cleanly
    from lipray.cli.progress import show_progress
    from lipray.run.session import run_estimate

    # Ray prints some of its errors to stdout, which is the result's alone.
    with end_cleanly() as watch, redirect_stdout(sys.stderr), show_progress(quiet=quiet) as notify:
        finished = run_estimate(
            loaded.network,
            loaded.name,
            options,
            notes=loaded.notes,
            file_hash=loaded.weights_hash,
            notify=watch(notify),
            arguments=tuple(sys.argv[1:]),
            request=request,
            clock=clock,
            earlier=earlier,
        )
    show(finished.result, finished.folder, as_json=as_json)
    return _ending(finished, options)


def show(result: ResultRecord, folder: str | None, *, as_json: bool) -> None:
    """Print a result to stdout."""
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(result, folder))
    else:
        from lipray.cli.console import print_result
        from lipray.report.table import result_table

        print_result(result_table(result, folder))


def code_of(state: str, why: str = "") -> int:
    """The exit code of a run that has a bound, by its state in the manifest."""
    import signal

    from lipray.errors import ClusterError
    from lipray.run.session import INCOMPLETE

    if state == "stopped":
        number = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(why)
        return ClusterError.exit_code if number is None else 128 + number
    return INCOMPLETE if state == "incomplete" else 0


def _ending(finished: Finished, options: EstimateConfig) -> int:
    """Say on stderr what is not as it should be, and what to do."""
    if finished.fault is not None:
        click.echo(f"error: the bound above is valid, but {finished.fault.describe()}", err=True)
        return finished.fault.exit_code
    code = code_of(finished.state, finished.stopped or "")
    if finished.state == "stopped":
        click.echo(f"stopped by {finished.stopped}: the bound is valid, and the best so far", err=True)
    elif finished.state == "incomplete":
        click.echo("incomplete: the bound is valid, but product bounds stand in for what failed", err=True)
    if code and finished.folder is not None:
        kept = "" if options.store is None else ", from what is in the store"
        click.echo(f"hint: lipray resume {shlex.quote(finished.folder)} goes on{kept}", err=True)
    return code

"""``lipray runs``: the runs of a store, their state and their bounds."""

from __future__ import annotations

import click


@click.command("runs")
@click.argument("store", metavar="[STORE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def runs_command(store: str | None, *, as_json: bool, debug: bool) -> None:
    """List the runs of STORE, a path or URL (default: runs), oldest first."""
    del debug  # read by the group
    from lipray.run.record.folder import RUNS
    from lipray.run.record.listing import list_runs

    listed = list_runs(store or RUNS)
    if as_json:
        for item in listed:
            click.echo(item.model_dump_json())
        return
    from lipray.cli.console import print_result
    from lipray.report.runs import runs_table

    print_result(runs_table(tuple(listed), store or RUNS))

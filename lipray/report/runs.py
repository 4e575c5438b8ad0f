"""The runs of a store as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lipray.report.numbers import lower_text, seconds_text, upper_text
from lipray.run.record.listing import ListedRun


def runs_table(runs: Sequence[ListedRun], store: str) -> RenderableType:
    """One line per run or sweep: its state, how far it is, and its bracket."""
    if not runs:
        return Text(f"{store} holds no runs")
    table = Table(title=f"Runs in {store}", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("model", "method", "state"):
        table.add_column(name)
    for name in ("tasks", "upper", "lower", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            Text(run.run),
            Text(run.model),
            Text(f"sweep of {run.points}" if run.points else run.method),
            Text(run.state),
            f"{run.done}/{run.tasks}",
            "" if run.upper is None else upper_text(run.upper),
            lower_text(run.lower),
            seconds_text(run.seconds),
        )
    return table

"""Jobs as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lipray.jobs.report import JobReport
from lipray.report.numbers import lower_text, seconds_text, upper_text
from lipray.run.record.records import ProgressRecord


def job_table(report: JobReport) -> RenderableType:
    """One job: where it is, how it ended, how far its run is."""
    table = Table(title=Text(report.submission_id), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("state", report.state)
    if report.exit_code is not None:
        table.add_row("exit code", Text(f"{report.exit_code}: {report.meaning}"))
    if report.message:
        table.add_row("Ray says", Text(report.message))
    table.add_row("model", Text(report.model))
    if report.submission_id != report.run_id:
        table.add_row("run", Text(f"{report.run_id}, attempt {report.attempt}"))
    table.add_row("started", report.started)
    if report.ended is not None and report.seconds is not None:
        table.add_row("ended", f"{report.ended}, after {seconds_text(report.seconds)}")
    bracket = bracket_text(report)
    if bracket:
        table.add_row("bound", Text(bracket))
    elif report.last_line:
        table.add_row("last line", Text(report.last_line))
    table.add_row("kept in", Text(f"{report.store}/{report.run_id}"))
    return Group(table)


def jobs_table(reports: Sequence[JobReport]) -> RenderableType:
    """All jobs, one in a row."""
    table = Table()
    table.add_column("job", overflow="fold")
    for name in ("state", "exit code", "model", "started", "time"):
        table.add_column(name, no_wrap=True)
    table.add_column("bound", overflow="fold")
    for report in reports:
        table.add_row(
            Text(report.submission_id),
            report.state,
            "" if report.exit_code is None else str(report.exit_code),
            Text(report.model),
            report.started.removesuffix("+00:00").replace("T", " "),
            "" if report.seconds is None else seconds_text(report.seconds),
            Text(bracket_text(report)),
        )
    return table


def bracket_text(report: JobReport) -> str:
    """The bound as far as it is known, and how much of the work is behind it; empty where nothing is known."""
    if report.result is not None:
        return f"[{lower_text(report.result.lower)}, {upper_text(report.result.upper)}]"
    return "" if report.progress is None else progress_text(report.progress)


def progress_text(progress: ProgressRecord) -> str:
    """A bracket under way."""
    bracket = f"[{lower_text(progress.lower)}, {upper_text(progress.upper)}]"
    return f"{bracket}, {progress.done}/{progress.tasks} tasks"

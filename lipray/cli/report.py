"""``lipray report``: a run or a sweep as one page with plots, and its tables beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from lipray.report.write import Format

KNOWN = ("html", "csv", "parquet")


def _formats(_context: click.Context, option: click.Parameter, text: str | None) -> list[str] | None:
    """The formats of a list such as ``html,csv``."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not set(words) <= set(KNOWN):
        raise click.BadParameter(f"{text!r} is no list of {', '.join(KNOWN)}", param=option)
    return words


@click.command("report")
@click.argument("place", metavar="RUN_OR_SWEEP")
@click.option("--out", metavar="FILE.html", help="The page; tables go beside it. Default: report.html in the folder.")
@click.option(
    "--format", "formats", metavar="NAME,…", callback=_formats, help="Of html, csv and parquet (default: all)."
)
@click.option("--points", is_flag=True, help="Of a sweep, write the reports of its points too, and link them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: what was written.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def report_command(place: str, *, as_json: bool, debug: bool, formats: list[str] | None, **flags: Any) -> None:
    """Write the report of a run or a sweep, given by its folder or URL: one self-contained HTML file with plots.

    A table of the sub-problems, or of the sweep's points, lies beside it as CSV and Parquet. A run under way, or one
    that was stopped or failed, has a report of what there is. Paths are printed, the page's first.
    """
    del debug  # read by the group
    from lipray.report.write import write_report

    written = write_report(place, formats=cast("list[Format] | None", formats), **flags)
    if written.lacking:
        click.echo(f"note: {written.lacking}", err=True)
    if as_json:
        click.echo(written.model_dump_json())
        return
    for path in ([written.report] if written.report else []) + list(written.tables):
        click.echo(path)
    if not written.tables and formats != ["html"]:
        click.echo("note: there is no table yet, because no sub-problem has a result", err=True)

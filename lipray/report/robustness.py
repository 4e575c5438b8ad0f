"""Certified radii as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lipray.report.numbers import lower_text, seconds_text, upper_text


@dataclass(frozen=True, slots=True)
class Line:
    """Accuracies at a radius, as shares; ``empirical`` is ``None`` without an attack."""

    radius: str
    verified: float
    empirical: float | None


def robustness_table(
    *,
    model: str,
    data: str,
    examples: int,
    clean: float,
    lines: Sequence[Line],
    median: float,
    bracket: tuple[float | None, float],
    pairs: str,
    attack: str | None,
    seconds: float,
    notes: Sequence[str] = (),
    folder: str | None = None,
) -> RenderableType:
    """Clean accuracy, accuracies at radii, and what the radii rest on.

    Args:
        model: its name.
        data: where the examples are from.
        examples: their number.
        clean: share that is correct.
        lines: one per radius.
        median: of the certified radii of what is correct, 0 where nothing is.
        bracket: of the network's constant; ``None`` is infinity.
        pairs: what is known of the pairs' constants, in words.
        attack: what was tried, in words.
        seconds: that it took.
        notes: remarks.
        folder: where the files are.
    """
    facts = Table(title=Text(f"Certified radii (l2) of {model}"), title_justify="left", show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("data", Text(f"{data}, {examples:,} examples"))
    facts.add_row("clean accuracy", share_text(clean))
    facts.add_row("median radius", f"{lower_text(median, 4)}  (certified, of what is correct)")
    upper, lower = bracket
    attained = f"; at least {lower_text(lower)}" if lower > 0.0 else ""
    facts.add_row("constant", f"{upper_text(upper)}  (certified{attained})")
    facts.add_row("pairs of classes", pairs)
    facts.add_row("attack", attack or "none")
    facts.add_row("time", seconds_text(seconds))
    parts: list[RenderableType] = [facts]
    if lines:
        parts.append(_accuracies(clean, lines))
    parts.extend(Text(f"note: {note}") for note in notes)
    if folder is not None:
        parts.append(Text(f"Folder: {folder}", overflow="fold"))
    return Group(*parts)


def share_text(share: float) -> str:
    """A share in per cent."""
    return f"{100.0 * share:.2f} %"


def _accuracies(clean: float, lines: Sequence[Line]) -> RenderableType:
    table = Table(title="Accuracy", title_justify="left")
    table.add_column("l2 radius", no_wrap=True)
    names = ["clean", "verified-robust"]
    attacked = any(line.empirical is not None for line in lines)
    for name in (*names, "under attack") if attacked else names:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        row = [line.radius, share_text(clean), share_text(line.verified)]
        table.add_row(*row, *([] if line.empirical is None else [share_text(line.empirical)]))
    return table

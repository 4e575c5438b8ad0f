"""A record of certified radii as the table that the command prints."""

from __future__ import annotations

from rich.console import RenderableType

from lipray.report.numbers import lower_text, upper_text
from lipray.report.robustness import Line, robustness_table
from lipray.robust.record import AttackRecord, ConstantsRecord, RobustnessRecord

_NAMES = {
    "head": "by the head's rows",
    "shape matrix": "by the shape matrix",
    "pair": "by an estimate each",
    "whole": "by √2 times the whole",
}


def record_table(record: RobustnessRecord, folder: str | None = None, lacking: str = "") -> RenderableType:
    """The table; ``lacking`` is a remark of what could not be written."""
    notes = [*record.model.notes, f"Certified is {record.certified}."]
    if not record.constants.complete:
        notes.append("Product bounds stand in the constants' estimates for what failed; they are valid.")
    if lacking:
        notes.append(lacking)
    return robustness_table(
        model=record.model.name,
        data=record.data,
        examples=record.examples,
        clean=record.clean,
        lines=[Line(row.radius, row.verified, row.empirical) for row in record.at],
        median=_median(record),
        bracket=(record.constants.upper, record.constants.lower),
        pairs=_pairs(record.constants),
        attack=None if record.attack is None else _attack(record.attack),
        seconds=record.seconds,
        notes=notes,
        folder=folder,
    )


def _median(record: RobustnessRecord) -> float:
    """Of the radii of what is correct: 0 where nothing is, infinity where the record has null."""
    if not record.radius:
        return 0.0
    median = record.radius["median"]
    return float("inf") if median is None else median


def _pairs(constants: ConstantsRecord) -> str:
    shares = [f"{share:.0%} {_NAMES[name]}" for name, share in constants.sources.items() if share > 0.0]
    least = "∞" if constants.least is None else lower_text(constants.least)
    return f"{least} to {upper_text(constants.largest)}: {', '.join(shares)}"


def _attack(attack: AttackRecord) -> str:
    box = "" if attack.box is None else f", inputs in [{attack.box[0]:g}, {attack.box[1]:g}]"
    tried = f"{attack.restarts} restarts of {attack.steps} steps{box}"
    return f"{tried}: no certified radius broken; another class found for {attack.found:.1%}"

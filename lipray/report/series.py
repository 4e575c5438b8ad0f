"""A sweep as lines: one option along an axis, a line for every choice of the others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lipray.run.record.records import Swept
from lipray.run.record.sweep_records import SweepRow

ACROSS = "partition_factor"
"""The option along the axis, where it was swept."""
_BARE = frozenset({"method", "composition"})
"""Options whose values speak for themselves."""


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one choice of the other options, in the order of the axis; ``None`` where it has none.

    ``colour`` and ``mark`` count the values of the first of the other options, and the choices of the rest.
    """

    label: str
    rows: tuple[SweepRow | None, ...]
    colour: int
    mark: int


@dataclass(frozen=True, slots=True)
class Lines:
    """All lines of a sweep, what stands along their axis, and the choices that have a colour each."""

    option: str
    values: tuple[Swept, ...]
    lines: tuple[Line, ...]
    colours: tuple[str, ...]


@dataclass(slots=True)
class _Choice:
    """Choices of the other options that give the very same points."""

    rows: tuple[SweepRow | None, ...]
    picks: list[tuple[Swept, ...]] = field(default_factory=list)


def lines_of(axes: Mapping[str, tuple[Swept, ...]], rows: Sequence[SweepRow]) -> Lines | None:
    """The lines of a sweep; ``None`` where no option takes two values.

    Choices whose points are the same, because their work is, share a line.

    Args:
        axes: the values of each option.
        rows: the points.
    """
    several = [name for name, values in axes.items() if len(values) > 1]
    if not several:
        return None
    across = ACROSS if ACROSS in several else several[-1]
    others = [name for name in several if name != across]
    found = {tuple(row.swept[name] for name in (*others, across)): row for row in rows}
    values = _in_order(axes[across])
    choices: dict[object, _Choice] = {}
    for pick in itertools.product(*(axes[name] for name in others)):
        points = tuple(found.get((*pick, value)) for value in values)
        figures = tuple(None if row is None or row.upper is None else (row.upper, row.core_seconds) for row in points)
        # Lines without a single point are told apart: their options say what has none.
        key: object = (*pick[:1], figures) if any(figures) else pick
        choices.setdefault(key, _Choice(points)).picks.append(pick)
    firsts = list(axes[others[0]]) if others else []
    rests: dict[object, int] = {}
    lines = []
    for choice in choices.values():
        pick = choice.picks[0]
        lines.append(
            Line(
                _label(others, choice.picks),
                choice.rows,
                firsts.index(pick[0]) if pick else 0,
                rests.setdefault(pick[1:], len(rests)),
            )
        )
    colours = tuple(name_of(others[0], value) for value in firsts) if others else ("all points",)
    return Lines(across, values, tuple(lines), colours)


def name_of(option: str, value: Swept) -> str:
    """A value of an option, with the option's name where it says nothing without."""
    words = {"block_depth": "depth", "partition_factor": "factor"}.get(option, option.replace("_", " "))
    return str(value) if option in _BARE else f"{words} {value}"


def pareto_front(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """Those that no other beats in both bound and core-seconds, by core-seconds; of equal ones the first."""
    known = [row for row in rows if row.upper is not None]
    front: list[SweepRow] = []
    for row in sorted(known, key=lambda row: (row.core_seconds, row.upper or 0.0, row.point)):
        last = front[-1].upper if front else None
        if last is None or (row.upper is not None and row.upper < last):
            front.append(row)
    return tuple(front)


def _label(options: Sequence[str], picks: Sequence[tuple[Swept, ...]]) -> str:
    parts = []
    for index, option in enumerate(options):
        values = list(dict.fromkeys(pick[index] for pick in picks))
        parts.append(" = ".join([name_of(option, values[0]), *(str(value) for value in values[1:])]))
    return ", ".join(parts) or "all points"


def _in_order(values: Sequence[Swept]) -> tuple[Swept, ...]:
    """Numbers by size, then words."""
    numbers = sorted(value for value in values if not isinstance(value, str))
    return (*numbers, *(value for value in values if isinstance(value, str)))

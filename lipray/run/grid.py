"""The points of a sweep: every combination of the values that options are to take."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from lipray.config import EstimateConfig, make_config
from lipray.errors import LiprayError, UsageError
from lipray.run.resume import ELSEWHERE

FLAGS = ("method", "block_depth", "partition_factor")
"""Options that have a flag of their own, from the one that changes slowest."""
FIXED = ELSEWHERE | {"budget", "device"}
"""Options that all points have in common."""
WORDS = {"block_depth": "all", "partition_factor": "auto"}
"""What an option's default is called, beside ``default``."""
MOST = 1000
"""Points of one sweep."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An option and the values it takes, with their names: numbers as they are, everything else as text."""

    option: str
    values: tuple[Any, ...]
    names: tuple[int | float | str, ...]


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One point: its place in the order, its values by option, and its configuration or what is wrong with it."""

    name: str
    swept: Mapping[str, int | float | str]
    config: EstimateConfig | None
    refusal: LiprayError | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A sweep as it was asked for."""

    axes: tuple[Axis, ...]
    points: tuple[GridPoint, ...]


def parse_axes(flags: Mapping[str, str | None], sets: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of a sweep from the text of its flags.

    Args:
        flags: values by option, for those of ``FLAGS``; ``None`` where a flag was not given.
        sets: of the form ``option=value,value``; ``;`` separates values that have commas themselves.

    Raises:
        UsageError: an option is not known, is given twice, cannot be swept, or takes no such value.
    """
    asked = {name: (f"--{name.replace('_', '-')}", text) for name in FLAGS if (text := flags.get(name)) is not None}
    for item in sets:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not text.strip():
            raise UsageError(f"--set {item}", "gives no values", hint="Write it like --set iterations=0,50.")
        if name not in EstimateConfig.model_fields:
            close = difflib.get_close_matches(name, EstimateConfig.model_fields, 1)
            known = ", ".join(sorted(set(EstimateConfig.model_fields) - FIXED))
            hint = f"Did you mean {close[0]}?" if close else f"Known options: {known}."
            raise UsageError(f"--set {item}", f"{name!r} is not an option of lipray", hint=hint)
        if name in FIXED:
            raise UsageError(f"--set {item}", f"{name} is one for the whole sweep", hint=f"Give --{name} once.")
        if name in asked:
            raise UsageError(f"--set {item}", f"the values of {name} are given by {asked[name][0]} already")
        asked[name] = (f"--set {name}", text)
    return tuple(_axis(name, flag, text) for name, (flag, text) in asked.items())


def make_grid(axes: Sequence[Axis], flags: Mapping[str, Any], file: Path | None = None) -> Grid:
    """All combinations of the axes' values, the last axis fastest.

    Args:
        axes: what differs between the points.
        flags: what they have in common, over the YAML ``file``.
        file: of further options.

    Raises:
        UsageError: an option is wrong whatever the point, or there are too many points.
        ConfigError: the file is wrong.
    """
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        raise UsageError("sweep", f"would have {count} points, and {MOST} are the most", hint="Sweep fewer values.")
    points: list[GridPoint] = []
    for number, chosen in enumerate(itertools.product(*(range(len(axis.values)) for axis in axes)), start=1):
        values = {axis.option: axis.values[index] for axis, index in zip(axes, chosen, strict=True)}
        swept = {axis.option: axis.names[index] for axis, index in zip(axes, chosen, strict=True)}
        name = f"{number:03d}"
        try:
            points.append(GridPoint(name, swept, make_config({**flags, **values}, file)))
        except UsageError as fault:
            if fault.args[0] != "options":  # a value that is wrong by itself, not by what else is chosen
                raise
            points.append(GridPoint(name, swept, None, fault))
    if all(point.config is None for point in points) and points[0].refusal is not None:
        raise points[0].refusal
    return Grid(tuple(axes), tuple(points))


def _axis(name: str, flag: str, text: str) -> Axis:
    field = EstimateConfig.model_fields[name]
    check: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # a type by its value
    words = [word.strip() for word in text.split(";" if ";" in text else ",") if word.strip()]
    if not words:
        raise UsageError(flag, "gives no values", hint="Write them like 1,2,4.")
    found: dict[int | float | str, Any] = {}
    for word in words:
        if word in ("default", WORDS.get(name)):
            found[WORDS.get(name, "default")] = field.get_default(call_default_factory=True)
            continue
        try:
            value = check.validate_python(word)
        except ValidationError as fault:
            why = fault.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise UsageError(flag, f"{word!r}: {why[:1].lower()}{why[1:]}") from None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        found[value if number else word] = value
    return Axis(name, tuple(found.values()), tuple(found))

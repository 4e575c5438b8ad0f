"""What an estimate is asked to do: one frozen, validated value, from a YAML file, flags, or keywords.

Flags win over the file, the file over the defaults. This module imports nothing heavy, because the
command line reads it before it knows whether there is work to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from lipray.errors import ConfigError, LiprayError, UsageError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"({_NUMBER})|(?:({_NUMBER})d)?(?:({_NUMBER})h)?(?:({_NUMBER})m(?:in)?)?(?:({_NUMBER})s)?")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: object) -> object:
    """Bytes from a number or a string with a unit, such as ``"8GiB"`` or ``"500MB"``.

    Raises:
        ValueError: the text is no size, or the unit is unknown.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{value!r} is not a size; write it like 8GiB, 500MB or 1073741824")
    return int(float(match[1]) * unit)


def parse_duration(value: object) -> object:
    """Seconds from a number or text with units, such as ``"10m"``, ``"8h"``, ``"1h30m"`` or ``"90s"``.

    Raises:
        ValueError: the text is no duration.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration; write it like 90s, 10m, 8h or 1h30m")  # noqa: TRY004 - pydantic's way
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"{value!r} is not a duration; write it like 90s, 10m, 8h or 1h30m")
    plain, *parts = match.groups()
    if plain is not None:
        return float(plain)
    return sum(float(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=True) if part)


def parse_name(value: object) -> object:
    """A node's name; a bare number in a YAML file is one too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def parse_integers(value: object) -> object:
    """Integers from text such as ``"3,32,32"``; anything but text passes through.

    Raises:
        ValueError: an entry is not an integer.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in re.split(r"[,x]", value.removesuffix(",")))
    except ValueError:
        raise ValueError(f"{value!r} is not a list of integers; write it like 3,32,32") from None


def parse_pairs(value: object) -> object:
    """Pairs of output rows: one pair ``(3, 5)`` or ``"3,5"``, or several of either.

    Raises:
        ValueError: an entry is not a pair of integers.
    """
    if value is None:
        return value
    if isinstance(value, str):
        value = [part for part in value.split(";") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is not a pair of output rows; write it like 3,5")  # noqa: TRY004 - pydantic's way
    if len(value) == 2 and all(isinstance(part, int) for part in value):
        value = [value]
    return tuple(parse_integers(part) for part in value)


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
NodeName = Annotated[str, BeforeValidator(parse_name), Field(min_length=1)]
Shape = Annotated[tuple[PositiveInt, ...], BeforeValidator(parse_integers), Field(min_length=1, max_length=3)]
Rows = Annotated[tuple[int, ...], BeforeValidator(parse_integers), Field(min_length=1)]
Pairs = Annotated[tuple[tuple[int, int], ...], BeforeValidator(parse_pairs), Field(min_length=1)]


_OFF_TORI = ("ellipsoid", "sdp", "product")


class EstimateConfig(BaseModel):
    """All options of an estimate, with their defaults; unknown keys are errors.

    ``memory`` is in bytes and takes units; ``budget`` is wall-clock seconds of the whole estimate and ``time_limit``
    seconds per sub-problem, both with units. ``threads`` is the number of threads of one sub-problem:
    ``None`` means one on Ray and all cores in the serial executor. ``elastic``: nodes may join the cluster later;
    ``stuck_after``: seconds without a word after which a task on Ray is done anew, ``None`` by a rule. ``switch`` is
    the node after which the torus is left, or "none"; ``chain`` keeps blocks on tori together, ``None`` does so unless
    ``block_depth`` is given. ``partition_factor`` ``None`` lets the planner search, ``lower_starts`` ``None`` chooses
    from the cost of one evaluation, 0 leaves the lower bound out. ``store`` is a path or fsspec URL where solved
    sub-problems are kept, and runs by their ``run_id``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input_shape: Shape | None = None
    weights: Path | None = None
    method: Literal["auto", "ellipsoid", "frequency", "hybrid", "sdp", "product"] = "auto"
    partition_factor: int | None = Field(default=None, ge=1)
    block_depth: int | None = Field(default=None, ge=1)
    chain: bool | None = None
    switch: NodeName | None = None
    iterations: int | None = Field(default=None, ge=0)
    tolerance: float = Field(default=1e-6, gt=0, lt=1)
    budget: Duration | None = None
    time_limit: Duration | None = None
    memory: Size = 8 * 2**30
    output_rows: Rows | None = None
    pairs: Pairs | None = None
    composition: Literal["metric", "diagonal", "overlap", "sum"] = "metric"
    device: Literal["cpu", "cuda"] = "cpu"
    executor: Literal["ray", "serial"] = "ray"
    address: str | None = None
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    elastic: bool = False
    stuck_after: Duration | None = None
    lower_starts: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    data: Path | None = None
    out: Path | None = None
    store: Annotated[str, Field(min_length=1)] | None = None
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] | None = None

    @model_validator(mode="after")
    def _rows_or_pairs(self) -> EstimateConfig:
        if self.output_rows is not None and self.pairs is not None:
            raise ValueError("output_rows and pairs exclude each other: choose one")
        if self.address is not None and self.executor == "serial":
            raise ValueError("an address needs the executor ray")
        if self.run_id is not None and self.out is not None:
            raise ValueError("run_id names a folder of the store, and out another one: choose one")
        return self

    @model_validator(mode="after")
    def _on_tori(self) -> EstimateConfig:
        if self.method in _OFF_TORI:
            for name, given in (("switch", self.switch is not None), ("device cuda", self.device == "cuda")):
                if given:
                    raise ValueError(f"{name} needs a method on tori (auto, frequency, hybrid), not {self.method}")
            if self.chain:
                raise ValueError(f"chain needs a method on tori (auto, frequency, hybrid), not {self.method}")
        if self.method == "frequency" and self.switch not in (None, "none"):
            raise ValueError("the method frequency stays on the torus: a switch needs the method hybrid")
        if self.chain is False and self.block_depth is None:
            raise ValueError("no chain means blocks of their own: give their block_depth too")
        return self


def read_mapping(path: Path, example: str) -> dict[str, Any]:
    """Keys and values of a YAML file, not checked any further; none of an empty one.

    Args:
        path: of the file.
        example: a line that such a file may hold, for who has written something else.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds anything but keys and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(str(path), f"cannot be read ({_reason(fault)})", hint="Check the path.") from None
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(str(path), f"is not valid YAML{place}", hint=f"For example: {example}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(str(path), "must hold key: value lines", hint=f"For example: {example}")
    return values


def read_config(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file, checked against ``EstimateConfig``.

    Relative paths among the values are relative to the folder of the file.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or a wrong value.
    """
    values = read_mapping(path, "method: hybrid")
    for key in ("weights", "data", "out"):
        if isinstance(values.get(key), str):
            values[key] = path.parent / values[key]
    if isinstance(values.get("store"), str) and "://" not in values["store"]:
        values["store"] = str(path.parent / values["store"])
    _validate(values, lambda key, why: ConfigError(str(path), f"{key}: {why}" if key else why, hint=_known_keys()))
    return values


def make_config(flags: Mapping[str, Any], file: Path | None = None, *, keywords: bool = False) -> EstimateConfig:
    """The configuration of a run: ``flags`` (only those given) over the YAML ``file`` over the defaults.

    Errors name ``--partition-factor``, or with ``keywords`` the Python argument ``partition_factor``.

    Raises:
        ConfigError: the file is wrong.
        UsageError: a flag is wrong, or unknown.
    """
    values = read_config(file) if file is not None else {}
    given = dict(flags)
    if given.get("output_rows") is not None:
        values.pop("pairs", None)
    if given.get("pairs") is not None:
        values.pop("output_rows", None)
    return _validate(values | given, lambda key, why: UsageError(_name(key, keywords), why))


def _validate(values: Mapping[str, Any], error: Any) -> EstimateConfig:
    try:
        return EstimateConfig.model_validate(dict(values))
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raised: LiprayError = error(key, "is not an option of lipray")
        else:
            why = first["msg"].removeprefix("Value error, ")
            shown = f" (got {first['input']!r})" if key and "got" not in why and repr(first["input"]) not in why else ""
            raised = error(key, why[:1].lower() + why[1:] + shown)
        raise raised from None


def _name(key: str, keywords: bool) -> str:
    if not key:
        return "options"
    return key if keywords else "--" + key.replace("_", "-")


def _known_keys() -> str:
    return "Known keys: " + ", ".join(EstimateConfig.model_fields) + "."


def _reason(fault: Exception) -> str:
    return (fault.strerror or type(fault).__name__) if isinstance(fault, OSError) else "not UTF-8 text"

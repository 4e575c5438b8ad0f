"""What a training run is asked to do: one frozen, validated value from a YAML file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from lipray.config import read_mapping
from lipray.data.read import ARCHIVES
from lipray.errors import ConfigError

LossName = Literal["emma", "gloro", "trades", "margin", "cross-entropy"]
BoundName = Literal["product", "liplt", "closed-form", "optimised"]
Policy = Literal["none", "shift", "crop-flip", "crop-flip-rand"]


def parse_fraction(value: object) -> object:
    """A number, or text such as ``"36/255"``.

    Raises:
        ValueError: the text is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.strip()))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is neither a number nor a fraction; write it like 0.5 or 36/255") from None


Radius = Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ramp(_Part):
    """The training radius: from ``begin`` to ``end`` times ``radius`` in the first ``share`` of the steps."""

    begin: Rate = 0.1
    end: Rate = 1.5
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


class Generated(_Part):
    """Generated examples that are mixed with the real ones.

    ``data`` is a spec as ``TrainConfig.data`` is; ``ratio`` real to generated per batch; ``confidence``: only samples
    whose label a classifier gave at least this probability (needs an array ``confidence`` in the file).
    """

    data: str
    ratio: tuple[PositiveInt, PositiveInt] = (1, 3)
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.0


class TrainConfig(_Part):
    """All options of a training run, with their defaults; unknown keys are errors.

    ``model``: a built-in architecture, ``module:factory`` or ``file.py:factory``; ``liresnet`` and ``liresnet-digits``
    are trained in the form of ``lipray.train.liresnet``, their sizes from ``sizes``. ``data`` and ``test`` are specs
    of ``lipray.data.read`` (``test`` ``None``: the test split of ``data``). ``radius`` is in the units of the data,
    ``radii`` those that progress is reported at. ``bound`` gives the constants of the loss; with the loss
    cross-entropy it serves ``penalty``, the weight of log max K_ij in the loss, and ``limit``, the largest K_ij that
    weights are scaled back to after every step. ``lookahead``: steps between averages
    with slow weights, 0 without. ``device``: ``"auto"`` takes a GPU where there is one. ``threads`` of one worker.
    """

    model: str = "liresnet-digits"
    sizes: dict[str, PositiveInt] = Field(default_factory=dict)
    data: str = "digits"
    test: str | None = None
    generated: Generated | None = None
    augment: Policy = "none"
    loss: LossName = "emma"
    radius: Radius = 0.5
    ramp: Ramp = Ramp()
    bound: BoundName = "product"
    bound_steps: PositiveInt = 1
    bound_iterations: PositiveInt = 60
    penalty: Amount = 0.0
    limit: Rate | None = None
    epochs: PositiveInt = 60
    batch: PositiveInt = 50
    optimiser: Literal["nadam", "adamw", "sgd"] = "nadam"
    learning_rate: Rate = 5e-3
    warm_up: Amount = 5.0
    weight_decay: Amount = 0.0
    clip: Rate = 3.0
    lookahead: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    radii: tuple[Radius, ...] = (0.1, 0.25, 0.5)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: PositiveInt = 1
    threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.batch % self.workers:
            raise ValueError(f"batch: {self.batch} examples cannot be shared out evenly among {self.workers} workers")
        if self.sizes and not self.model.startswith("liresnet"):
            raise ValueError("sizes: only the liresnet architectures take sizes")
        return self


NOT_COMPARED = ("workers", "threads", "device")
"""Options that a resumed run may change: they do not change what is computed, but for rounding."""


def read_train_config(path: Path) -> TrainConfig:
    """The configuration in a YAML file; files named in it are relative to its folder, and absolute in what is returned.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown key or a wrong value.
    """
    return make_train_config(_relative(read_mapping(path, "loss: emma"), path.absolute().parent), str(path))


def make_train_config(values: dict[str, Any], source: str) -> TrainConfig:
    """The configuration of these values.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names it.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as fault:
        first = fault.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            why = f"is no option; there are {', '.join(sorted(TrainConfig.model_fields))}"
        raise ConfigError(source, f"{key}: {why}" if key else why, hint="See docs/training.md.") from None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two dumped configurations, of what may not; files may lie in other folders."""
    keys = sorted({*old, *new} - set(NOT_COMPARED))
    pairs = [(key, old.get(key), new.get(key)) for key in keys]
    return [f"{key}: {then} then, {now} now" for key, then, now in pairs if _bare(key, then) != _bare(key, now)]


def _bare(key: str, value: Any) -> Any:
    """The value of an option, of a path its last part alone."""
    if key == "generated" and isinstance(value, dict):
        return {**value, "data": _bare("data", value.get("data"))}
    if key not in {"data", "test", "model"} or not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    return kind + colon + Path(rest).name if colon and kind in ARCHIVES else Path(value).name


def _relative(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Specs that name files, made relative to the folder of the configuration."""
    changed = dict(values)
    for key in ("data", "test"):
        if isinstance(changed.get(key), str):
            changed[key] = _beside(changed[key], folder)
    inner = changed.get("generated")
    if isinstance(inner, dict) and isinstance(inner.get("data"), str):
        changed["generated"] = {**inner, "data": _beside(inner["data"], folder)}
    model = changed.get("model")
    if isinstance(model, str) and ".py:" in model:
        changed["model"] = _beside(model, folder)
    return changed


def _beside(spec: str, folder: Path) -> str:
    kind, colon, rest = spec.partition(":")
    if colon and kind in ARCHIVES:
        return f"{kind}:{_joined(rest, folder)}"
    return spec if spec == "digits" else _joined(spec, folder)


def _joined(path: str, folder: Path) -> str:
    return path if "://" in path or Path(path).is_absolute() else str(folder / path)

"""What ``lipray certify`` found, as a plain record: ``robustness.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from lipray.data.labelled import Labelled
from lipray.robust.certify import Robustness
from lipray.robust.radius import radius_text
from lipray.run.record.records import Figure, ModelRecord, Record
from lipray.run.summary import describe_model

CERTIFIED = (
    "the real-valued function of the stored weights (and normalisation), at the stored float32 inputs: "
    "rounding where the network is run elsewhere is not included"
)


class AccuracyRecord(Record):
    """Shares of the data at a radius: as written, as a number, clean, certified, and not broken by the attack."""

    radius: str
    value: float
    clean: float
    verified: float
    empirical: float | None


class AttackRecord(Record):
    """What was tried: ``broken`` inputs are within their certified radius, which is an error, and so always 0.

    ``found`` is the share of inputs for which another class was found anywhere.
    """

    restarts: int
    steps: int
    seed: int
    box: tuple[float, float] | None
    device: str
    found: float
    broken: Literal[0] = 0


class ConstantsRecord(Record):
    """Certified constants: of the network, of what comes before its last dense layer, and of pairs of classes.

    ``sources`` says what share of the pairs each bound gives. ``complete`` unless product bounds stand in.
    """

    upper: Figure
    lower: float
    before: Figure
    least: Figure
    largest: Figure
    sources: dict[str, float]
    method: str
    complete: bool


class RobustnessRecord(Record):
    """Certified radii of labelled data in numbers. The model is what was certified: normalised, without softmax.

    ``radius`` maps quantiles of the certified radii of correct inputs, ``least``, ``median``, ``mean`` and
    ``largest``, to their values, ``null`` where infinite; it is empty where nothing is correct.
    """

    schema_version: Literal[1] = 1
    model: ModelRecord
    certified: str = CERTIFIED
    data: str
    examples: int
    classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    clean: float
    at: tuple[AccuracyRecord, ...]
    radius: dict[str, Figure]
    constants: ConstantsRecord
    attack: AttackRecord | None
    options: dict[str, object]
    seconds: float


def robustness_record(
    result: Robustness,
    data: Labelled,
    name: str,
    *,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    options: Mapping[str, object],
    notes: tuple[str, ...] = (),
    file_hash: str | None = None,
) -> RobustnessRecord:
    """The record of a result.

    Args:
        result: what was found.
        data: on which examples.
        name: of the model.
        mean: of the normalisation put in front.
        std: of the same.
        options: of the estimates.
        notes: of the importer; those of the result are added.
        file_hash: SHA-256 of the file of the weights.
    """
    return RobustnessRecord(
        model=describe_model(result.network, name, (*notes, *result.notes), file_hash),
        data=data.source,
        examples=len(data),
        classes=data.classes,
        mean=mean,
        std=std,
        clean=result.clean,
        at=tuple(
            AccuracyRecord(
                radius=radius_text(row.radius),
                value=float(row.radius),
                clean=row.clean,
                verified=row.verified,
                empirical=row.empirical,
            )
            for row in result.at
        ),
        radius=_radii(result.radii[result.correct]),
        constants=_constants(result),
        attack=_attack(result),
        options=dict(options),
        seconds=result.seconds,
    )


def _radii(radii: np.ndarray) -> dict[str, Figure]:
    if not len(radii):
        return {}
    middle = np.sort(radii)[(len(radii) - 1) // 2]  # of two in the middle the lesser, which is a radius
    found = {"least": radii.min(), "median": middle, "mean": radii.mean(), "largest": radii.max()}
    return {name: float(value) for name, value in found.items()}


def _constants(result: Robustness) -> ConstantsRecord:
    constants = result.constants
    pairs = constants.pairwise[np.triu_indices(len(constants.pairwise), 1)]
    return ConstantsRecord(
        upper=constants.upper,
        lower=constants.lower,
        before=constants.before,
        least=float(pairs.min()),
        largest=float(pairs.max()),
        sources=constants.shares,
        method=constants.method,
        complete=constants.complete,
    )


def _attack(result: Robustness) -> AttackRecord | None:
    tried = result.options
    if tried is None or result.empirical is None:
        return None
    return AttackRecord(
        restarts=tried.restarts,
        steps=tried.steps,
        seed=tried.seed,
        box=tried.box,
        device=tried.device,
        found=float(np.isfinite(result.empirical).mean()),
    )

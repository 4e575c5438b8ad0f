"""A classifier certified on labelled data: constants, radii, and an attack that tries to break every one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch

from lipray.config import EstimateConfig
from lipray.data.labelled import Labelled
from lipray.errors import BrokenSampleError, DataError, UsageError
from lipray.model.evaluate import prepare
from lipray.model.network import Network
from lipray.robust.attack import AttackOptions, Found, attack
from lipray.robust.classifier import as_classifier
from lipray.robust.constants import Constants, margin_constants
from lipray.robust.radii import Radii, batch_size, certified_radii, logits, sharp_enough
from lipray.robust.rounding import at_least, at_most
from lipray.run.events import Listener, ignore
from lipray.run.executor import Executor

Told = Callable[[int, int], None]
"""Called with how many inputs are done, and of how many."""


@dataclass(frozen=True, slots=True)
class AtRadius:
    """Shares of the data: correct at all (clean), correct and certified to a radius, correct and not broken within it.

    ``empirical`` is ``None`` where nothing was attacked. The robust accuracy lies between the last two.
    """

    radius: Fraction
    clean: float
    verified: float
    empirical: float | None


@dataclass(frozen=True, slots=True)
class Broken:
    """What a certificate excludes: input ``index``, moved by ``distance`` <= ``radius`` at most, is of another class.

    ``prediction`` is the class that was certified, ``other`` that of ``point``.
    """

    index: int
    x: np.ndarray = field(repr=False)
    point: np.ndarray = field(repr=False)
    radius: float
    distance: float
    prediction: int
    other: int


@dataclass(frozen=True, slots=True)
class Robustness:
    """What is certified of N inputs, one entry each, and the accuracies at the radii asked for.

    ``radii`` hold for ``predictions``, right or wrong: the class is that one at every point of the closed l2 ball.
    ``empirical`` is the distance of the nearest input of another class that the attack found, rounded up, infinity
    where it found none; ``others`` is that class, or -1; both are ``None`` without an attack.
    """

    labels: np.ndarray
    predictions: np.ndarray
    rivals: np.ndarray
    margins: np.ndarray
    radii: np.ndarray
    empirical: np.ndarray | None
    others: np.ndarray | None
    constants: Constants
    at: tuple[AtRadius, ...]
    network: Network = field(repr=False)
    options: AttackOptions | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is the label."""
        right: np.ndarray = self.predictions == self.labels
        return right

    @property
    def clean(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.mean())

    def verified(self, radius: Fraction) -> float:
        """Share that is correct, and certified to a radius."""
        return float((self.correct & (self.radii >= at_least(radius))).mean())

    def unbroken(self, radius: Fraction) -> float | None:
        """Share that is correct, and that the attack did not break within a radius; ``None`` without an attack."""
        if self.empirical is None:
            return None
        return float((self.correct & (self.empirical > at_most(radius))).mean())


def certify_network(
    network: Network,
    data: Labelled,
    config: EstimateConfig,
    *,
    name: str = "network",
    radii: Sequence[Fraction] = (),
    attacked: AttackOptions | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    each_pair: bool = False,
    notify: Listener = ignore,
    told: Told | None = None,
    evidence: Callable[[Broken, Constants], None] | None = None,
    executor: Executor | None = None,
) -> Robustness:
    """Certify the classes that a network gives labelled inputs.

    Args:
        network: as it was imported; a last softmax is left out.
        data: inputs in the units of the radii, with their classes.
        config: of the estimates, see ``margin_constants``.
        name: of the model, for messages.
        radii: to report accuracies at.
        attacked: how to attack; ``None`` does not.
        mean: of a normalisation (x - mean) / std that the network expects of its input.
        std: of the same.
        each_pair: estimate every pair of classes on its own: the tightest constants, and K (K - 1) / 2 estimates.
        notify: called with the events of the estimates.
        told: called after every batch of inputs.
        evidence: given a broken sample before the error is raised.
        executor: where the estimates run.

    Raises:
        ModelError: the network is no classifier.
        DataError: the data do not fit it.
        UsageError: an option does not fit.
        BrokenSampleError: the attack found another class within a certified radius: a defect of lipray.
        LiprayError: as ``estimate_network``.
    """
    began = time.monotonic()
    classifier, notes = as_classifier(network, name, mean, std)
    check_data(data, classifier)
    if attacked is not None:
        _check_attack(attacked, data)
    constants = margin_constants(classifier, name, config, each_pair=each_pair, notify=notify, executor=executor)
    weights = prepare(classifier)
    step = batch_size(classifier)
    nodes = sharp_enough(classifier, weights, torch.from_numpy(data.x[:step].astype(np.float64)))
    parts: list[Radii] = []
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, len(data), step):
        x = data.x[first : first + step].astype(np.float64)
        part = certified_radii(*logits(classifier, weights, torch.from_numpy(x), nodes), constants.pairwise)
        parts.append(part)
        if attacked is not None:
            near = attack(classifier, weights, x, part.predictions, part.order, attacked, first=first, constants=nodes)
            broken = broken_sample(x, part, near, first)
            if broken is not None:
                if evidence is not None:
                    evidence(broken, constants)
                raise _error(broken, data)
            found.append((near.distances, near.classes))
        if told is not None:
            told(min(first + step, len(data)), len(data))
    result = Robustness(
        labels=data.y,
        predictions=np.concatenate([part.predictions for part in parts]),
        rivals=np.concatenate([part.rivals for part in parts]),
        margins=np.concatenate([part.margins for part in parts]),
        radii=np.concatenate([part.radii for part in parts]),
        empirical=np.concatenate([distances for distances, _ in found]) if found else None,
        others=np.concatenate([classes for _, classes in found]) if found else None,
        constants=constants,
        at=(),
        network=classifier,
        options=attacked,
        notes=notes,
        seconds=time.monotonic() - began,
    )
    return _at(result, radii)


def check_data(data: Labelled, network: Network) -> None:
    """Refuse data that are not inputs and classes of the network.

    Raises:
        DataError: says which.
    """
    if data.shape != network.input_shape:
        why = f"its examples have shape {data.shape}, and the network takes {network.input_shape}"
        raise DataError(data.source, why, hint="Give the data that the network was made for, in its shape.")
    outputs = network.output_shape[0]
    if data.classes > outputs:
        why = f"it has {data.classes} classes, and the network has {outputs} outputs"
        raise DataError(data.source, why, hint="Every class needs an output; labels count from 0.")


def broken_sample(x: np.ndarray, radii: Radii, found: Found, first: int = 0) -> Broken | None:
    """The first input of a batch that is of another class within its certified radius; the claim includes the end."""
    broken = np.flatnonzero((found.classes >= 0) & (found.distances <= radii.radii))
    if not len(broken):
        return None
    worst = int(broken[0])
    return Broken(
        index=first + worst,
        x=x[worst],
        point=found.points[worst],
        radius=float(radii.radii[worst]),
        distance=float(found.distances[worst]),
        prediction=int(radii.predictions[worst]),
        other=int(found.classes[worst]),
    )


def _error(broken: Broken, data: Labelled) -> BrokenSampleError:
    why = (
        f"class {broken.prediction} is certified to a radius of {broken.radius:.9g}, and at a distance of "
        f"{broken.distance:.9g} it is class {broken.other}"
    )
    return BrokenSampleError(f"example {broken.index} of {data.source}", why)


def _check_attack(options: AttackOptions, data: Labelled) -> None:
    for name, count in (("--restarts", options.restarts), ("--steps", options.steps)):
        if count < 1:
            raise UsageError(name, f"{count} is not positive", hint="--no-attack leaves the attack out.")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        hint = "Attack on the CPU, or where PyTorch sees a GPU."
        raise UsageError("--attack-device", f"PyTorch finds no CUDA device for {options.device}", hint=hint)
    if options.box is not None:
        low, high = options.box
        if not low < high:
            raise UsageError("--clip", f"{low} is not below {high}", hint="For pixels in [0, 1]: --clip 0,1.")
        if data.x.min() < low or data.x.max() > high:
            why = f"the data lie in [{data.x.min():.6g}, {data.x.max():.6g}], outside [{low:.6g}, {high:.6g}]"
            raise UsageError("--clip", why, hint="Give the interval that all inputs are from, or leave it out.")


def _at(result: Robustness, radii: Sequence[Fraction]) -> Robustness:
    rows = tuple(
        AtRadius(radius, result.clean, result.verified(radius), result.unbroken(radius))
        for radius in dict.fromkeys(radii)
    )
    return replace(result, at=rows)

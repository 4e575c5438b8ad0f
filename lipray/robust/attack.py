"""An attack that looks for the nearest input of another class: what a certified radius must never exceed.

Projected gradient ascent in l2 on f_t - f_j, with a ball that follows what is found (as in the fast minimum-norm attack
of Pintor et al. 2021): while the class holds, the ball reaches to where the linearised margin vanishes; once it is
broken, the ball shrinks below the best perturbation, and grows again when the class comes back. Steps shrink to
nothing. The first restart is from the input and aims at whichever other class comes, the next ones, from the input
too, at those whose certified radii are least; then both again from random points. The best perturbation is shortened
along its direction by bisection.

What comes out is a fact about the exact function: the point is a float64 array, another class is larger there beyond
the rounding of the evaluation, and its distance is rounded up. The search itself may be as wrong as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lipray.model.evaluate import Weights, evaluate
from lipray.model.network import Network
from lipray.robust.radii import logits
from lipray.robust.rounding import distances_up, margins_down

BISECTIONS = 40
STRETCHES = (1.0 + 1e-6, 1.01)
"""How far a perturbation is lengthened where the other class is not clear of rounding."""
STEP = 0.5
"""The first step's length, of the ball's radius."""
SHRINK = 0.1
"""The first change of the ball's radius; it falls to a hundredth of that."""
NEAREST = 4
"""Classes that are targeted in turn, at most."""

Box = tuple[float, float]


@dataclass(frozen=True, slots=True)
class AttackOptions:
    """How hard to try. ``box`` keeps perturbed inputs in an interval; without it all of R^n is searched.

    A certificate holds in R^n, so the box only makes the empirical figure that of valid images. ``device`` is where
    the search runs; what it finds is checked on the CPU.
    """

    restarts: int = 5
    steps: int = 100
    seed: int = 0
    box: Box | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Found:
    """Of N inputs: a point of another class, its distance rounded up (infinity where none was found), that class."""

    points: np.ndarray = field(repr=False)
    distances: np.ndarray
    classes: np.ndarray


def attack(
    network: Network,
    weights: Weights,
    x: np.ndarray,
    predictions: np.ndarray,
    order: np.ndarray,
    options: AttackOptions,
    *,
    first: int = 0,
    constants: Sequence[float] | None = None,
) -> Found:
    """Search a batch for the nearest inputs of other classes.

    Args:
        network: a map to logits.
        weights: what ``prepare(network)`` returned.
        x: inputs (N, *shape), taken as exact.
        predictions: the class of each.
        order: other classes by rising certified radius, (N, K - 1).
        options: restarts, steps, seed and box.
        first: number of the first input among all, for the random starts.
        constants: of the nodes, where the rounding is bounded by them, see ``logits``.
    """
    generator = torch.Generator("cpu").manual_seed(options.seed * 1_000_003 + first)
    moved = {key: value.to(options.device) for key, value in weights.items()}
    centre = torch.from_numpy(np.asarray(x, dtype=np.float64)).to(options.device)
    labels = torch.from_numpy(predictions).to(options.device)
    search = _Search(lambda point: evaluate(network, point, moved), centre, labels, options)
    nearest = min(NEAREST, order.shape[1])
    for restart in range(options.restarts):
        noise = torch.randn(centre.shape, dtype=torch.float64, generator=generator, device="cpu").to(options.device)
        turn = restart % (nearest + 1)
        target = torch.from_numpy(order[:, turn - 1].copy()).to(options.device) if turn else None
        search.run(target, noise if restart > nearest else None)

    def other(points: np.ndarray) -> np.ndarray:
        return other_class(*logits(network, weights, torch.from_numpy(points), constants), predictions)

    return _settled(other, np.asarray(x, dtype=np.float64), search.best.cpu().numpy(), options.box)


class _Search:
    """The best perturbation of every input so far, and runs that look for a better one."""

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        centre: torch.Tensor,
        labels: torch.Tensor,
        options: AttackOptions,
    ) -> None:
        self._function, self._centre, self._labels, self._options = function, centre, labels, options
        self.best = torch.zeros_like(centre)
        self.length = torch.full((len(centre),), math.inf, dtype=torch.float64, device=centre.device)

    def run(self, target: torch.Tensor | None, noise: torch.Tensor | None) -> None:
        """One restart: from the inputs themselves, or from ``noise`` at half the way that is known to suffice."""
        known = torch.isfinite(self.length)
        delta = torch.zeros_like(self._centre)
        if noise is not None:
            unit = _scaled(noise, 1.0 / _norm(noise).clamp_min(_TINY))
            delta = _scaled(unit, torch.where(known, 0.5 * self.length, self._typical()))
        delta = self._boxed(delta)
        reach = self.length.clone()
        seen = known.clone()
        for step in range(self._options.steps):
            decay = 0.5 * (1.0 + math.cos(math.pi * step / self._options.steps))
            gap, gradient = self._slope(delta, target)
            size, steep = _norm(delta), _norm(gradient)
            flipped = gap < 0.0
            better = flipped & (size < self.length)
            self.length = torch.where(better, size, self.length)
            self.best[better] = delta[better]
            seen |= flipped
            change = SHRINK * (0.01 + 0.99 * decay)
            linear = size + 1.02 * gap.clamp_min(0.0) / steep.clamp_min(_TINY) + 1e-9 * self._typical()
            after = torch.where(seen, reach * (1.0 + change), linear)
            reach = torch.where(flipped, torch.minimum(reach, size) * (1.0 - change), after)
            reach = torch.minimum(reach, self.length)
            reach = torch.where(torch.isfinite(reach) & (reach < _FAR), reach, 2.0 * size + self._typical())
            flat = (steep <= _TINY) | ~torch.isfinite(steep)
            ascent = _scaled(gradient, 1.0 / steep.clamp_min(_TINY))
            ascent = torch.where(_spread(flat, ascent), torch.zeros_like(ascent), ascent)
            delta = delta + _scaled(ascent, STEP * (0.01 + 0.99 * decay) * reach)
            delta = self._boxed(_scaled(delta, (reach / _norm(delta).clamp_min(_TINY)).clamp_max(1.0)))

    def _slope(self, delta: torch.Tensor, target: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The lead of the class over the best other one, and the gradient of what is climbed."""
        point = (self._centre + delta).requires_grad_()
        values = self._function(point)
        own = values.gather(1, self._labels[:, None])[:, 0]
        others = values.scatter(1, self._labels[:, None], -math.inf)
        best = others.amax(dim=1)
        aim = best if target is None else values.gather(1, target[:, None])[:, 0]
        gradient = torch.autograd.grad((aim - own).sum(), point)[0]
        lead = (own - best).detach()
        # A targeted run goes to its class's boundary, unless another one is crossed on the way.
        gap = lead if target is None else torch.where(lead < 0.0, lead, (own - aim).detach())
        return torch.nan_to_num(gap, nan=0.0), torch.nan_to_num(gradient)

    def _typical(self) -> torch.Tensor:
        """A length to begin with where nothing is known."""
        return 0.1 * _norm(self._centre) + 1e-3

    def _boxed(self, delta: torch.Tensor) -> torch.Tensor:
        if self._options.box is None:
            return delta
        low, high = self._options.box
        return (self._centre + delta).clamp(low, high) - self._centre


def _settled(other: Callable[[np.ndarray], np.ndarray], centre: np.ndarray, best: np.ndarray, box: Box | None) -> Found:
    """The points along the best perturbations where another class begins, beyond rounding, by bisection."""
    low, high = np.zeros(len(centre)), np.ones(len(centre))

    def at(part: np.ndarray) -> np.ndarray:
        points: np.ndarray = centre + part.reshape(-1, *[1] * (centre.ndim - 1)) * best
        return points if box is None else np.clip(points, *box)

    found = other(at(high)) >= 0
    for stretch in STRETCHES if not found.all() else ():
        high = np.where(found, high, stretch)
        found |= other(at(high)) >= 0
    for _ in range(BISECTIONS if found.any() else 0):
        middle = 0.5 * (low + high)
        over = other(at(middle)) >= 0
        high, low = np.where(over, middle, high), np.where(over, low, middle)
    points = at(high)
    classes = np.where(found, other(points), -1)
    flat = (len(centre), -1)
    distances = distances_up(points.reshape(flat), centre.reshape(flat))
    return Found(points, np.where(classes >= 0, distances, math.inf), classes)


def other_class(values: np.ndarray, errors: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """A class whose logit is above that of ``predictions``, beyond rounding; -1 where there is none."""
    rows = np.arange(len(values))
    own, doubt = values[rows, predictions][:, None], errors[rows, predictions][:, None]
    leads = margins_down(values, own, errors + doubt)
    leads[rows, predictions] = -math.inf
    best = leads.argmax(axis=1)
    classes: np.ndarray = np.where(leads[rows, best] > 0.0, best, -1)
    return classes


_TINY = 1e-300
_FAR = 1e100


def _norm(batch: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(batch.flatten(1), dim=1)
    return norms


def _spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _scaled(batch: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return batch * _spread(factors, batch)

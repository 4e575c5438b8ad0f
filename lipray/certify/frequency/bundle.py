"""One task of one round of an optimiser: groups of frequencies through the torus part, and the gradient back.

The optimiser's step is one map over bundles and one reduce. A bundle is a value and its result depends
on nothing else, so that a lost worker costs one bundle of one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify.frequency.gradient import pull_back_head, pull_back_level
from lipray.model.network import Network
from lipray.verify.torus import bundle as proof_bundle
from lipray.verify.torus.bundle import Bundle, BundleResult, on, posed
from lipray.verify.torus.elimination import LevelFactor, eliminate_level
from lipray.verify.torus.groups import Group, frequencies_of
from lipray.verify.torus.head import read
from lipray.verify.torus.layout import SHARE_OF_MEMORY
from lipray.verify.torus.levels import Level, lower_level
from lipray.verify.torus.proof import Means, Multipliers, Setup, cut_groups
from lipray.verify.torus.sweep import TorusProblem, by_level, carry, chunk, folded_in, group_bytes
from lipray.verify.torus.symbols import Frequencies, on_device

KEPT_SLICES = 1e-10
"""Share of the largest weight below which a frequency is left out of a gradient."""

EFFICIENT = 2**17
"""Entries of a batch of matrices from which on its operations hardly wait for Python (measured)."""


@dataclass(frozen=True, slots=True)
class GradientBundle:
    """Groups of frequencies, the multipliers λ of the torus' layers, and what to differentiate.

    Behind a head ``directions`` is D with the weight D Dᵀ on the rows' Q. For an output map the objective is
    Σ tr(Γ(ω) / reference)^power. ``keep``: whether factors are kept until the gradient comes back to them.
    """

    network: Network
    cut: int
    window: bool
    groups: tuple[tuple[Group, int], ...]
    multipliers: tuple[np.ndarray, ...]
    directions: np.ndarray | None = None
    power: float = 1.0
    reference: float = 1.0
    keep: bool = True
    device: str = "cpu"

    @property
    def proof(self) -> bool:
        """A gradient proves nothing."""
        return False

    @property
    def share(self) -> int:
        """How many of the problem's independent pieces it is."""
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class GradientResult:
    """The gradient in λ, stacked, and for an output map its largest eigenvalue and the objective's sum.

    ``feasible`` is false where M is not positive definite.
    """

    feasible: bool
    top: float = 0.0
    total: float = 0.0
    gradient: np.ndarray | None = None


AnyBundle = Bundle | GradientBundle
AnyResult = BundleResult | GradientResult

AnySpread = Callable[[Sequence[AnyBundle]], Sequence[AnyResult | None]]
"""Performs bundles of both kinds somewhere, results in order; ``None`` for one that was lost for good."""


def in_place(bundles: Sequence[AnyBundle]) -> list[AnyResult | None]:
    """Perform bundles one after the other, here."""
    return [perform_bundle(bundle) for bundle in bundles]


def perform_bundle(bundle: AnyBundle) -> AnyResult:
    """Do the work of one bundle, on its device."""
    if isinstance(bundle, Bundle):
        return proof_bundle.perform(bundle)
    with on(bundle.device):
        return _with_gradient(bundle)


def gradient_bundles(setup: Setup, multipliers: Multipliers, means: Means) -> list[GradientBundle]:
    """Cut the groups into bundles that fit the memory each, at least as many as there are workers."""
    allowed, count = means.memory / SHARE_OF_MEMORY, len(setup.groups)
    keep = _worth_keeping(setup.problem, allowed / group_bytes(setup.problem, keep=True), count)
    most = max(1, int(allowed / group_bytes(setup.problem, keep=keep)))
    return [
        GradientBundle(setup.network, setup.cut, setup.window, groups, multipliers, keep=keep, device=means.device)
        for groups in cut_groups(setup.groups, most, means.workers)
    ]


def _worth_keeping(problem: TorusProblem, fitting: float, count: int) -> bool:
    """Whether factors are kept for a gradient, when so many of the ``count`` groups fit one bundle with them.

    Bundles of few small matrices take longer than working the factors out again.
    """
    if fitting >= count:
        return True
    most = max(folded_in(problem, index) * max(widths, default=0) ** 2 for index, widths in enumerate(problem.widths))
    return fitting >= 1.0 and int(fitting) * most >= EFFICIENT


@dataclass(frozen=True, slots=True)
class Forward:
    """A bundle carried through the torus part with what its gradient needs.

    ``entered`` holds the shape matrices that enter each level (``None``: the identity). ``factors`` has every level
    with its factor where they are kept; otherwise they are worked out again on the way back, in pieces.
    """

    bundle: GradientBundle
    problem: TorusProblem
    multipliers: list[list[torch.Tensor]]
    frequencies: tuple[Frequencies, ...]
    entered: tuple[torch.Tensor | None, ...]
    factors: tuple[tuple[Level, LevelFactor], ...]
    shape: torch.Tensor
    counts: torch.Tensor

    def gram(self) -> torch.Tensor:
        """The rows' share of Q."""
        assert self.problem.head is not None  # noqa: S101 (the caller's part)
        return read(self.problem.head, self.shape, self.counts, self.frequencies[-1], self.problem.torus.coarse)[0]


def forward(bundle: GradientBundle) -> Forward | None:
    """Carry a bundle through the torus part; ``None`` where infeasible."""
    problem = posed(bundle.network, bundle.cut, window=bundle.window, device=bundle.device)
    sides = problem.torus.sides
    multipliers = by_level(problem, [on_device(lam) for lam in bundle.multipliers])
    frequencies = frequencies_of([group for group, _ in bundle.groups], sides)
    entered: list[torch.Tensor | None] = []
    factors: list[tuple[Level, LevelFactor]] = []
    shape: torch.Tensor | None = None
    for index in range(len(sides)):
        entered.append(shape)
        if bundle.keep:
            level = lower_level(problem.network, problem.torus, problem.handed, index, frequencies[index])
            lams, folded = multipliers[index], problem.torus.folded(index)
            factor = eliminate_level(level, shape, lams, folded=folded, proof=False, keep=True)
            if factor is None:
                return None
            factors.append((level, factor))
            shape = factor.gram
        else:
            shape = carry(problem, index, frequencies, shape, multipliers[index], proof=False)
            if shape is None:
                return None
    assert shape is not None  # noqa: S101 (there is at least one level)
    counts = torch.tensor([count for _, count in bundle.groups], dtype=torch.float64)
    return Forward(bundle, problem, multipliers, frequencies, tuple(entered), tuple(factors), shape, counts)


def backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor | None:
    """Gradient in λ, stacked, of <D Dᵀ, Q> behind a head; ``None`` where a factor, worked out again, fails."""
    head = carried.problem.head
    assert head is not None  # noqa: S101 (the caller's part)
    pulled = pull_back_head(head, directions, carried.frequencies[-1], carried.problem.torus.coarse)
    return _backward(carried, pulled * carried.counts.sqrt()[:, None, None])


def _backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor | None:
    pieces: list[list[torch.Tensor]] = []
    for index in reversed(range(len(carried.entered))):
        if carried.factors:
            level, factor = carried.factors[index]
            folded = carried.problem.torus.folded(index)
            gradients, directions = pull_back_level(level, factor, carried.entered[index], directions, folded)
        else:
            again = _again(carried, index, directions)
            if again is None:
                return None
            gradients, directions = again
        pieces.insert(0, gradients)
    flat = [part for gradients in pieces for part in gradients]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _again(carried: Forward, index: int, directions: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor] | None:
    """Pull back through a level whose factor was not kept, as many frequencies at a time as a sweep takes."""
    problem, shape, lams = carried.problem, carried.entered[index], carried.multipliers[index]
    folded = problem.torus.folded(index)
    step = chunk(problem, index, folded, keep=True)
    total: list[torch.Tensor] = [torch.zeros_like(lam) for lam in lams]
    pulled = []
    for start in range(0, directions.shape[0], step):
        part = slice(start * folded, (start + step) * folded)
        own = tuple(axis[part] for axis in carried.frequencies[index])
        level = lower_level(problem.network, problem.torus, problem.handed, index, own)
        entering = None if shape is None else shape[part]
        factor = eliminate_level(level, entering, lams, folded=folded, proof=False, keep=True)
        if factor is None:
            return None
        gradients, entered = pull_back_level(level, factor, entering, directions[start : start + step], folded)
        total = [known + more for known, more in zip(total, gradients, strict=True)]
        pulled.append(entered)
    return total, torch.cat(pulled)


def _with_gradient(bundle: GradientBundle) -> GradientResult:
    carried = forward(bundle)
    if carried is None:
        return GradientResult(feasible=False)
    top, total = 0.0, 0.0
    if carried.problem.head is not None:
        assert bundle.directions is not None  # noqa: S101 (the caller's part)
        gradient = backward(carried, on_device(bundle.directions))
    else:
        values, vectors = torch.linalg.eigh(carried.shape)
        relative = (values / bundle.reference).clamp(min=0.0)
        weights = bundle.power * relative ** (bundle.power - 1.0) / bundle.reference
        strong = weights > KEPT_SLICES * float(weights.max())
        columns = max(1, int(strong.sum(dim=1).max()))
        gradient = _backward(carried, vectors[:, :, -columns:] * weights[:, None, -columns:].sqrt())
        top, total = float(values.max()), float((relative**bundle.power).sum())
    if gradient is None:
        return GradientResult(feasible=False)
    return GradientResult(True, top, total, gradient.cpu().numpy())

"""The bound that multipliers prove for a network on tori, and behind them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.model.network import Network
from lipray.verify.elimination import Blocks
from lipray.verify.torus.bundle import Bundle, BundleResult, Spread, in_place
from lipray.verify.torus.groups import Group, half_plane
from lipray.verify.torus.head import find_head
from lipray.verify.torus.layout import SHARE_OF_MEMORY, lay_out
from lipray.verify.torus.sweep import TorusProblem, group_bytes, pose
from lipray.verify.torus.tail import certify_tail, tail_blocks
from lipray.verify.underflow import frobenius

Multipliers = tuple[np.ndarray, ...]


class LostBundleError(RuntimeError):
    """A bundle gave no result, so that nothing can be said of this round."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The torus part of a network, its independent groups, and the dense tail after its head (``None``: no head).

    ``window``: the torus is left for the window, entry by entry (the hybrid method). Multipliers are those of the
    torus' layers, then those of the tail's.
    """

    network: Network
    window: bool
    problem: TorusProblem
    groups: tuple[tuple[Group, int], ...]
    tail: Blocks | None
    tail_names: tuple[str, ...]

    @property
    def cut(self) -> int:
        """The last node on the torus."""
        return self.problem.torus.cut

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of all multiplier vectors: per channel on the torus, per neuron in the tail."""
        return self.problem.sizes + (() if self.tail is None else self.tail.widths)

    @property
    def names(self) -> tuple[str, ...]:
        """The activation layer that each multiplier vector belongs to."""
        return (*(name for level in self.problem.names for name in level), *self.tail_names)

    def split(self, multipliers: Sequence[np.ndarray]) -> tuple[Multipliers, Multipliers]:
        """The torus' multipliers and the tail's."""
        count = len(self.problem.sizes)
        return tuple(multipliers[:count]), tuple(multipliers[count:])


@dataclass(frozen=True, slots=True)
class Means:
    """Where bundles are performed, and how large they may be."""

    spread: Spread = in_place
    memory: int = 8 * 2**30
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Proven:
    """A certified bound, the multipliers it is recomputed from, and Q_out (K, K) where there is a head.

    ``rows`` is the shape matrix of the head's rows, ``loads`` how much each group matters, ``stages`` bounds of the map
    up to the end of every level.
    """

    bound: float
    multipliers: Multipliers
    gram: np.ndarray | None
    rows: torch.Tensor | None
    loads: np.ndarray
    stages: tuple[float, ...]


def set_up(network: Network, cut: int | None = None, *, window: bool = False) -> Setup:
    """Lay a network out on tori up to ``cut`` (by default as far as they go).

    Raises:
        PlanError: there is no torus for it.
    """
    torus = lay_out(network, cut)
    head = find_head(network, torus, window=window)
    problem = pose(network, torus, head)
    tail, names = (None, ()) if head is None else tail_blocks(network, head.node)
    return Setup(network, window, problem, half_plane(torus.coarse), tail, names)


def certify(setup: Setup, multipliers: Sequence[np.ndarray], means: Means) -> Proven | None:
    """The bound that multipliers prove, rounding included; ``None`` where they are not provably feasible.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    torus, tail = setup.split(multipliers)
    _, results = perform(setup, torus, means)
    if not all(result.feasible for result in results):
        return None
    return conclude(setup, torus, tail, results)


def perform(
    setup: Setup, multipliers: Multipliers, means: Means, *, proof: bool = True
) -> tuple[list[Bundle], list[BundleResult]]:
    """One round: all bundles, and what each contributes.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    batch = bundles(setup, multipliers, means, proof=proof)
    results = means.spread(batch)
    kept = [result for result in results if result is not None]
    if len(results) != len(batch) or len(kept) < len(batch):
        raise LostBundleError(f"{len(batch) - len(kept)} of {len(batch)} bundles were lost")
    return batch, kept


def bundles(setup: Setup, multipliers: Multipliers, means: Means, *, proof: bool = True) -> list[Bundle]:
    """Cut the groups into bundles that fit the memory each, at least as many as there are workers."""
    most = max(1, int(means.memory / SHARE_OF_MEMORY / group_bytes(setup.problem)))
    return [
        Bundle(setup.network, setup.cut, setup.window, groups, multipliers, proof, means.device)
        for groups in cut_groups(setup.groups, most, means.workers)
    ]


def cut_groups(groups: tuple[tuple[Group, int], ...], most: int, workers: int) -> list[tuple[tuple[Group, int], ...]]:
    """Cut groups into runs of at most ``most``, as many as a multiple of the workers where work is plenty."""
    count = len(groups)
    pieces = max(-(-count // most), min(workers, count))
    if workers > 1 and pieces > workers:
        pieces = -(-pieces // workers) * workers
    ends = [round(count * i / min(pieces, count)) for i in range(min(pieces, count) + 1)]
    return [groups[a:b] for a, b in itertools.pairwise(ends) if b > a]


def conclude(setup: Setup, torus: Multipliers, tail: Multipliers, results: Sequence[BundleResult]) -> Proven | None:
    """The bound from the shares of all groups."""
    loads = np.concatenate([result.loads for result in results if result.loads is not None])
    ends = zip(*(result.stages for result in results), strict=True)
    stages = tuple(_root(max(tops)) for tops in ends)
    if setup.tail is None:
        top = max(result.top for result in results)
        return Proven(_root(top), torus, None, None, loads, stages) if math.isfinite(top) else None
    gram, error = add_up(results)
    proven = certify_tail(setup.tail, gram, error, tail)
    return None if proven is None else Proven(proven.bound, (*torus, *tail), proven.gram, gram, loads, stages)


def add_up(results: Sequence[BundleResult]) -> tuple[torch.Tensor, float]:
    """Add the rows' shape matrices in order; the error covers the sum's own rounding."""
    total: torch.Tensor | None = None
    error, size = 0.0, 0.0
    for result in results:
        assert result.gram is not None  # noqa: S101 (the set-up has a head)
        gram = torch.from_numpy(result.gram)
        total = gram.clone() if total is None else total.add_(gram)
        error += result.error
        size += float(frobenius(gram))
    assert total is not None  # noqa: S101 (there is at least one bundle)
    return total, (error + size * len(results) * 2.0**-52) * (1.0 + 1e-9)


def _root(value: float) -> float:
    return math.nextafter(math.sqrt(value), math.inf) if value > 0.0 else 0.0

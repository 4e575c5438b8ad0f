"""One sub-problem's bound from its multipliers: no optimiser, no solver, and the same code for every method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from lipray.errors import PlanError, VerificationError
from lipray.model.network import Network
from lipray.verify.cover import covering_tiles
from lipray.verify.elimination import Blocks, evaluate, prepare
from lipray.verify.metric import metric_bound
from lipray.verify.product import product_bound
from lipray.verify.sector import lower
from lipray.verify.tile_bundle import TileBundle, TileResult, mirrored_layers
from lipray.verify.tile_bundle import perform as perform_tile
from lipray.verify.tiles import Window, distinct_tiles
from lipray.verify.torus.bundle import Bundle, BundleResult
from lipray.verify.torus.bundle import perform as perform_groups
from lipray.verify.torus.proof import LostBundleError, Means, Setup, certify, set_up

Kind = Literal["product", "dense", "torus", "metric"]

LEAST, LARGEST = 1e-290, 1e290
"""Multipliers beyond these are refused: their products would leave the range of float64."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a bound is recomputed from.

    ``product``: nothing but the network. ``dense``: λ of every activation layer of the sector form, one number per
    neuron. ``torus``: λ per channel of every layer on tori up to node ``cut`` (``None``: as far as they go), then per
    neuron of what follows; ``window``: the torus is left for the whole window of that node's map. ``metric``:
    ``windows`` of the output map, one per tile, and for every distinct tile in the order of its first appearance λ of
    the layers of its transposed sector form, one number per neuron.

    ``layers`` are the activation layers that the multipliers belong to, by name and length, and ``sides`` the tori,
    finest first: both follow from the network, and are compared with what it gives.
    """

    kind: Kind
    multipliers: tuple[np.ndarray, ...] = field(default=(), repr=False)
    layers: tuple[tuple[str, int], ...] = ()
    cut: int | None = None
    window: bool = False
    sides: tuple[tuple[int, ...], ...] = ()
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A sub-problem to prove: its network, its proof, and the bound claimed."""

    label: str
    network: Network
    proof: Proof
    claim: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A proven bound of the Lipschitz constant, and Γ (K, K) of the outputs where the proof has one."""

    bound: float
    gram: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Posed:
    """A sub-problem made ready: the activation layers its multipliers belong to, and the torus' sides, finest first."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]
    groups: int
    work: Callable[[Sequence[np.ndarray], Means], Figure | None]


def pose(label: str, network: Network, proof: Proof) -> Posed:
    """Make a sub-problem ready.

    Raises:
        VerificationError: there is no such proof of this network.
    """
    if proof.kind == "product":
        return Posed((), (), (), 1, lambda _lams, _means: Figure(product_bound(network)))
    if proof.kind == "dense":
        form = lower(network)
        names = tuple(layer.name for layer in form.layers)
        return Posed(names, form.widths, (), 1, lambda lams, _: _dense(prepare(form), lams))
    if proof.kind == "metric":
        return _tiled(label, network, proof.windows)
    if proof.cut is not None and not 0 <= proof.cut < len(network.nodes):
        raise VerificationError(label, f"it leaves the torus after node {proof.cut}, and there is no such node")
    try:
        setup = set_up(network, proof.cut, window=proof.window)
    except PlanError as fault:
        raise VerificationError(label, f"its maps cannot be carried on tori as it says ({fault.describe()})") from None
    torus = setup.problem.torus
    return Posed(setup.names, setup.sizes, torus.tori, len(setup.groups), lambda lams, m: _torus(setup, lams, m))


def prove(problem: Problem, means: Means | None = None) -> Figure:
    """The bound that a sub-problem's multipliers give.

    Args:
        problem: the sub-problem; its claim is not looked at.
        means: where bundles of frequencies are performed; by default here.

    Returns:
        A finite upper bound of the l2 Lipschitz constant of the network in exact arithmetic of its stored weights.

    Raises:
        VerificationError: the proof's structure is not the network's, a multiplier is no positive number, or the
            multipliers are not (provably) feasible.
        LostBundleError: a bundle of frequencies gave no result.
    """
    label, proof = problem.label, problem.proof
    posed = pose(label, problem.network, proof)
    if proof.sides != posed.sides:
        raise VerificationError(label, f"it says tori of {proof.sides}, and its network needs {posed.sides}")
    needed = tuple(zip(posed.names, posed.widths, strict=True))
    if proof.layers != needed:
        pairs = itertools.zip_longest(proof.layers, needed)
        given, right = next(pair for pair in pairs if pair[0] != pair[1])
        raise VerificationError(label, f"it has the activation layer {given}, where its network has {right}")
    check_multipliers(label, posed.names, posed.widths, proof.multipliers)
    figure = posed.work(proof.multipliers, means or Means(perform_here))
    if figure is None:
        raise VerificationError(label, "its multipliers are not feasible: the factorisation that proves them fails")
    if not (math.isfinite(figure.bound) and figure.bound >= 0.0):
        raise VerificationError(label, f"what it proves is not finite ({figure.bound})")
    return figure


def check_multipliers(
    label: str, names: Sequence[str], widths: Sequence[int], multipliers: Sequence[np.ndarray]
) -> None:
    """One positive float64 vector of the right length for every activation layer.

    Raises:
        VerificationError: naming the activation whose multipliers are wrong.
    """
    if len(multipliers) != len(names):
        raise VerificationError(label, f"it has multipliers of {len(multipliers)} layers, and {len(names)} are needed")
    for name, width, lam in zip(names, widths, multipliers, strict=True):
        where = f"the multipliers of {name}"
        if lam.dtype != np.float64 or lam.shape != (width,):
            raise VerificationError(label, f"{where} are {lam.dtype} of shape {lam.shape}, not {width} float64 numbers")
        wrong = np.flatnonzero(~(np.isfinite(lam) & (lam >= LEAST) & (lam <= LARGEST)))
        if wrong.size:
            at = int(wrong[0])
            raise VerificationError(label, f"{where} must be positive and finite, and number {at} is {lam[at]}")


def perform_here(bundles: Sequence[Bundle | TileBundle]) -> list[BundleResult | TileResult]:
    """Perform bundles of a proof one after the other, here."""
    return [perform_tile(item) if isinstance(item, TileBundle) else perform_groups(item) for item in bundles]


def _tiled(label: str, network: Network, windows: Sequence[Window]) -> Posed:
    tiles = covering_tiles(label, network, windows)
    kinds = distinct_tiles(tiles)
    layers = [mirrored_layers(kind.network) for kind in kinds]
    names = tuple(f"tile{kind.tiles[0] + 1}/{name}" for kind, own in zip(kinds, layers, strict=True) for name, _ in own)
    widths = tuple(width for own in layers for _, width in own)

    def work(lams: Sequence[np.ndarray], means: Means) -> Figure | None:
        given, bundles = iter(lams), []
        for kind, own in zip(kinds, layers, strict=True):
            bundles.append(TileBundle(kind.network, tuple(itertools.islice(given, len(own)))))
        results = means.spread(bundles)
        if any(result is None for result in results):
            raise LostBundleError(f"{label}: the metric of a tile was lost")
        if not all(result.feasible for result in results):
            return None
        metrics = {tile: result.metric for kind, result in zip(kinds, results, strict=True) for tile in kind.tiles}
        ordered = [torch.from_numpy(metrics[tile]) for tile in range(len(tiles))]
        return Figure(metric_bound(ordered, [tile.field for tile in tiles], network.input_shape))

    return Posed(names, widths, (), len(kinds), work)


def _dense(blocks: Blocks, multipliers: Sequence[np.ndarray]) -> Figure | None:
    proven = evaluate(blocks, multipliers)
    return None if proven is None else Figure(proven.bound, proven.gram)


def _torus(setup: Setup, multipliers: Sequence[np.ndarray], means: Means) -> Figure | None:
    proven = certify(setup, multipliers, means)
    return None if proven is None else Figure(proven.bound, proven.gram)

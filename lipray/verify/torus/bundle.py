"""Bundles of frequency groups through the torus part for given multipliers: the independent pieces of a proof.

A bundle is a value and its result depends on nothing else, so that a proof may be spread over processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lipray.model.network import Network
from lipray.verify.identity import ById
from lipray.verify.torus.groups import Group
from lipray.verify.torus.head import find_head
from lipray.verify.torus.layout import lay_out
from lipray.verify.torus.sweep import TorusProblem, pose, sweep
from lipray.verify.torus.symbols import on_device


@dataclass(frozen=True, slots=True)
class Bundle:
    """Groups of frequencies, with their counts, and the multipliers λ of the torus' layers.

    ``cut`` is the last node on the torus, ``window`` whether the torus is left for the whole window. Without ``proof``
    rounding is left out, and the result is an estimate.
    """

    network: Network
    cut: int
    window: bool
    groups: tuple[tuple[Group, int], ...]
    multipliers: tuple[np.ndarray, ...]
    proof: bool = True
    device: str = "cpu"

    @property
    def share(self) -> int:
        """How many of the problem's independent pieces it is."""
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What a bundle contributes; ``feasible`` is false where M is not (provably) positive definite.

    ``gram`` (R, R) and ``error`` behind a head, ``top`` for an output map; with ``loads`` and ``stages`` they are
    those of ``lipray.verify.torus.sweep.Share``.
    """

    feasible: bool
    gram: np.ndarray | None = None
    error: float = 0.0
    top: float = 0.0
    loads: np.ndarray | None = None
    stages: tuple[float, ...] = ()


Spread = Callable[[Sequence[Any]], Sequence[Any]]
"""Performs bundles somewhere (an optimiser's too), results in order; ``None`` for one that was lost for good."""


def in_place(bundles: Sequence[Bundle]) -> list[BundleResult | None]:
    """Perform bundles one after the other, here."""
    return [perform(bundle) for bundle in bundles]


def perform(bundle: Bundle) -> BundleResult:
    """Do the work of one bundle, on its device."""
    with on(bundle.device):
        problem = posed(bundle.network, bundle.cut, window=bundle.window, device=bundle.device)
        multipliers = [on_device(lam) for lam in bundle.multipliers]
        share = sweep(problem, bundle.groups, multipliers, proof=bundle.proof)
        if share is None:
            return BundleResult(feasible=False)
        gram = None if share.gram is None else share.gram.cpu().numpy()
        return BundleResult(True, gram, share.error, share.top, share.loads.cpu().numpy(), share.stages)


def on(device: str) -> contextlib.AbstractContextManager[object]:
    """Make tensors on a device; the context costs time at every call of torch, so none is entered for the CPU."""
    return contextlib.nullcontext() if device == "cpu" else torch.device(device)


def posed(network: Network, cut: int, *, window: bool, device: str) -> TorusProblem:
    """The torus part of a network; the last few are remembered."""
    return _posed(ById(network), cut, window, device)


@lru_cache(maxsize=4)
def _posed(key: ById, cut: int, window: bool, device: str) -> TorusProblem:  # noqa: ARG001 (a cache key)
    torus = lay_out(key.network, cut)
    return pose(key.network, torus, find_head(key.network, torus, window=window))

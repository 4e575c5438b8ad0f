"""One row's work by names, so that another process can be told of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peers.answer import Answer
from peers.methods import METHODS, Method
from peers.networks import CASES, Case


def prepare(network: str, method: str, limit: float) -> Callable[[], Answer]:
    """The work of a row, with the network in memory."""
    return partial(METHODS[method].call, CASES[network].make(), limit)


def ways_of(case: Case, *, maps: bool) -> tuple[Method, ...]:
    """The ways that a network is bounded by: those of maps where it has ``maps``, the slow ones not on siblings."""
    return tuple(
        method for method in METHODS.values() if (maps or not method.maps) and not (method.slow and case.sibling)
    )

"""One row's work by names, so that another process can be told of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peers.answer import Answer
from peers.methods import METHODS
from peers.networks import CASES


def prepare(network: str, method: str, limit: float) -> Callable[[], Answer]:
    """The work of a row, with the network in memory."""
    return partial(METHODS[method].call, CASES[network].make(), limit)

"""Peers that cannot be measured, and why; their rows say so."""

from __future__ import annotations

from lipray.model.network import Network
from peers.answer import Answer, NotHereError


def jacobian(network: Network) -> Answer:
    """auto_LiRPA's bound of the Jacobian on a box.

    Raises:
        NotHereError: always; see docs/decisions/0020-peers.md.
    """
    del network
    raise NotHereError("does not install here: auto_LiRPA 0.3 asks for torch below 1.13 and has no Jacobian bounds yet")

"""What one task solves: a sub-network, a method, and its settings."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from lipray.model.network import Network

METHODS = ("product", "sdp", "ellipsoid")
"""Names of the methods a sub-problem can be solved by."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How hard a method tries; nothing here changes whether the answer is a bound.

    ``iterations``: optimiser iterations, 0 for the closed form, ``None`` for the method's own rule.
    ``tolerance``: relative gap at which an optimiser stops. ``time_limit``: seconds after which it
    stops with the best bound so far. ``memory``: bytes a solver may use.
    """

    iterations: int | None = None
    tolerance: float = 1e-6
    time_limit: float | None = None
    memory: int = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Subproblem:
    """Bound the Lipschitz constant (l2 to l2) of ``network`` from its input to its output."""

    label: str
    network: Network
    method: str
    settings: Settings

    def key(self) -> str:
        """SHA-256 of the content: equal keys are the same problem, whatever the labels say."""
        return subproblem_key(self.network.content_hash(), self.method, self.settings)


def subproblem_key(content: str, method: str, settings: Settings) -> str:
    """``Subproblem.key`` of a network whose content hash is already known."""
    text = f"{content} {method} {sorted(asdict(settings).items())!r}"
    return hashlib.sha256(text.encode()).hexdigest()

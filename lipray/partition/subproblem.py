"""What one task solves: a sub-network, a method, and its settings."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from lipray.model.network import Network

METHODS = ("product", "sdp", "ellipsoid", "frequency", "hybrid")
"""Names of the methods a sub-problem can be solved by."""

METRIC = "metric"
"""The method of a tiled block that is solved by its tiles together; the planner gives it to blocks."""

TORUS_METHODS = ("frequency", "hybrid")
"""Those that carry the maps on tori; ``hybrid`` leaves the torus where the dense window is small enough."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How hard a method tries; nothing here changes whether the answer is a bound.

    ``iterations``: optimiser iterations, 0 for the closed form, ``None`` for the method's own rule.
    ``tolerance``: relative gap at which an optimiser stops. ``time_limit``: seconds after which it
    stops with the best bound so far. ``memory``: bytes a solver may use.

    The others concern the methods on tori. ``switch``: where the torus is left, a node's name or index, ``"none"``
    for the end of the maps, ``None`` for the solver's own choice. ``device``: torch's name of the device that
    frequencies are worked on. ``workers``: into how many bundles a round of frequencies is cut at least.

    ``tiles`` concerns the method ``metric``: the partition factor of the block that is solved by its tiles together.
    """

    iterations: int | None = None
    tolerance: float = 1e-6
    time_limit: float | None = None
    memory: int = 8 * 2**30
    switch: str | None = None
    device: str = "cpu"
    workers: int = 1
    tiles: int = 1


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
    """``Subproblem.key`` of a network whose content hash is already known.

    Where and in how many pieces the work is done is no part of the problem.
    """
    items = asdict(settings)
    kept = [(name, items[name]) for name in sorted(items) if name in _ALWAYS or _chosen(method, name, items[name])]
    text = f"{content} {method} {kept!r}"
    return hashlib.sha256(text.encode()).hexdigest()


_ALWAYS = ("iterations", "tolerance", "time_limit", "memory")
_DEFAULTS = asdict(Settings())


def _chosen(method: str, name: str, value: object) -> bool:
    """Whether a setting of the methods on tori makes this another problem than the default would."""
    if name == "tiles":
        return method == "metric"
    return method in TORUS_METHODS and name == "switch" and value != _DEFAULTS[name]

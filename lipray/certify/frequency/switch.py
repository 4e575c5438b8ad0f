"""Where the hybrid method leaves the torus: the earliest cut whose dense tail fits memory and patience."""

from __future__ import annotations

import math

from lipray.errors import PlanError
from lipray.model.network import Network
from lipray.partition.cost import estimate_cost
from lipray.partition.depth import is_nonlinear, sub_network
from lipray.partition.subproblem import Settings
from lipray.partition.torus import torus_cuts

LARGEST_WINDOW = 1600
"""Entries of the window that a torus is left for unless asked otherwise: its shape matrix is dense."""

LARGEST_TAIL = 6000
"""Neurons of the dense tail, unless asked otherwise."""


def choose_switch(network: Network, settings: Settings, method: str) -> int | None:
    """The node after which the torus is left for the window, ``None`` to stay until the maps end.

    Raises:
        PlanError: ``settings.switch`` names no node after which it can be left.
    """
    cuts = torus_cuts(network)
    wish = settings.switch
    if wish is not None and wish != "none":
        for cut in cuts:
            if wish in (str(cut), network.nodes[cut].name):
                return cut
        names = ", ".join(network.nodes[cut].name for cut in cuts)
        raise PlanError("--switch", f"the torus cannot be left after {wish!r}", hint=f"It can after: {names}; or none.")
    if wish == "none" or method != "hybrid":
        return None
    for cut in cuts:
        if cut and not is_nonlinear(network.nodes[cut]):
            continue
        tail = sub_network(network, cut, len(network.nodes) - 1)
        if math.prod(network.nodes[cut].shape) > LARGEST_WINDOW:
            continue
        cost = estimate_cost(tail, "ellipsoid", settings)
        if cost.neurons <= LARGEST_TAIL and cost.memory_bytes <= settings.memory // 2:
            return cut
    return None

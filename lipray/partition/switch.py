"""Where the hybrid method leaves the torus: the earliest cut whose dense tail fits memory and patience."""

from __future__ import annotations

import math

from lipray.errors import UsageError
from lipray.model.network import Network
from lipray.partition.cost import estimate_cost
from lipray.partition.depth import is_nonlinear
from lipray.partition.subproblem import Settings
from lipray.verify.cuts import sub_network
from lipray.verify.torus.layout import torus_cuts

STAY = "none"
"""The switch that stays on the torus until the maps end."""

LARGEST_WINDOW = 1600
"""Entries of the window that a torus is left for unless asked otherwise: its shape matrix is dense."""

LARGEST_TAIL = 6000
"""Neurons of the dense tail, unless asked otherwise."""

_SHOWN = 40


def choose_switch(network: Network, settings: Settings, method: str) -> int | None:
    """The node after which the torus is left for the window, ``None`` to stay until the maps end.

    Raises:
        UsageError: ``settings.switch`` names no node after which it can be left.
    """
    wish = settings.switch
    if wish is not None and wish != STAY:
        return find_switch(network, wish)
    if wish == STAY or method != "hybrid":
        return None
    for cut in torus_cuts(network):
        if cut and not is_nonlinear(network.nodes[cut]):
            continue
        if math.prod(network.nodes[cut].shape) > LARGEST_WINDOW:
            continue
        tail = sub_network(network, cut, len(network.nodes) - 1)
        cost = estimate_cost(tail, "ellipsoid", settings)
        if cost.neurons <= LARGEST_TAIL and cost.memory_bytes <= settings.memory // 2:
            return cut
    return None


def find_switch(network: Network, wish: str) -> int:
    """The node that ``wish`` names: by its name, or by its number where no node is called so.

    Raises:
        UsageError: the torus cannot be left after it; the hint lists where it can.
    """
    cuts = torus_cuts(network)
    by_name = {network.nodes[cut].name: cut for cut in reversed(cuts)}
    if wish in by_name:
        return by_name[wish]
    named = {node.name for node in network.nodes}
    if wish.isdecimal() and wish not in named and int(wish) in cuts:
        return int(wish)
    names = [network.nodes[cut].name for cut in cuts]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    hint = f"It can after: {', '.join(names[:_SHOWN])}{more}; or {STAY} to stay on it to the end of the maps."
    if not cuts:
        hint = "This network does not begin with maps of positions, so there is no torus to leave."
    why = f"the torus cannot be left after {wish!r}" if wish in named else f"{wish!r} is no layer of this network"
    raise UsageError("--switch", why, hint=hint)

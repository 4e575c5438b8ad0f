"""Which method a block gets when the planner may choose, and what carrying it on tori takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipray.errors import PlanError, UsageError
from lipray.model.network import Network
from lipray.partition.cost import INTERIOR_POINT_ORDER, estimate_cost
from lipray.partition.plan import TileWork, TorusWork
from lipray.partition.subproblem import TORUS_METHODS, Settings
from lipray.partition.switch import STAY, choose_switch, find_switch
from lipray.partition.torus_cost import ROUNDS, TorusCost, torus_cost
from lipray.verify.cuts import sub_network
from lipray.verify.torus.layout import SHARE_OF_MEMORY, lay_out

FEWEST_SECONDS, MOST_SECONDS = 120.0, 3600.0
"""Seconds an optimiser on tori gets at least and at most where nothing is said."""
MULTIPLE = 4.0
"""What it gets between them, in closed forms."""

AUTO = "auto"
"""The method that leaves the choice to the planner."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Choice:
    """A block's method and settings, why, and where it lies on tori if it does."""

    method: str
    settings: Settings
    reason: str
    torus: TorusWork | None = None
    together: TileWork | None = None

    @property
    def memory(self) -> int:
        """Bytes that the largest piece of work on tori takes, at least (an estimate)."""
        return 0 if self.torus is None else max(self.torus.group_memory, self.torus.tail_memory)

    @property
    def seconds(self) -> float:
        """Seconds on one core, the optimiser with its own limit (an estimate)."""
        torus = self.torus
        if torus is None:
            return 0.0
        limit = default_limit(self.settings, torus.closed_form_seconds)
        rounds = ROUNDS if self.settings.iterations is None else self.settings.iterations
        whole = torus.closed_form_seconds + rounds * torus.round_seconds
        return whole if limit is None else min(whole, max(limit, torus.closed_form_seconds))


def default_limit(settings: Settings, closed_form_seconds: float) -> float | None:
    """Time limit of a problem on tori outside a budget: the one given, none where iterations are, or by the rule."""
    if settings.time_limit is not None or settings.iterations is not None:
        return settings.time_limit
    return min(MOST_SECONDS, max(FEWEST_SECONDS, MULTIPLE * closed_form_seconds))


def choose(block: Network, method: str, settings: Settings) -> Choice:
    """The method of a block: the one asked for, or with ``auto`` the planner's choice.

    ``auto`` takes the ellipsoid method where the interior-point method solves the block whole, at the best bound of
    all; otherwise the hybrid method where the block begins with maps that lie on tori (the frequency method where
    no window is small enough to leave them for); otherwise the ellipsoid method again, in blocks that fit.

    Raises:
        PlanError: a method on tori is asked for, by name or by a switch, and there is no torus, or none that fits.
        UsageError: the switch names no layer after which the torus can be left.
    """
    if method not in (AUTO, *TORUS_METHODS):
        return Choice(method, settings, "asked for")
    if method in TORUS_METHODS or settings.switch is not None:
        wanted = method if method in TORUS_METHODS else "frequency" if settings.switch == STAY else "hybrid"
        found = _on_tori(block, wanted, settings)
        _check_memory(block, found)
        return found
    cost = estimate_cost(block, "ellipsoid", settings)
    if cost.order <= INTERIOR_POINT_ORDER and cost.memory_bytes <= settings.memory:
        return Choice("ellipsoid", settings, f"its LMI has order {cost.order}, which is solved whole")
    # The closed form is asked for where time matters more than the last few per cent: one set-up, not two.
    wanted = "frequency" if settings.iterations == 0 and settings.switch is None else "hybrid"
    try:
        found = _on_tori(block, wanted, settings)
        _check_memory(block, found)
    except PlanError as fault:
        return Choice("ellipsoid", settings, f"no torus: {fault.args[1]}")
    if found.settings.switch == STAY:
        found = replace(found, method="frequency")
    return replace(found, reason=f"its LMI would have order {cost.order:,}; {found.reason}")


def switch_in(network: Network, block: Network, settings: Settings) -> Settings:
    """The settings of one block of a network: the switch by its name in the block that holds it.

    Raises:
        UsageError: the switch names no layer of the network after which the torus can be left.
    """
    if settings.switch in (None, STAY):
        return settings
    name = network.nodes[find_switch(network, str(settings.switch))].name
    inside = any(node.name == name for node in block.nodes[1:])
    return replace(settings, switch=name if inside else None)


def _on_tori(block: Network, method: str, settings: Settings) -> Choice:
    plain = lay_out(block)
    switch = choose_switch(block, settings, method)
    if method not in TORUS_METHODS:
        raise UsageError("--method", f"{method!r} is no method on tori")
    layouts = [plain] if switch is None else [plain, lay_out(block, switch)]
    costs = [torus_cost(block, torus) for torus in layouts]
    tails = [sub_network(block, torus.cut, len(block.nodes) - 1) for torus in layouts]
    tail_costs = [estimate_cost(tail, "ellipsoid", settings) for tail in tails if len(tail.nodes) > 1]
    last = costs[-1]
    name = None if switch is None else block.nodes[switch].name
    work = TorusWork(
        sides=layouts[-1].tori,
        switch=name,
        groups=last.groups,
        group_memory=max(_group_memory(cost, settings) for cost in costs),
        tail_memory=max((cost.memory_bytes for cost in tail_costs), default=0),
        pass_seconds=max(cost.pass_seconds for cost in costs),
        closed_form_seconds=sum(cost.closed_form_seconds for cost in costs),
        round_seconds=sum(cost.round_seconds for cost in costs) / len(costs),
    )
    kept = replace(settings, switch=STAY if name is None else name)
    if name is not None:
        reason = f"one multiplier per channel, and per neuron after {name}"
    elif method == "hybrid":
        reason = "one multiplier per channel; no window is small enough to leave the torus for"
    else:
        reason = "one multiplier per channel"
    return Choice(method, kept, reason, work)


def _group_memory(cost: TorusCost, settings: Settings) -> int:
    """What a group takes: its factors are kept for gradients where they need a small part of what is allowed."""
    if settings.iterations == 0:
        return cost.sweep_memory
    kept = cost.kept_memory <= settings.memory / SHARE_OF_MEMORY
    return cost.kept_memory if kept else min(cost.kept_memory, cost.memory)


def _check_memory(block: Network, choice: Choice) -> None:
    torus, allowed = choice.torus, choice.settings.memory
    if torus is None or choice.memory <= allowed:
        return
    sides = " → ".join("×".join(map(str, sides)) for sides in torus.sides)
    if torus.group_memory > allowed:
        what = f"one group of the frequencies of the tori {sides} needs {torus.group_memory / _GIB:.2f} GiB"
    else:
        what = f"the dense part after the tori {sides} needs {torus.tail_memory / _GIB:.2f} GiB"
    raise PlanError(
        "--memory",
        f"{block.nodes[min(1, len(block.nodes) - 1)].name}..{block.nodes[-1].name}: {what}, "
        f"and a sub-problem may use {allowed / _GIB:.2f} GiB",
        hint=f"Set --memory {-(-choice.memory * 11 // 10) // 2**20 + 1}MiB, cut the network by --block-depth, "
        "or use --method product.",
    )

"""lipray's own ways on a whole network, as ``lipray estimate`` goes them, without a lower bound; and that bound."""

from __future__ import annotations

import time

from lipray.certify.solve import solve
from lipray.compose.compose import COMPOSITIONS
from lipray.config import EstimateConfig
from lipray.errors import PlanError
from lipray.model.network import Conv, Network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.run.driver import estimate_network
from lipray.run.lower_bound import ascend, best, plan_ascents
from lipray.run.serial import SerialExecutor
from lipray.verify.product import product_bound
from lipray.verify.sector import lower
from peers.answer import PROVEN, Answer, NotHereError

TORI = ("frequency", "hybrid")
FACTORS = (2, 4)
MEMORY = 6 * 2**30


def estimate(network: Network, seconds: float, **options: object) -> Answer:
    """The bound of an estimate: ``seconds`` for a network solved whole, or for all its parts together.

    Raises:
        NotHereError: the network cannot be cut, or laid out, that way.
    """
    allowed = {"budget" if "partition_factor" in options else "time_limit": seconds}
    config = EstimateConfig(executor="serial", threads=1, lower_starts=0, memory=MEMORY, **allowed, **options)
    try:
        outcome = estimate_network(network, config, SerialExecutor(1))
    except PlanError as fault:
        raise NotHereError(" ".join(str(fault).split())) from fault
    bound = outcome.bound
    solved = [item for item in bound.certificate.values() if item.method != "product"]
    ended = ", ".join(sorted({item.status.value for item in solved})) or "product"
    sources = ", ".join(sorted({block.source for block in bound.blocks}))
    note = f"by {sources}" if len(sources) < 60 else ""
    alone = bound.figures.get(str(options.get("composition")))
    if alone is not None and alone > bound.upper:
        note += f", composed alone {alone:.6g}"
    note += f", {len(solved)} sub-problems" if len(solved) > 1 else ""
    return Answer(bound.upper, PROVEN, bound.upper, ended, note)


def tiled(network: Network, seconds: float, composition: str, factor: int) -> Answer:
    """Space: the whole network as one block, its output map cut into ``factor`` tiles along each axis.

    Raises:
        NotHereError: there is no map to cut.
    """
    if not any(isinstance(node.op, Conv) for node in network.nodes):
        raise NotHereError("no maps")
    return estimate(network, seconds, method="ellipsoid", partition_factor=factor, composition=composition)


def on_tori(network: Network, seconds: float, method: str) -> Answer:
    """A method of tori.

    Raises:
        NotHereError: no maps that begin the network lie on a torus.
    """
    if not any(isinstance(node.op, Conv) for node in network.nodes):
        raise NotHereError("no maps")
    return estimate(network, seconds, method=method)


def product(network: Network) -> Answer:
    """The product of layer norms, each from above, as lipray has it beside every bound."""
    bound = product_bound(network)
    return Answer(bound, PROVEN, bound, "closed form")


def closed_form(network: Network) -> Answer:
    """ECLipsE-Fast's multipliers over the whole network, skips and pools included, proven.

    Raises:
        NotHereError: its shape matrices do not fit.
    """
    entries = sum(size * size for size in lower(network).widths)
    if 3 * 8 * entries > MEMORY:
        raise NotHereError(f"not tried: shape matrices of {8 * entries / 2**30:.0f} GiB")
    certificate = solve(Subproblem("benchmark", network, "ellipsoid", Settings(iterations=0)))
    return Answer(certificate.bound, PROVEN, certificate.bound, certificate.status.value)


def lower_bound(network: Network, seconds: float) -> Answer:
    """What a pair of points attains: no upper bound, but what every upper bound is held against."""
    start = time.monotonic()
    found = {}
    for ascent in plan_ascents(network, starts=None, seed=0):
        found[ascent.label] = ascend(ascent)
        if time.monotonic() - start > seconds:
            break
    witness = best(found)
    return Answer(0.0 if witness is None else witness.quotient, "attained", None, "done", f"{len(found)} bundles")


def ways() -> dict[str, tuple[str, int]]:
    """Space with every composition there is: name of the row, composition and partition factor."""
    return {f"lipray, space, {name}, p={factor}": (name, factor) for name in COMPOSITIONS for factor in FACTORS}

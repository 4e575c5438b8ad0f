"""How tight the methods on tori are, and how fast: chains of convolutions, whole networks, and beside full LipSDP.

    .venv/bin/python benchmarks/frequency.py [--repeat 3] [--only chain_C9] [--short]

The published networks are read from the folder ``../shared/networks`` beside the project, or from the one
LIPRAY_NETWORKS names; without it only the networks of ``benchmarks/data`` are measured. Sizes that people use:
``sizes.py``; growth with depth, share of the machine's peak, and Ray: ``scaling.py``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import harness
from harness import ROOT, Column, Row

from lipray.certify.certificate import Certificate, Status
from lipray.certify.frequency.solve import solve_frequency
from lipray.certify.solve import checked, solve
from lipray.errors import PlanError
from lipray.model.load import load_network
from lipray.model.network import Activation, Network, Node, Sum
from lipray.partition.subproblem import TORUS_METHODS, Settings, Subproblem
from lipray.run.lower_bound import ascend, best, plan_ascents
from lipray.verify.layer_norms import operation_constant
from lipray.verify.torus.layout import lay_out

sys.path.append(str(ROOT))
from tests import published as reader  # the reader of the tests, which are no package of lipray

DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Target:
    """What a row is held against: bounds asked for, the optimum on the torus of side 16, and published figures."""

    at_most: float = math.inf
    optimum: float | None = None
    hybrid_below: float = math.inf
    seconds: float = math.inf


CHAINS = {
    "chain_C3_CH8": Target(7.6495, 7.64875, 7.2937),
    "chain_C5_CH8": Target(27.53, 27.5173, 26.707),
    "chain_C9_CH8": Target(79.5, 79.3345, 77.301, seconds=5.0),
    "chain_C5_CH16": Target(35.92, 35.8787),
}
"""Published chains on 14x14 maps. The first two numbers are the frequency method's, the third the hybrid one's."""

TRAINED = ("chain_D16_CH8", "chain_D16_CH16", "chain_D8_CH32", "chain_D16_CH32")
"""Deeper and wider chains, trained by ``train_chains.py``."""

WHOLE = {"LeNet5_wd": Target(8.93), "2C2F_wd": Target(6.45), "2C2F": Target(31.4)}
"""Published networks with dense layers, at most LipLT's or ECLipsE-Fast's bounds."""

RESIDUAL = {"FC-R18": Target(22.01, 22.0060), "FC-R18 without": Target(20.9562, 20.95599)}
"""The fully connected ResNet as trained, and without the ReLU after each addition: no maps, the method ellipsoid."""

CONVERGES_IN = 600.0
"""Seconds in which the trained chains are to converge."""

LIMIT = 300.0
"""Seconds allowed to the hybrid method, and to whole networks."""

SHORTER, LOOSER = 20.0, 1.20
"""Hybrid beside full LipSDP: how many times faster it is asked to be, and how much larger it may be."""

SHORT = ("chain_C3_CH8 torus 15", "chain_C3_CH8 torus 16", "chain_C3_CH8 hybrid", "2C2F_wd frequency", "FC-R18 without")

COLUMNS = (
    Column("network", "network"),
    Column("method", "method"),
    Column("tori", "tori"),
    Column("closed form", "closed", harness.upper),
    Column("bound", "bound", harness.upper),
    Column("asked", "asked", harness.number),
    Column("÷ product", "of_product", harness.share),
    Column("÷ LipLT", "of_liplt", harness.share),
    Column("÷ ECLipsE-Fast", "of_eclipse", harness.share),
    Column("GLipSDP (published)", "glipsdp", harness.number),
    Column("attained", "lower", harness.lower),
    Column("rounds", "iterations", harness.count),
    Column("closed form, s", "closed_seconds", harness.seconds),
    Column("optimisation, s", "optimising", harness.seconds),
    Column("ended", "status"),
    Column("verdict", "verdict"),
)

NOTES = f"""\
`chain_C*`: published chains of 3x3 convolutions (padding 1, C - 1 of them, CH channels) on 14x14 maps; `chain_D*`:
chains of D convolutions trained by `train_chains.py`. Side 15 is the smallest torus that is sound for them, 16 the one
that known optima are for (the same chain on 15x15 maps, whose bound holds for 14x14 maps too). `ellipsoid` of
`digits_deep` is full LipSDP, one multiplier per neuron, converged.

`closed form`: T = λmax·I on the torus, without optimisation. `÷ product` and so on: the bound divided by those of the
networks' `anchors.csv`, or by lipray's own. `attained`: a lower bound, from a pair of points. `rounds`: steps of the
optimisers. `optimisation, s`: from the certified closed form to the last certificate, the final proof included; of
ellipsoid all of it.

pass: `attained` <= bound <= `asked`; on side 16 not below the known optimum by more than 1e-6; chain_C9_CH8 in at most
5 s of optimisation; hybrid on the chains below what the same multipliers as the frequency method's give on the window;
`chain_D*` converged within {CONVERGES_IN:.0f} s; `digits_deep hybrid 1/20` at most {LOOSER:.2f} of full LipSDP in a
twentieth of its time. At most {LIMIT:.0f} s for hybrid and for whole networks.
"""


@cache
def network_of(name: str) -> Network:
    """A network by its name here."""
    if name == "digits_deep":
        model = f"{Path(__file__).with_name('digits_deep.py')}:digits_deep"
        return load_network(model, (1, 8, 8), weights=DATA / "digits_deep.safetensors").network
    if name in TRAINED:
        return reader.published(name, folder=DATA)
    if name in RESIDUAL and name != "FC-R18":
        return without_relu_after_sums(reader.published("FC-R18"))
    return reader.published(name)


def without_relu_after_sums(network: Network) -> Network:
    """The same weights, but no activation between an addition and what reads it."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in network.nodes:
        inputs = tuple(place[i] for i in node.inputs)
        if isinstance(node.op, Activation) and isinstance(nodes[inputs[0]].op, Sum):
            place.append(inputs[0])
        else:
            place.append(len(nodes))
            nodes.append(replace(node, inputs=inputs))
    return Network(tuple(nodes), network.weights)


def enlarged(network: Network) -> Network:
    """A chain of convolutions at stride 1 on maps larger by one, and so on a torus larger by one."""
    nodes = [replace(node, shape=(node.shape[0], *(side + 1 for side in node.shape[1:]))) for node in network.nodes]
    return Network(tuple(nodes), network.weights)


@cache
def references(name: str, *, short: bool) -> Row:
    """Bounds of other methods on a network, and the quotient that a pair of points attains."""
    network, found = network_of(name), {}
    if name in TRAINED:
        # LipLT would take the norms of all products of layers: hours at this depth.
        found["product"] = math.prod(
            operation_constant(node.op, network.weights, network.nodes[node.inputs[0]].shape, node.shape)
            for node in network.nodes[1:]
        )
    elif name not in CHAINS:
        figures = solve(Subproblem("product", network, "product", Settings())).figures
        found |= {"product": figures["product"], "liplt": figures.get("liplt"), "eclipse": figures.get("eclipse_fast")}
    starts = {"norm product": "product", "LipLT": "liplt", "ECLipsE-Fast": "eclipse", "GLipSDP": "glipsdp"}
    for row in reader.anchors() if reader.here() else ():
        key = next((key for start, key in starts.items() if row["method"].startswith(start)), None)
        # The published GLipSDP value of FC-R18 is of the network without the ReLUs after its additions.
        owner = "FC-R18 without" if (row["network"], key) == ("FC-R18", "glipsdp") else row["network"]
        if key is not None and owner == name:
            found[key] = float(row["value"])
    witness = best({a.label: ascend(a) for a in plan_ascents(network, starts=4 if short else None, seed=0)})
    return {**found, "lower": 0.0 if witness is None else witness.quotient}


def certify(network: Network, method: str, settings: Settings, repeat: int) -> Row:
    """One method on one network: bound, figures, times."""

    def once() -> tuple[Certificate, float, float]:
        start = time.perf_counter()
        first: list[float] = []
        problem = Subproblem("benchmark", network, method, settings)
        if method in TORUS_METHODS:
            found = solve_frequency(problem, report=lambda *_: first.append(time.perf_counter() - start))
            certificate = checked(problem, found)
        else:
            certificate = solve(problem)
        total = time.perf_counter() - start
        return certificate, first[0] if first else 0.0, total

    runs: list[tuple[Certificate, float, float]] = []
    harness.timed(lambda: runs.append(once()), repeat)
    certificate = runs[-1][0]
    return {
        "method": method,
        "bound": certificate.bound,
        "closed": certificate.figures.get("closed_form"),
        "iterations": certificate.iterations,
        "status": certificate.status.value,
        "figures": dict(certificate.figures),
        "closed_seconds": harness.median([first for _, first, _ in runs]) if method in TORUS_METHODS else None,
        "optimising": harness.median([total - first for _, first, total in runs]),
        "seconds": harness.median([total for _, _, total in runs]),
        "all_seconds": [total for _, _, total in runs],
        "tori": tori(network) if method in TORUS_METHODS else None,
        "time_limit": settings.time_limit,
    }


def tori(network: Network) -> str | None:
    """Sides of the tori, finest first."""
    try:
        return " → ".join(str(sides[0]) for sides in lay_out(network).tori)
    except PlanError:
        return None


def compared(name: str, row: Row, *, short: bool) -> Row:
    """A row with what others give beside it."""
    known = references(name, short=short)
    ratios = {f"of_{key}": row["bound"] / known[key] for key in ("product", "liplt", "eclipse") if known.get(key)}
    return {"network": name, **row, **ratios, "glipsdp": known.get("glipsdp"), "lower": known["lower"], "known": known}


def judged(row: Row, missed: list[str]) -> Row:
    """A row with its verdict."""
    if row["lower"] > row["bound"]:
        missed = ["below an attained quotient", *missed]
    return {**row, "verdict": "FAIL: " + ", ".join(missed) if missed else "pass"}


def chain(name: str, how: str, repeat: int, *, short: bool) -> Row:
    """A published chain on one torus, or by the hybrid method."""
    network, target = network_of(name), CHAINS[name]
    missed = []
    if how == "hybrid":
        limit = 10.0 if short else LIMIT
        row = certify(network, "hybrid", Settings(time_limit=limit), repeat)
        asked = target.hybrid_below
        if not row["bound"] < asked:
            missed.append(f"not below {asked}")
    else:
        wide = how == "torus 16"
        row = certify(enlarged(network) if wide else network, "frequency", Settings(), repeat)
        asked = target.at_most
        if row["bound"] > asked:
            missed.append(f"above {asked}")
        if wide and target.optimum is not None and row["bound"] < target.optimum - 1e-6:
            missed.append(f"below the optimum {target.optimum}")
        if row["optimising"] > target.seconds:
            missed.append(f"more than {target.seconds:.0f} s")
    return judged({**compared(name, row, short=short), "asked": asked}, missed)


def trained(name: str, repeat: int) -> Row:
    """A chain of ``benchmarks/data``: does the optimiser converge, and how fast."""
    row = certify(network_of(name), "frequency", Settings(time_limit=CONVERGES_IN), repeat)
    missed = [] if row["status"] == Status.CONVERGED.value else ["not converged"]
    return judged(compared(name, row, short=False), missed)


def whole(name: str, method: str, repeat: int, *, short: bool) -> Row:
    """A published network with dense layers."""
    target = WHOLE[name]
    row = certify(network_of(name), method, Settings(time_limit=LIMIT), repeat)
    missed = [] if row["bound"] < target.at_most else [f"not below {target.at_most}"]
    return judged({**compared(name, row, short=short), "asked": target.at_most}, missed)


def residual(name: str, repeat: int, *, short: bool) -> Row:
    """The fully connected ResNet: full LipSDP."""
    target = RESIDUAL[name]
    row = certify(network_of(name), "ellipsoid", Settings(), repeat)
    missed = [] if row["bound"] <= target.at_most else [f"above {target.at_most}"]
    if target.optimum is not None and row["bound"] < target.optimum * (1.0 - 1e-6):
        missed.append(f"below the optimum {target.optimum}")
    return judged({**compared(name, row, short=short), "asked": target.at_most}, missed)


def digits(how: str, repeat: int, results: harness.Results) -> Row:
    """Full LipSDP on ``digits_deep``, or a method on tori beside it."""
    name = "digits_deep"
    network = network_of(name)
    if how == "ellipsoid":
        row = certify(network, how, Settings(), repeat)
        missed = [] if row["status"] == Status.CONVERGED.value else ["not converged"]
        return judged(compared(name, row, short=False), missed)
    full = results.rows.get(f"{name} ellipsoid")
    if full is None:
        full = certify(network, "ellipsoid", Settings(), repeat)
    limited = how == "hybrid 1/20"
    limit = full["seconds"] / SHORTER if limited else None
    row = certify(network, how.split(maxsplit=1)[0], Settings(time_limit=limit), repeat)
    row |= {"method": how, "of_lipsdp": row["bound"] / full["bound"], "faster": full["seconds"] / row["seconds"]}
    missed = []
    # The final proof comes after the limit, and takes milliseconds.
    if limited and (row["of_lipsdp"] > LOOSER or row["faster"] < 0.95 * SHORTER):
        missed.append(f"{row['of_lipsdp']:.3f} of full LipSDP, {row['faster']:.1f} times faster")
    return judged(compared(name, row, short=False), missed)


def work(results: harness.Results, *, short: bool) -> dict[str, tuple[str, Callable[[], Row]]]:
    """What there is to measure: per row the network it needs, and how."""
    repeat = results.repeat
    found: dict[str, tuple[str, Callable[[], Row]]] = {}
    for name, target in CHAINS.items():
        ways = ("torus 15", "torus 16", "hybrid") if target.hybrid_below < math.inf else ("torus 15", "torus 16")
        for how in ways:
            found[f"{name} {how}"] = name, partial(chain, name, how, repeat, short=short)
    for name in TRAINED:
        found[f"{name} frequency"] = name, partial(trained, name, repeat)
    for name in RESIDUAL:
        found[name] = "FC-R18", partial(residual, name, repeat, short=short)
    for name in WHOLE:
        for method in TORUS_METHODS:
            found[f"{name} {method}"] = name, partial(whole, name, method, repeat, short=short)
    for how in ("ellipsoid", "frequency", "hybrid", "hybrid 1/20"):
        found[f"digits_deep {how}"] = "digits_deep", partial(digits, how, repeat, results)
    return found


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("The methods on tori: tightness and rounds.").parse_args()
    results = harness.Results("frequency", "The methods on tori: tightness and rounds", COLUMNS, options, NOTES)
    jobs = work(results, short=options.short)
    for key, (name, measure) in jobs.items():
        folder = DATA if name in (*TRAINED, "digits_deep") else reader.FOLDER
        if not (folder / f"{name}.safetensors").is_file():
            results.skip(key, "the published networks are not here (see LIPRAY_NETWORKS)")
        elif not options.short or key in SHORT:
            results.row(key, measure)
    return results.close(tuple(jobs))


if __name__ == "__main__":
    sys.exit(main())

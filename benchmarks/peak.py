"""Which share of the machine's matrix-product peak the recursion on tori reaches, and where it does not.

    .venv/bin/python benchmarks/peak.py [--only "512 channels"] [--short]

Needs nothing but the repository; every network is measured in a process of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import harness
import numpy as np
import torch
from apart import apart
from harness import ROOT, Column, Row
from operations import counted, matrix_peak

from lipray.certify.frequency.bundle import in_place
from lipray.certify.frequency.objective import pull_back
from lipray.certify.frequency.start import closed_start
from lipray.model.load import load_network
from lipray.model.network import Activation, Network
from lipray.verify.cuts import sub_network
from lipray.verify.spectral import largest_eigenvalues_bound
from lipray.verify.torus.elimination import eliminate_level
from lipray.verify.torus.groups import frequencies_of
from lipray.verify.torus.levels import lower_level
from lipray.verify.torus.proof import Means, Multipliers, Setup, bundles, perform, set_up
from lipray.verify.torus.sweep import by_level, chunk

LEAST = 0.30
"""Share of the peak that is asked for."""

MEMORY = 4 * 2**30
NETWORKS = ("resnet18 32", "resnet18 32 trained", "512 channels")
SHORT = ("resnet18 32 trained",)

COLUMNS = (
    Column("network", "network"),
    Column("what", "what"),
    Column("Gop", "giga", lambda value: f"{value:,.1f}"),
    Column("s", "seconds", harness.seconds),
    Column("Gop/s", "rate", lambda value: f"{value:.1f}"),
    Column("peak, Gop/s", "machine", lambda value: f"{value:.1f}"),
    Column("share", "share", lambda value: f"{value:.1%}"),
    Column("in products", "products", lambda value: f"{value:.0%}"),
    Column("verdict", "verdict"),
)

NOTES = f"""\
`Gop`: 10^9 real operations of the matrix kernels that are executed (products, triangular solves, Cholesky), counted
from the shapes they are called with; 8 for a complex multiply-add. Work entry by entry is not counted. `peak`: the best
product of two complex128 matrices (256 to 1536 rows) just before and after, with as many threads.

`resnet18 32`: ResNet-18 (CIFAR variant), 3x32x32; `trained`: the same at a quarter of the width. `512 channels`: the
last residual block of ResNet-18 at 3x224x224, two convolutions of 512 channels on 7x7 maps. `proof`: all frequencies
through the torus, rounding included. `gradient`: a round of the optimiser's gradients. `level`: the first bundle of a
proof on one of its tori, finest first; beside that `symbols`, the convolutions' matrices at its frequencies, and
`stage`, the proof of the largest eigenvalue at its end.

pass: `proof` and `gradient` reach at least {LEAST:.0%} of the peak (nothing is asked at a quarter of the width, where
matrices are small).
"""


def last_block() -> Network:
    """The last residual block of ResNet-18 and the ReLU after it, 512 channels on 7x7 maps."""
    network = load_network("resnet18", (3, 224, 224)).network
    maps = [i for i, node in enumerate(network.nodes) if node.shape == (512, 7, 7) and isinstance(node.op, Activation)]
    # ReLUs of the last stage: inside its first block, after it, inside the second, after it.
    return sub_network(network, maps[1], maps[3])


def peak_network(name: str) -> Network:
    """A network by its name here."""
    if name == "512 channels":
        return last_block()
    weights = ROOT / "examples" / "resnet18_digits32.safetensors" if name.endswith("trained") else None
    return load_network("resnet18-cifar", (3, 32, 32), weights=weights).network


def against_peak(name: str, memory: int) -> Row:
    """Rates of a proof, of its levels, and of a gradient; to be run in a process of its own."""
    machine = matrix_peak()
    setup = set_up(peak_network(name))
    means = Means(in_place, memory, 1, "cpu")
    closed = closed_start(setup, means)
    if closed is None:
        raise RuntimeError("the closed form was not proven")
    torus, _ = setup.split(closed.multipliers)
    more: Row = {"power": 8.0, "reference": closed.bound**2}
    if setup.problem.head is not None:
        more["directions"] = np.random.default_rng(0).normal(size=(setup.problem.head.rows, 1))
    parts = {
        "proof": _rate(lambda: perform(setup, torus, means)),
        "gradient": _rate(lambda: pull_back(setup, torus, means, **more)),
        **_levels(setup, torus, memory),
    }
    return {"machine": max(machine, matrix_peak()), "parts": parts, "threads": torch.get_num_threads()}


def _rate(work: Callable[[], object]) -> Row:
    """Count, and then time without counting."""
    counter = counted(work)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "operations": counter.total, "products": counter.operations.get("product", 0.0)}


def _levels(setup: Setup, torus: Multipliers, memory: int) -> dict[str, Row]:
    """Each level of the first bundle of a proof by itself, as a sweep goes through it."""
    problem, sides = setup.problem, setup.problem.torus.sides
    bundle = bundles(setup, torus, Means(memory=memory))[0]
    frequencies = frequencies_of([group for group, _ in bundle.groups], sides)
    per_level = by_level(problem, [torch.from_numpy(lam) for lam in torus])
    shape: torch.Tensor | None = None
    parts: dict[str, Row] = {}
    for index, side in enumerate(sides):
        folded = problem.torus.folded(index)
        step = chunk(problem, index, folded) * folded
        label = f"level {index + 1}, torus {side[0]}"
        pieces: list[torch.Tensor] = []
        for start in range(0, frequencies[index][0].shape[0], step):
            part = slice(start, start + step)
            own = tuple(axis[part] for axis in frequencies[index])
            lower = partial(lower_level, problem.network, problem.torus, problem.handed, index, own)
            level, arrived = lower(), None if shape is None else shape[part]
            eliminate = partial(eliminate_level, level, arrived, per_level[index], folded=folded, proof=True)
            factor = eliminate()
            if factor is None:
                raise RuntimeError("the closed form was not proven")
            pieces.append(factor.gram)
            _add(parts, label, _rate(eliminate))
            _add(parts, f"{label}: symbols", _rate(lower))
        shape = torch.cat(pieces)
        _add(parts, f"{label}: stage", _rate(partial(largest_eigenvalues_bound, shape)))
    return parts


def _add(parts: dict[str, Row], label: str, part: Row) -> None:
    known = parts.setdefault(label, dict.fromkeys(part, 0.0))
    for key, value in part.items():
        known[key] += value


def row_of(name: str, what: str, found: Row) -> Row:
    """One part of a measurement as a row."""
    part = found["parts"][what]
    rate = part["operations"] / part["seconds"]
    row = {"network": name, "what": what, "giga": part["operations"] / 1e9, "seconds": part["seconds"]}
    row |= {"rate": rate / 1e9, "machine": found["machine"] / 1e9, "share": rate / found["machine"]}
    row["products"] = part["products"] / max(part["operations"], 1.0)
    if what in {"proof", "gradient"} and name not in SHORT:
        low = row["share"] < LEAST
        row["verdict"] = f"FAIL: less than {LEAST:.0%} of the peak" if low else "pass"
    return row


def measure(name: str) -> Row:
    """The row of the proof, with all that was measured besides."""
    found = apart(against_peak, name=name, memory=MEMORY)
    return {**row_of(name, "proof", found), "found": found}


def main() -> int:
    """Run the benchmark; the exit code says whether a row failed."""
    options = harness.arguments("Share of the machine's matrix-product peak.").parse_args()
    results = harness.Results("peak", "Share of the machine's matrix-product peak", COLUMNS, options, NOTES)
    keys: list[str] = []
    for name in NETWORKS:
        key = f"{name}: proof"
        if not options.short or name in SHORT:
            results.row(key, partial(measure, name))
        keys.append(key)
        if key not in results.rows:
            continue
        row = results.rows[key]
        for what in row["found"]["parts"]:
            if what != "proof":
                results.derive(f"{name}: {what}", row_of(name, what, row["found"]), like=row)
                keys.append(f"{name}: {what}")
    return results.close(keys)


if __name__ == "__main__":
    sys.exit(main())

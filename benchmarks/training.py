"""Certified accuracy on digits: Lipschitz-aware training beside plain training, and what each bound adds.

    python benchmarks/training.py [--short] [--only TEXT] [--fresh]

Every network is trained by ``lipray.train`` and certified by ``lipray certify`` with its attack; a certified image that
the attack broke would end the benchmark. Two networks are trained at a time, one thread each. ``--short`` is the table
of digits alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness
from harness import ROOT, Column, Results, Row

SEEDS = (0, 1, 2)
RADII = (0.1, 0.25, 0.5)
ASKED = {"clean": 0.97, "0.1": 0.95, "0.25": 0.88, "0.5": 0.57, "gap": 1.25}
"""Least accuracies, and the largest ratio of upper to lower bound, that EMMA is to reach."""

DIGITS: dict[str, dict[str, Any]] = {
    "emma": {"loss": "emma"},
    "cross-entropy": {"loss": "cross-entropy", "learning_rate": 2e-3, "epochs": 30},
}
GENERATED = {"data": str(ROOT / "examples" / "generated_digits.npz"), "ratio": (1, 3)}
WITH_GENERATED: dict[str, dict[str, Any]] = {
    "emma, long": {"loss": "emma", "epochs": 240},
    "emma, generated": {"loss": "emma", "generated": GENERATED, "batch": 200},
}
"""As many images, all real, as with three generated ones beside each."""

LOSSES: dict[str, dict[str, Any]] = {
    "gloro": {"loss": "gloro"},
    "trades": {"loss": "trades"},
    "margin": {"loss": "margin"},
}
BOUNDS = ("product", "liplt", "closed-form", "optimised")
PLAIN: dict[str, Any] = {"model": f"{ROOT}/examples/digits_cnn.py:digits_cnn", "epochs": 40}
CERTIFIED_BY: dict[str, dict[str, Any]] = {
    "product": {"method": "product"},
    "LipLT": {"method": "liplt"},
    "closed form": {"method": "frequency", "iterations": 0},
    "frequency": {"method": "frequency"},
    "hybrid": {"method": "hybrid"},
}
COLUMNS = (
    Column("what", "what"),
    Column("clean", "clean", lambda value: f"{value:.1%}"),
    *(Column(f"certified at {radius:g}", f"{radius:g}", lambda value: f"{value:.1%}") for radius in RADII),
    *(Column(f"not broken at {radius:g}", f"attack {radius:g}", lambda value: f"{value:.1%}") for radius in RADII),
    Column("upper", "upper", lambda value: f"{value:.4g}"),
    Column("upper ÷ lower", "gap", lambda value: f"{value:.3f}"),
    Column("training, s", "seconds", lambda value: f"{value:.0f}"),
    Column("step, ms", "step", lambda value: f"{value:.1f}"),
    Column("certified by", "by"),
    Column("verdict", "verdict"),
)
NOTES = f"""
`certified at r`: share of the 450 test images that are classified correctly and certified at l2 radius r, pixels in
[0, 1], by the verified constants of `lipray certify`. `not broken at r`: correct, and the attack (projected gradient,
several restarts) found no other class within r. `upper`: the verified constant of the map to the logits; `lower`: what
a pair of points attains. `step`: training time over the number of steps of batches of 50 (200 with generated images);
one thread, another training beside it. Rows of the three seeds are followed by mean and standard deviation.

emma: LiResNet of width 16, radius 0.5 ramped to 0.75, `lipray train` with its defaults; cross-entropy: the same network
without a constant in the loss. `emma, generated`: three generated digits beside every real one
(`examples/generate_digits.py`), as many steps as emma, of four times the images; `emma, long`: as many images as that,
in four times the steps, all real. `bound` rows: the plain network of
`examples/digits_cnn.py` trained by EMMA with that bound's constants, and certified by five ways.

pass: the mean of the seeds is at least {ASKED["clean"]:.0%} clean and {ASKED["0.1"]:.0%}, {ASKED["0.25"]:.0%} and
{ASKED["0.5"]:.0%} certified at radius 0.1, 0.25 and 0.5, upper ÷ lower at most {ASKED["gap"]}.
"""


def train(options: Mapping[str, Any]) -> tuple[str, Row]:
    """Train one network in this process: its weights in a file, and what it took."""
    import torch

    from lipray.train.config import make_train_config
    from lipray.train.session import run_training

    torch.set_num_threads(1)
    config = make_train_config({"threads": 1, **options}, "benchmark")
    folder = Path(tempfile.mkdtemp(prefix="lipray-bench-")) / "run"
    trained = run_training(config, out=folder)
    seconds = sum(row["seconds"] for row in trained.rows)
    steps = config.epochs * (1347 // (config.batch if config.generated is None else config.batch // 4))
    return str(folder), {"seconds": seconds, "step": 1e3 * seconds / steps}


def certify(model: str, folder: str, by: Mapping[str, Any], *, attacked: bool = True) -> Row:
    """Certify one network on the test images."""
    import torch

    from lipray.config import make_config
    from lipray.data.read import read_data
    from lipray.model.load import load_network
    from lipray.robust.attack import AttackOptions
    from lipray.robust.certify import certify_network
    from lipray.robust.radius import parse_radius

    torch.set_num_threads(1)
    data = read_data("digits", "test")
    network = load_network(model, data.shape, weights=Path(folder) / "model.safetensors").network
    config = make_config({"executor": "serial", "threads": 1, "time_limit": 120, **by}, keywords=True)
    radii = [parse_radius(radius) for radius in RADII]
    began = time.perf_counter()
    found = certify_network(network, data, config, radii=radii, attacked=AttackOptions() if attacked else None)
    row: Row = {
        "clean": float(found.correct.mean()),
        "upper": found.constants.upper,
        "gap": found.constants.upper / found.constants.lower if found.constants.lower > 0 else None,
        "certifying": time.perf_counter() - began,
    }
    for radius, at in zip(radii, found.at, strict=True):
        row[f"{float(radius):g}"] = at.verified
        if attacked:
            row[f"attack {float(radius):g}"] = at.empirical
    return row


def by_liplt(model: str, folder: str) -> Row:
    """The same by LipLT of what comes before the head: rounded outward, and no method of ``lipray certify``."""
    import numpy as np
    import torch

    from lipray.certify.product import liplt
    from lipray.data.read import read_data
    from lipray.model.evaluate import prepare
    from lipray.model.load import load_network
    from lipray.robust.classifier import as_classifier, head_of
    from lipray.robust.constants import head_constants
    from lipray.robust.radii import certified_radii, logits
    from lipray.verify.product import sector_form

    data = read_data("digits", "test")
    loaded = load_network(model, data.shape, weights=Path(folder) / "model.safetensors").network
    network, _ = as_classifier(loaded, "network")
    head = head_of(network)
    if head is None or head.before is None:
        raise ValueError(f"{model} has no head")
    form = sector_form(head.before)
    if form is None:
        raise ValueError(f"{model} is too large for LipLT")
    values = logits(network, prepare(network), torch.from_numpy(data.x.astype(np.float64)))
    found = certified_radii(*values, head_constants(head.weight, liplt(form)))
    correct = found.predictions == data.y
    row: Row = {"clean": float(correct.mean())}
    return row | {f"{radius:g}": float((correct & (found.radii >= radius)).mean()) for radius in RADII}


def digits(name: str, options: Mapping[str, Any], seed: int) -> Row:
    """One network of the digits table."""
    folder, took = train({**options, "seed": seed})
    return {
        "what": f"{name}, seed {seed}",
        **took,
        **certify("liresnet-digits", folder, {"method": "product"}),
        "by": "product",
    }


def bound(kind: str) -> list[Row]:
    """The plain network trained with one bound, certified by all."""
    folder, took = train({**PLAIN, "bound": kind})
    rows: list[Row] = []
    for name, by in CERTIFIED_BY.items():
        found = (
            by_liplt(PLAIN["model"], folder)
            if name == "LipLT"
            else certify(PLAIN["model"], folder, by, attacked=name == "product")
        )
        rows.append({"what": f"bound {kind}", **took, **found, "by": name})
    return rows


def epoch_on_gpu() -> Row:
    """One epoch of the paper's CIFAR-10 network on random images of CIFAR's shape, real ones only."""
    import numpy as np
    import torch

    from lipray.data.labelled import labelled
    from lipray.train.alone import Alone
    from lipray.train.build import build_module
    from lipray.train.config import make_train_config
    from lipray.train.loop import Work, run_loop

    rng = np.random.default_rng(0)
    data = labelled(rng.random((50_000, 3, 32, 32), dtype=np.float32), np.arange(50_000) % 10, "random images")
    values = {
        "model": "liresnet",
        "batch": 256,
        "epochs": 2,
        "radius": "36/255",
        "bound_steps": 10,
        "learning_rate": 1e-3,
    }
    config = make_train_config(values, "benchmark")
    work = Work(config, build_module(config, data), data, None, data.take(slice(1000)))
    rows = run_loop(work, Alone(None, torch.device("cuda"), lambda _: None))
    seconds = rows[-1]["seconds"]
    return {"what": "an epoch of CIFAR-10's LiResNet", "seconds": seconds, "step": 1e3 * seconds / 195}


def spread(rows: Sequence[Row], name: str) -> Row:
    """Mean and standard deviation over the seeds, as one row of means with the deviations in its verdict."""
    accuracies = [*(f"{radius:g}" for radius in RADII), *(f"attack {radius:g}" for radius in RADII)]
    keys = ["clean", *accuracies, "upper", "gap", "seconds", "step"]
    means = {
        key: statistics.mean(row[key] for row in rows) for key in keys if all(row.get(key) is not None for row in rows)
    }
    deviations = [
        f"{key} {100 * statistics.stdev(row[key] for row in rows):.1f}" for key in ("clean", *(f"{r:g}" for r in RADII))
    ]
    told = f"deviation, points: {', '.join(deviations)}"
    if name == "emma":
        missed = [key for key, least in ASKED.items() if (means[key] > least if key == "gap" else means[key] < least)]
        told = f"FAIL: {', '.join(missed)}; {told}" if missed else f"pass; {told}"
    return {"what": f"{name}, mean of {len(rows)}", **means, "by": "product", "verdict": told}


def main() -> int:
    """Fill the tables."""
    parser = harness.arguments((__doc__ or "").splitlines()[0])
    options = parser.parse_args()
    results = Results(
        "training",
        "Certified accuracy on digits",
        COLUMNS,
        options,
        NOTES,
        parts=(*harness.MEASURED, "data", "robust", "train"),
    )
    order: list[str] = []
    with pool() as workers:
        kinds = dict(DIGITS) if options.short else {**DIGITS, **WITH_GENERATED, **LOSSES}
        seeded(results, workers, kinds, order, options)
        if not options.short:
            by_bound(results, workers, order)
            gpu = "epoch of CIFAR-10's LiResNet"
            order.append(gpu)
            if cuda():
                results.row(gpu, epoch_on_gpu)
            else:
                results.skip(gpu, "torch sees no GPU")
    return results.close(order)


def seeded(
    results: Results,
    workers: ProcessPoolExecutor,
    kinds: Mapping[str, Mapping[str, Any]],
    order: list[str],
    options: argparse.Namespace,
) -> None:
    """Three seeds of every kind of training, and their mean; two at a time."""
    waiting: dict[str, Future[Row]] = {}
    for name, how in kinds.items():
        for seed in SEEDS if name in DIGITS or not options.short else SEEDS[:1]:
            key = f"{name}, seed {seed}"
            if results.wants(key):
                waiting[key] = workers.submit(digits, name, how, seed)
    for name in kinds:
        keys = [f"{name}, seed {seed}" for seed in SEEDS]
        for key in keys:
            order.append(key)
            results.row(key, lambda key=key: waiting[key].result())
        if all(key in results.rows for key in keys):
            mean = f"{name}, mean"
            order.append(mean)
            results.derive(mean, spread([results.rows[key] for key in keys], name), results.rows[keys[-1]])


def by_bound(results: Results, workers: ProcessPoolExecutor, order: list[str]) -> None:
    """The rows of every bound, two networks at a time."""
    keys = {kind: [f"bound {kind}, {by}" for by in CERTIFIED_BY] for kind in BOUNDS}
    waiting = {kind: workers.submit(bound, kind) for kind in BOUNDS if any(results.wants(key) for key in keys[kind])}
    for kind in BOUNDS:
        order.extend(keys[kind])
        if kind in waiting:
            for key, row in zip(keys[kind], waiting[kind].result(), strict=True):
                results.row(key, lambda row=row: row)


def cuda() -> bool:
    """Whether there is a GPU."""
    import torch

    return torch.cuda.is_available()


def pool() -> ProcessPoolExecutor:
    """Two processes of one thread each."""
    os.environ |= dict.fromkeys(harness.THREAD_VARIABLES, "1")
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


if __name__ == "__main__":
    sys.exit(main())

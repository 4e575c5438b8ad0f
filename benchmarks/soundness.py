"""Soundness on random networks: every verified bound against the strongest lower bounds at hand.

    .venv/bin/python benchmarks/soundness.py [--count 10000] [--workers 4] [--executor serial] [--report] [--short]

Every network has a number, and whatever is drawn for it follows from that number: its layers and weights, trained or
not, and the options of the estimate. Each is estimated, its certificate is written, read back from its bytes and
verified, and the verified bound is compared with what pairs of points attain, with the worst slopes that the relaxation
allows, with the product of the blocks' product bounds, and with the bound that was printed.

One line per network goes to ``runs/soundness.jsonl`` as soon as it is done, so a campaign that was interrupted goes on
where it stopped; networks done with other code are done again. ``--report`` only makes the tables, ``--number 17`` does
one network and shows what came of it. The exit code is 1 if there was a violation or a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import numpy as np
import torch
from harness import ROOT, Column, Row
from soundness_networks import draw_network, layer_kinds

from lipray.certify.certificate import Status
from lipray.config import EstimateConfig, make_config
from lipray.errors import LiprayError, PlanError, UsageError
from lipray.model.evaluate import evaluate, prepare
from lipray.model.network import Network, Softmax
from lipray.run.driver import RunOutcome, estimate_network
from lipray.run.lower_bound import ascend, attained, best, plan_ascents
from lipray.run.serial import SerialExecutor
from lipray.run.session import certificate_files, select_outputs
from lipray.run.verification import select
from lipray.verify.check import TOLERANCE, Verdict, verify
from lipray.verify.outward import product_up
from lipray.verify.record import ARRAYS, NAME, CertificateRecord, decode, expected_arrays, unpack
from lipray.verify.torus.layout import torus_cuts

sys.path.append(str(ROOT))
from tests.slopes import worst_slopes  # the tests' own lower bound, which uses none of lipray's matrices

CODE = (*harness.MEASURED, "verify")
"""Parts of lipray that a line depends on."""
LINES = 1
"""To be raised when this script puts something else into a line."""
WAYS = {"metric": 0.4, "diagonal": 0.3, "overlap": 0.2, "sum": 0.1}
"""Compositions, and how often they are drawn."""
METHODS = {"auto": 0.24, "ellipsoid": 0.24, "frequency": 0.13, "hybrid": 0.15, "product": 0.18, "sdp": 0.06}
SDP_NEURONS = 24
"""Most neurons of a network that is given to the semidefinite solver."""
TIME_LIMIT = 3.0
"""Seconds for one sub-problem, reached by next to none."""
STARTS, STEPS, SHORT = 6, 10, 40
SCALES, SEPARATIONS = (0.01, 0.3, 3.0, 100.0), (1e-3, 0.1, 2.0)
"""Sizes of random points, and their distances as parts of that."""
SLOPE_SHARE = 0.7
"""Share of the networks that are set against the worst slopes as well."""

COLUMNS = (
    Column("method", "method"),
    Column("networks", "networks", harness.count),
    Column("violations", "violations", harness.count),
    Column("failures", "failure", harness.count),
    Column("infinite", "infinite", harness.count),
    Column("options redrawn", "refused", harness.count),
    Column("attained / verified, median", "median", harness.ratio),
    Column("largest", "most", lambda value: f"{value:.12f}"),
    Column("worst slopes / verified, median", "slopes", harness.ratio),
    Column("largest", "most_slopes", lambda value: f"{value:.12f}"),
    Column("verified / product, median", "of_product", harness.share),
    Column("s, median", "median_seconds", harness.seconds),
    Column("CPU, s", "cpu", lambda value: f"{value:,.0f}"),
    Column("verdict", "verdict"),
)

NOTES = f"""\
`verified`: what `lipray verify` recomputes from the bytes of the certificate. `attained`: by the best pair of points
found, less its rounding. `worst slopes`: the norm with the worst slopes and selections that the relaxation allows,
which no bound of these methods is below ({SLOPE_SHARE:.0%} of the networks). `product`: of the blocks' product bounds.
`violations`: verified, or a figure that was printed beside it, below attained or worst slopes; verified above the
product, or another number than was printed (where `memory` is given, by more than {TOLERANCE:.0e} of it).
`failures`: exceptions other than a refusal of options that do not suit the network, after which others are drawn.
`infinite`: no finite bound. `method`: as asked for; `auto` chooses. `s`: drawing, lower bounds and all.
"""


def code() -> str:
    """Hash of all that a line depends on."""
    digest = hashlib.sha256(f"{LINES}".encode())
    paths = [path for part in sorted(set(CODE)) for path in sorted((ROOT / "lipray" / part).rglob("*.py"))]
    for path in (*paths, Path(__file__).with_name("soundness_networks.py"), ROOT / "tests" / "slopes.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def draw_options(draw: np.random.Generator, network: Network) -> Row:
    """Options of an estimate; not all of them suit every network."""
    method = str(draw.choice(list(METHODS), p=list(METHODS.values())))
    if method == "sdp" and network.neurons > SDP_NEURONS:
        method = "ellipsoid"
    iterations = (None, 0, 0, 0, 3, 3)[draw.integers(6)]
    options: Row = {"method": method, "iterations": iterations}
    if draw.random() < (0.1 if method in {"frequency", "hybrid"} else 0.5):
        options["partition_factor"] = int(draw.integers(1, 5))
    options["composition"] = str(draw.choice(list(WAYS), p=list(WAYS.values())))
    options["block_depth"] = (None, None, None, 1, 2, 3)[draw.integers(6)]
    options["tolerance"] = 1e-6 if draw.random() < 0.8 else 1e-3
    if draw.random() < 0.1:
        options["memory"] = int(2.0 ** draw.uniform(16.0, 22.0))
    if method in {"auto", "hybrid"} and draw.random() < 0.5:
        cuts = torus_cuts(network)
        options["switch"] = network.nodes[int(draw.choice(cuts))].name if cuts and draw.random() < 0.7 else "none"
    if options["block_depth"] and method in {"auto", "frequency", "hybrid"}:
        options["chain"] = (None, True, False)[draw.integers(3)]
    options.update(_outputs(draw, network))
    return {name: value for name, value in options.items() if value is not None}


def _outputs(draw: np.random.Generator, network: Network) -> Row:
    size, last = network.output_shape[0], network.nodes[-1].op
    if len(network.output_shape) != 1 or draw.random() < 0.6 or (isinstance(last, Softmax) and not last.log):
        return {}
    if not isinstance(last, Softmax) and (size == 1 or draw.random() < 0.5):
        rows = draw.choice(size, size=draw.integers(1, size + 1), replace=False)
        return {"output_rows": tuple(int(row) for row in rows)}
    pairs = (draw.choice(size, size=2, replace=False) for _ in range(draw.integers(1, 4) if size > 1 else 0))
    return {"pairs": tuple((int(i), int(j)) for i, j in pairs)}


def examine(number: int) -> Row:
    """The line of one network."""
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    row: Row = {"number": number}
    try:
        network, facts = draw_network(number)
        row |= {**facts, "neurons": network.neurons, "layers": layer_kinds(network)}
        _examine(row, network, np.random.default_rng([number, 21]))
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is what the campaign looks for
        why = fault.describe() if isinstance(fault, LiprayError) else str(fault)
        row |= {"failure": f"{type(fault).__name__}: {why}"[:500], "trace": traceback.format_exc()[-3000:]}
    return {**row, "seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def _examine(row: Row, network: Network, draw: np.random.Generator) -> None:
    """Estimate, write, read, verify and compare, into the line."""
    chosen, config, outcome = _estimate(row, network, draw)
    blocks = outcome.bound.blocks
    row |= {"upper": outcome.bound.upper, "sources": [block.source for block in blocks]}
    row["tiles"] = max(block.subproblems for block in blocks)
    row["fallbacks"] = sum(item.kind == Status.FALLBACK.name for item in outcome.failures)
    if len(outcome.failures) > row["fallbacks"]:
        row["failure"] = "; ".join(f"{item.task.label}: {item.kind}: {item.why}" for item in outcome.failures)[:500]
    row["attained"] = _attained(chosen, draw)
    row["slopes"] = _slopes(chosen, int(draw.integers(2**16))) if draw.random() < SLOPE_SHARE else None
    files = certificate_files(chosen, config, outcome)
    if files is None:
        row["infinite"] = True
        return
    verdict, record = _verify(network, files)
    parts = [block.alternatives["product"] for block in blocks]
    row |= {"verified": verdict.bound, "product": product_up(parts), "proofs": [p.kind for p in record.problems]}
    row["violations"] = violations(row, outcome.bound.figures)
    for number, (bound, product) in enumerate(zip(verdict.blocks, parts, strict=True), start=1):
        if not bound <= product:
            row["violations"].append(f"block {number}: {bound!r} is above its product, {product!r}")


def _estimate(row: Row, network: Network, draw: np.random.Generator) -> tuple[Network, EstimateConfig, RunOutcome]:
    """An estimate with options drawn until they suit the network."""
    row["refused"] = []
    while True:
        options = draw_options(draw, network)
        row["options"] = options
        try:
            config = make_config({**options, "lower_starts": 0, "time_limit": TIME_LIMIT}, keywords=True)
            chosen = select_outputs(network, config)
            return chosen, config, estimate_network(chosen, config, SerialExecutor(1))
        except (PlanError, UsageError) as fault:
            row["refused"].append(f"{type(fault).__name__}: {fault.args[0]}")
            if len(row["refused"]) == 30:
                raise


def _verify(network: Network, files: tuple[bytes, bytes]) -> tuple[Verdict, CertificateRecord]:
    """What a certificate's bytes prove of the whole network."""
    record = decode(NAME, files[0])
    if hashlib.sha256(files[1]).hexdigest() != record.arrays:
        raise ValueError("the arrays are not those that the certificate names")
    arrays = unpack(ARRAYS, files[1], expected_arrays(record))
    return verify(record, arrays, select(network, record.selection)), record


def _attained(network: Network, draw: np.random.Generator) -> float:
    """The best of an ascent on pairs and of random pairs at several scales, less its rounding."""
    tasks = plan_ascents(network, starts=STARTS, seed=int(draw.integers(2**31)))
    witness = best({task.label: ascend(replace(task, steps=STEPS)) for task in tasks})
    shape, weights = network.input_shape, prepare(network)
    sizes = [(scale, scale * part) for scale in SCALES for part in SEPARATIONS]
    points = np.concatenate([scale * draw.normal(size=(4, *shape)) for scale, _ in sizes])
    others = points + np.concatenate([step * draw.normal(size=(4, *shape)) for _, step in sizes])
    x, y = torch.from_numpy(points), torch.from_numpy(others)
    apart = (evaluate(network, x, weights) - evaluate(network, y, weights)).flatten(1).norm(dim=1)
    top = int(torch.argmax(torch.nan_to_num(apart / (x - y).flatten(1).norm(dim=1))))
    return max(0.0 if witness is None else witness.quotient, attained(network, points[top], others[top]))


def _slopes(network: Network, seed: int) -> float:
    """The norm with the worst slopes found, which no bound of the relaxation is below, less its rounding."""
    last = network.nodes[-1]
    factor = 1.0 if not isinstance(last.op, Softmax) else math.sqrt(last.size) if last.op.log else 0.5
    return factor * worst_slopes(network, seed, starts=1, sweeps=3) * (1.0 - 1e-12) - 1e-14


def violations(row: Row, figures: Mapping[str, float]) -> list[str]:
    """What is not as it must be: of the verified bound, and of the ``figures`` that other ways would have given."""
    verified, lower, slopes = row["verified"], row["attained"], row["slopes"] or 0.0
    # How frequencies are bundled, and so the order in which they are added up, depends on the memory allowed.
    slack = row["upper"] * TOLERANCE if "memory" in row["options"] else 0.0
    found = [f"{verified!r} is not what was printed, {row['upper']!r}"] if abs(verified - row["upper"]) > slack else []
    if not verified <= row["product"]:
        found.append(f"{verified!r} is above the product of the blocks, {row['product']!r}")
    for name, value in {"verified": verified, **figures}.items():
        if not lower <= value:
            found.append(f"{name}: {value!r} is below what is attained, {lower!r}")
        if not slopes <= value:
            found.append(f"{name}: {value!r} is below the worst slopes, {slopes!r}")
    return found


def over_ray(numbers: Sequence[int], workers: int | None) -> Iterator[Row]:
    """Lines as they come from an embedded Ray, one network per task."""
    from lipray.run.ray.cluster import connect

    # Workers find the modules of this script where it did.
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).resolve().parent), str(ROOT)))
    cluster = connect(None, workers=workers, threads=1)
    try:
        import ray

        task = ray.remote(num_cpus=1, max_retries=1)(examine)
        width = 2 * int(ray.cluster_resources()["CPU"])
        waiting: dict[Any, int] = {}
        left = deque(numbers)
        while left or waiting:
            while left and len(waiting) < width:
                number = left.popleft()
                waiting[task.remote(number)] = number
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as fault:
                why = str(fault).strip().splitlines()[0][:300]
                yield {"number": number, "failure": f"{type(fault).__name__}: {why}", "seconds": 0.0}
    finally:
        cluster.close()


def read(path: Path, identity: str | None) -> dict[int, Row]:
    """The lines of some code (``None``: that of the last line), by number; one that was cut off does not count."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    identity = rows[-1]["code"] if rows and identity is None else identity
    return {row["number"]: row for row in rows if row["code"] == identity}


def campaign(path: Path, numbers: Sequence[int], options: argparse.Namespace) -> None:
    """Do what is not on file yet, a line each."""
    identity = code()
    left = sorted(set(numbers).difference({} if options.fresh else read(path, identity)))
    print(f"soundness: {len(numbers) - len(left)} of {len(numbers)} networks done before", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = spoken = time.perf_counter()
    with path.open("w" if options.fresh else "a", encoding="utf-8") as stream:
        stream.write("" if options.fresh else "\n")  # a line that was cut off ends here
        lines = map(examine, left) if options.executor == "serial" else over_ray(left, options.workers)
        for done, row in enumerate(lines, start=1):
            stream.write(json.dumps({**row, "code": identity}) + "\n")
            stream.flush()
            if wrong(row):
                print(f"soundness: network {row['number']}: {wrong(row)}", flush=True)
            if time.perf_counter() - spoken > 30.0 or done == len(left):
                spoken = time.perf_counter()
                print(f"soundness: {done}/{len(left)}, {done / (spoken - start):.2f} per second", flush=True)


def wrong(row: Row) -> str:
    """What is wrong with a network's line, if anything."""
    return "; ".join([*row.get("violations", []), *([row["failure"]] if "failure" in row else [])])


def summary(method: str, rows: Sequence[Row]) -> Row:
    """One row of the table."""
    proven = [row for row in rows if row.get("verified", 0.0) > 0.0]
    tight = [row["attained"] / row["verified"] for row in proven] or [0.0]
    slopes = [row["slopes"] / row["verified"] for row in proven if row["slopes"] is not None] or [0.0]
    bad = [f"network {row['number']}" for row in rows if wrong(row)]
    return {
        "method": method,
        "networks": len(rows),
        **{name: sum(bool(row.get(name)) for row in rows) for name in ("violations", "failure", "infinite", "refused")},
        "median": statistics.median(tight),
        "most": max(tight),
        "slopes": statistics.median(slopes),
        "most_slopes": max(slopes),
        "of_product": statistics.median([row["verified"] / row["product"] for row in proven] or [1.0]),
        "median_seconds": statistics.median(row["seconds"] for row in rows),
        "cpu": sum(row.get("cpu", 0.0) for row in rows),
        "verdict": "FAIL: " + ", ".join(bad[:20]) if bad else "pass",
    }


def coverage(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many networks had what."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        options, sources = row.get("options", {}), row.get("sources", ())
        had = {
            **{what: row.get(what) for what in ("family", "weights", "stored", "trained", "large")},
            **{what: options.get(what) for what in ("partition_factor", "composition", "block_depth", "chain")},
            **{what: options.get(what) for what in ("iterations", "tolerance")},
            **{what: what in options for what in ("switch", "memory", "output_rows", "pairs")},
            "blocks": len(sources),
            "tiles of a block": str(min(row.get("tiles", 0), 10)),
            "replaced by the product": row.get("fallbacks", 0) > 0,
            "worst slopes": row.get("slopes") is not None,
        }
        several = {"layers": row.get("layers"), "bounds used": sources, "proofs": row.get("proofs")}
        several |= {"options refused": row.get("refused"), **{what: [value] for what, value in had.items()}}
        for what, values in several.items():
            found.setdefault(what, Counter()).update({str(value) for value in values or ()})
    return {what: dict(sorted(names.items())) for what, names in found.items()}


def report(rows: Mapping[int, Row], options: argparse.Namespace) -> int:
    """Write the tables; 1 if anything was wrong."""
    lines = [rows[number] for number in sorted(rows)]
    covered = coverage(lines)
    span = f"Networks {lines[0]['number']} to {lines[-1]['number']}, done with code {lines[0]['code']}"
    shown = [f"- {what}: " + "; ".join(f"{name} {n:,}" for name, n in names.items()) for what, names in covered.items()]
    notes = "\n".join([NOTES, f"{span}. How many of them had what:\n", *shown, ""])
    results = harness.Results("soundness", "Soundness on random networks", COLUMNS, options, notes)
    for method in METHODS:
        if group := [row for row in lines if row.get("options", {}).get("method") == method]:
            results.row(method, partial(summary, method, group))
    results.row("all", lambda: {**summary("all", lines), "coverage": covered, "lines": span})
    return results.close((*METHODS, "all"))


def main() -> int:
    """Run the campaign, or do one network."""
    parser = argparse.ArgumentParser(description="Soundness on random networks.")
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="how many networks (default: 10000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (default: 0)")
    parser.add_argument("--executor", choices=("ray", "serial"), help="default: ray; serial with --short")
    parser.add_argument("--workers", type=int, metavar="N", help="networks at one time on Ray (default: all cores)")
    parser.add_argument("--number", type=int, metavar="N", help="do this network only, and show its line")
    parser.add_argument("--report", action="store_true", help="no networks, only the tables of what is on file")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--short", action="store_true", help=f"a smoke run: {SHORT} networks")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results, lines in runs")
    options = parser.parse_args()
    if options.number is not None:
        row = examine(options.number)
        print(row.pop("trace", ""), json.dumps(row, indent=1))
        return 1 if wrong(row) else 0
    options.executor = options.executor or ("serial" if options.short else "ray")
    path = (options.out or ROOT / "runs" / ("bench-short" if options.short else "")) / "soundness.jsonl"
    if not options.report:
        options.fresh = options.fresh or options.short
        count = min(SHORT, options.count) if options.short else options.count
        campaign(path, range(options.first, options.first + count), options)
    rows = read(path, None)
    if not rows:
        parser.error(f"there is nothing in {path}")
    return report(rows, argparse.Namespace(out=options.out, short=options.short, repeat=1, only=[], fresh=True))


if __name__ == "__main__":
    sys.exit(main())

"""Carry results into the documents: the README's tables, between their markers, and the plots of ``docs/img``.

    .venv/bin/python benchmarks/publish.py

Reads ``benchmarks/results``; what was not measured is left as it is, and said.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import harness
import matplotlib as mpl
from harness import ROOT, Column, Row

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "lipray", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})

from matplotlib import pyplot as plt  # noqa: E402 - the backend must be chosen first
from peers import pages  # noqa: E402
from peers.kept import latest  # noqa: E402
from peers.networks import CASES  # noqa: E402

from lipray.report.plots.canvas import drawing, to_file  # noqa: E402
from lipray.report.plots.lines import bound_figure  # noqa: E402
from lipray.report.series import lines_of  # noqa: E402
from lipray.run.record.sweep_records import SweepRow  # noqa: E402

README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "img"

SHOWN = {
    "fnn3_s0": "fnn3_s0, digits 64-32-32-10, row 7",
    "cnn2_s0": "cnn2_s0, conv 1-8, dense 512-10, row 7",
    "cnn3_s0": "cnn3_s0, conv 1-8-16, dense 1024-10, row 7",
    "lipsdp_mnist50": "lipsdp_mnist50, 784-50-10",
    "eclipse_mnist_n100": "eclipse_mnist_n100, 784-100-100-10",
    "mlp_L9_W16": "mlp_L9_W16, 8 layers of 16",
    "FC-R18": "FC-R18, fully connected ResNet, 18 layers",
}
"""Networks of the README's table and of its plot."""

TIGHTNESS = (
    Column("network", "shown"),
    Column("product", "product", harness.upper),
    Column("LipLT", "liplt", harness.upper),
    Column("ECLipsE-Fast", "eclipse_fast", harness.upper),
    Column("GLipSDP, published", "glipsdp", harness.number),
    Column("LipSDP-Neuron, known", "lipsdp", harness.number),
    Column("lipray", "ellipsoid", harness.upper),
    Column("attained", "lower", harness.lower),
    Column("s", "seconds", harness.seconds),
)

SPEED = (
    Column("network", "row"),
    Column("method", "method"),
    Column("bound", "bound", harness.upper),
    Column("of the product", "of_product", harness.ratio),
    Column("s", "seconds", harness.seconds),
)

TORI = {
    "chain_C3_CH8": "chain_C3_CH8, 2 convolutions of 8 channels",
    "chain_C5_CH8": "chain_C5_CH8, 4 of 8",
    "chain_C9_CH8": "chain_C9_CH8, 8 of 8",
    "chain_C5_CH16": "chain_C5_CH16, 4 of 16",
    "chain_D16_CH8": "16 of 8, trained here",
    "chain_D16_CH16": "16 of 16, trained here",
    "chain_D8_CH32": "8 of 32, trained here",
    "chain_D16_CH32": "16 of 32, trained here",
    "LeNet5_wd": "LeNet5_wd, MNIST",
    "2C2F_wd": "2C2F_wd, MNIST",
    "2C2F": "2C2F, MNIST",
    "digits_deep": "digits_deep, conv 8, 16, 16, dense",
}
"""Networks of the table of the methods on tori, and of its plot."""

FREQUENCY = (
    Column("network", "shown"),
    Column("product", "product", harness.upper),
    Column("LipLT", "liplt", harness.upper),
    Column("ECLipsE-Fast", "eclipse", harness.upper),
    Column("GLipSDP, published", "glipsdp", harness.number),
    Column("frequency", "frequency", harness.upper),
    Column("s", "seconds", harness.seconds),
    Column("hybrid", "hybrid", harness.upper),
    Column("s", "hybrid_seconds", harness.seconds),
    Column("attained", "lower", harness.lower),
)

SIZES = (
    Column("network", "network"),
    Column("weights", "weights"),
    Column("product", "product", harness.upper),
    Column("closed form", "bound", harness.upper),
    Column("of the product", "of_product", harness.share),
    Column("s", "wall", harness.seconds),
    Column("MiB", "peak", harness.mebibytes),
    Column("`--budget 20m`", "optimised", harness.upper),
    Column("of the closed form", "of_closed", harness.share),
)


def results(name: str) -> dict[str, Row]:
    """The rows of a benchmark, none where it was not run."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        print(f"{name}: not measured yet; its parts of the documents are left as they are")
        return {}
    rows: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def replace(marker: str, lines: list[str]) -> None:
    """Put lines between the README's markers of that name."""
    text = README.read_text(encoding="utf-8")
    start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
    if start not in text:
        print(f"{README.name}: no place for {marker}")
        return
    head, rest = text.split(start)
    _, tail = rest.split(end)
    README.write_text(head + start + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")
    print(f"{README.name}: {marker}")


def estimate() -> None:
    """What ``make estimate`` prints, by running its command."""
    words = [sys.executable, "-m", "lipray", "estimate", "examples/digits_cnn.py:digits_cnn"]
    words += ["--weights", "examples/digits_cnn.safetensors", "--input-shape", "1,8,8", "--quiet", "--no-store"]
    environment = {**os.environ, "COLUMNS": "118"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    replace("estimate", ["```", *lines, "```"])


def tightness() -> None:
    """The table against other methods, and its plot."""
    found = results("tightness")
    rows = {name: {**found[name], "shown": text} for name, text in SHOWN.items() if name in found}
    if not rows:
        return
    replace("tightness", harness.table(TIGHTNESS, rows))
    methods = (("product", "product", "o"), ("liplt", "LipLT", "s"), ("eclipse_fast", "ECLipsE-Fast", "^"))
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.2))
    names = list(rows)[::-1]
    for place, name in enumerate(names):
        row = rows[name]
        top = max(row[key] for key, _, _ in methods if row.get(key) is not None) / row["lower"]
        axes.plot([1.0, top], [place, place], color="0.85", zorder=1)
    for key, label, mark in methods:
        known = [(rows[n][key] / rows[n]["lower"], at) for at, n in enumerate(names) if rows[n].get(key) is not None]
        axes.scatter(*zip(*known, strict=True), marker=mark, s=28, color="0.45", label=label, zorder=2)
    ours = [rows[name]["ellipsoid"] / rows[name]["lower"] for name in names]
    axes.scatter(ours, range(len(names)), marker="D", s=38, color="C0", label="lipray, ellipsoid", zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlim(left=0.97)
    _plain_ticks(axes, (1, 1.5, 2, 3, 5, 10, 20))
    axes.set_xlabel("upper bound ÷ attained lower bound (1 is exact)")
    axes.legend(loc="best", frameon=False, fontsize=9)
    _save(figure, "tightness.svg")


def speed() -> None:
    """The table of methods and times."""
    found = results("speed")
    rows: dict[str, Row] = {}
    if "digits_small" in found:
        parts = found["digits_small"]["parts"]
        names = {
            "product": "product",
            "closed form": "ellipsoid, closed form",
            "sdp": "sdp (cvxpy, Clarabel)",
            "ellipsoid": "ellipsoid",
        }
        for part, shown in names.items():
            share = parts[part]["bound"] / parts["product"]["bound"]
            rows[part] = {**parts[part], "row": "digits_small", "method": shown, "of_product": share}
    rows |= {key: row for key, row in found.items() if row["row"] == "cnn1"}
    if rows:
        replace("speed", harness.table(SPEED, rows))


def partition() -> None:
    """The plot of bound against time."""
    found = results("partition")
    if not found:
        return
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    for name, colour in (("digits_cnn", "C0"), ("cnn1", "C1")):
        rows = [row for row in found.values() if row["network"] == name]
        whole = min((row["product"] for row in rows), default=1.0)
        for row in rows:
            at, height = row["seconds"], row["overlap"] / whole
            axes.scatter(at, height, s=36, color=colour, zorder=2)
            text = f"{row['factor']}×{row['factor']} tiles" if row["factor"] > 1 else "no tiles"
            text += "" if row["depth"] == "whole" else f", {row['depth']} per block"
            axes.annotate(text, (at, height), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.scatter([], [], s=36, color=colour, label=name)
    axes.axhline(1.0, color="0.6", linewidth=1, linestyle="--", zorder=1, label="product of layer norms")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    _plain_ticks(axes, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500))
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("seconds of all sub-problems")
    axes.set_ylabel("composed bound ÷ product")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, "partition.svg")


WAYS = {"sum": "C3", "overlap": "C1", "diagonal": "C2", "metric": "C0"}
"""Compositions and their colours, loosest first."""


def compositions() -> None:
    """The plot of what each composition gives away, a panel per block, and the table."""
    found = results("compositions")
    blocks = list(dict.fromkeys(row["block"] for row in found.values()))
    if not blocks:
        return
    figure, grid = plt.subplots(1, len(blocks), figsize=(2.4 * len(blocks), 3.2), sharey=True, squeeze=False)
    panels = list(grid[0])
    for axes, block in zip(panels, blocks, strict=True):
        rows = [row for row in found.values() if row["block"] == block]
        factors = sorted({row["factor"] for row in rows})
        for way, colour in WAYS.items():
            of_way = {row["factor"]: row["of_product"] for row in rows if row["composition"] == way}
            heights = [of_way.get(factor, math.nan) for factor in factors]
            axes.plot(range(len(factors)), heights, marker="o", color=colour, label=way)
        axes.axhline(1.0, color="0.6", linewidth=1, linestyle="--", label="product of layer norms")
        axes.axhline(rows[0]["whole"] / rows[0]["product"], color="0.2", linewidth=1, linestyle=":", label="not cut")
        axes.set_xticks(range(len(factors)), [f"{p}×{p}" for p in factors])
        axes.set_xlim(-0.5, len(factors) - 0.5)
        axes.set_yscale("log")
        axes.set_title(block, fontsize=10)
        axes.set_xlabel("tiles")
    heights = [row["of_product"] for row in found.values()] + [row["whole"] / row["product"] for row in found.values()]
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if min(heights) < tick < max(heights)]
    for axes in panels:
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(min(heights) / 1.1, max(heights) * 1.1)
    panels[0].set_ylabel("bound ÷ product")
    panels[-1].legend(frameon=False, fontsize=7)
    _save(figure, "compositions.svg")


def frequency() -> None:
    """The table of the methods on tori, and its plot."""
    found = results("frequency")
    rows: dict[str, Row] = {}
    for name, text in TORI.items():
        plain = found.get(f"{name} torus 15") or found.get(f"{name} frequency")
        if plain is None:
            continue
        hybrid = found.get(f"{name} hybrid")
        rows[name] = {**plain["known"], "shown": text, "frequency": plain["bound"], "seconds": plain["seconds"]}
        if hybrid is not None:
            rows[name] |= {"hybrid": hybrid["bound"], "hybrid_seconds": hybrid["seconds"]}
    if not rows:
        return
    picture = "![Upper bounds divided by the attained lower bound](docs/img/frequency.svg)"
    replace("frequency", [*harness.table(FREQUENCY, rows), "", picture])
    marks = (
        ("product", "product", "o", "0.45"),
        ("liplt", "LipLT", "s", "0.45"),
        ("eclipse", "ECLipsE-Fast", "^", "0.45"),
        ("glipsdp", "GLipSDP, published", "x", "0.45"),
        ("frequency", "lipray, frequency", "D", "C0"),
        ("hybrid", "lipray, hybrid", "D", "C1"),
    )
    figure, axes = plt.subplots(figsize=(7.5, 0.38 * len(rows) + 1.4))
    names = list(rows)[::-1]
    for key, label, mark, colour in marks:
        known = [(rows[n][key] / rows[n]["lower"], at) for at, n in enumerate(names) if rows[n].get(key) is not None]
        if known:
            axes.scatter(*zip(*known, strict=True), marker=mark, s=28, color=colour, label=label, zorder=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlim(left=0.97)
    axes.set_xlabel("upper bound ÷ attained lower bound (1 is exact)")
    axes.legend(loc="best", frameon=False, fontsize=9)
    _save(figure, "frequency.svg")


def sizes() -> None:
    """The table of whole networks, and the plot of what a budget gives."""
    found = results("sizes")
    rows = {key.removesuffix(" closed form"): dict(row) for key, row in found.items() if key.endswith("closed form")}
    budgets = {key.removesuffix(" budget"): row for key, row in found.items() if key.endswith("budget")}
    for name, row in rows.items():
        row.pop("of_closed", None)
        if name in budgets and "bound" in budgets[name]:
            row |= {"optimised": budgets[name]["bound"], "of_closed": budgets[name]["of_closed"]}
    if rows:
        picture = ["", "![Certified bound against time](docs/img/budget.svg)"] if budgets else []
        replace("sizes", [*harness.table(SIZES, rows), *picture])
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    drawn = 0
    for colour, (name, row) in zip(("C0", "C1", "C2"), budgets.items(), strict=False):
        steps = [(event["at"], event["upper"]) for event in row.get("events", ()) if event.get("upper")]
        if not steps:
            continue
        drawn += 1
        at, height = zip(*steps, strict=True)
        axes.step(at, [value / row["product"] for value in height], where="post", color=colour, label=name)
    if drawn:
        axes.set_yscale("log")
        axes.set_xlabel("seconds")
        axes.set_ylabel("certified bound ÷ product")
        axes.legend(frameon=False, fontsize=9)
        _save(figure, "budget.svg")
    plt.close(figure)


def scaling() -> None:
    """Sentences on depth, peak and Ray, and the plot against depth."""
    lines = []
    found = results("depth")
    ways = {
        way: [row for row in found.values() if row["way"] == way and row["side"] == 64]
        for way in ("closed form", "gradient")
    }
    for way in ways:
        fit = found.get(f"{way} 64 fit")
        if fit is not None:
            lines.append(
                f"- {way}, chains of 10 to 100 layers on 64×64 maps: {fit['slope'] * 1e3:.0f} ms per layer, at most "
                f"{fit['off']:.0%} off a straight line; peak memory grows {fit['growth']:.2f} times."
            )
    lines += [
        f"- {row['network']}, {row['what']}: {row['share']:.0%} of the matrix-product peak."
        for row in results("peak").values()
        if row["what"] in {"proof", "gradient"}
    ]
    lines += [
        f"- {row['network']}, rounds of the {row['kind']} over two Ray workers: efficiency {row['efficiency']:.2f}."
        for row in results("rounds").values()
    ]
    if all(ways.values()):
        lines += ["", "![Time and memory against depth](docs/img/depth.svg)"]
    if lines:
        replace("scaling", lines)
    if not all(ways.values()):
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9))
    for way, rows in ways.items():
        depths = [row["depth"] for row in rows]
        left.plot(depths, [row["seconds"] for row in rows], "o-", label=way)
        right.plot(depths, [row["peak"] / 2**20 for row in rows], "o-", label=way)
    for axes, label in ((left, "seconds"), (right, "peak memory, MiB")):
        axes.set_xlabel("convolutions")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=9)
    _save(figure, "depth.svg")


VERIFIED = {
    "digits_cnn ellipsoid": "digits_cnn",
    "FC-R18": "FC-R18, fully connected ResNet, 18 layers",
    "chain_C9_CH8 frequency": "chain_C9_CH8, 8 convolutions",
    "chain_C5_CH8 hybrid": "chain_C5_CH8, 4 convolutions",
    "resnet18 32": "resnet18-cifar 3×32×32, closed form",
    "resnet18 224": "resnet18 3×224×224, closed form",
}
"""Networks of the README's table of certificates."""

VERIFICATION = (
    Column("network", "shown"),
    Column("method", "method"),
    Column("solver's own", "solver", harness.number),
    Column("verified", "verified", harness.upper),
    Column("excess of rounding", "excess", harness.relative),
    Column("verify, s", "seconds", harness.seconds),
    Column("certificate, KiB", "size", lambda value: f"{value / 1024:,.0f}"),
)


def verification() -> None:
    """The table of certificates."""
    found = results("verification")
    rows = {name: {**found[name], "shown": text} for name, text in VERIFIED.items() if name in found}
    if rows:
        replace("verification", harness.table(VERIFICATION, rows))


def soundness() -> None:
    """A sentence on the campaign of random networks."""
    row = results("soundness").get("all")
    if row is None:
        return
    networks, low, failed = row["networks"], row["violations"], row["failure"]
    text = (
        f"On {networks:,} random networks of every layer kind, padding, stride, skip, pool and activation, by all "
        f"methods and partitions, {low} verified bounds were below what pairs of points attain, below the worst slopes "
        f"that the relaxation allows, or above the blocks' products; {failed} estimates failed. Bounds were reached to "
        f"{row['most']:.0%} at the most, to {row['median']:.0%} in the median."
    )
    replace("soundness", textwrap.wrap(text, 118))


SERVED = {
    "overhead 100 ms": "one worker, tasks of about 100 ms",
    "overhead 500 ms": "one worker, tasks of about 500 ms",
    "workers 100 ms": "two workers, tasks of about 100 ms",
    "workers 500 ms": "two workers, tasks of about 500 ms",
    "many": "a chain of 50,000 blocks",
    "again": "the same once more, from the store",
    "resume": "`lipray resume` of a finished run",
}
"""Rows of the service's table, and what they are called in it."""

SERVICE = (
    Column("", "shown"),
    Column("sub-problems", "problems", harness.count),
    Column("s", "seconds", harness.seconds),
    Column("each, ms", "each", lambda value: f"{value * 1e3:.2f}"),
    Column("overhead", "overhead", harness.relative),
    Column("workers at work", "busy", harness.ratio),
    Column("efficiency", "efficiency", harness.ratio),
    Column("the driver's memory grows", "growth", harness.ratio),
    Column("solved again", "solved", harness.count),
)


def service() -> None:
    """The table of what Ray costs."""
    found = results("service")
    rows = {name: {**found[name], "shown": text} for name, text in SERVED.items() if name in found}
    if rows:
        replace("service", harness.table(SERVICE, rows))


def _percent(value: float) -> str:
    return f"{value:.1%}"


TRAINED = (
    "cross-entropy, mean",
    "emma, mean",
    "emma, long, mean",
    "emma, generated, mean",
    "gloro, mean",
    "trades, mean",
)
"""Rows of the training's table, as far as they were measured."""

TRAINING = (
    Column("digits, mean of three seeds", "what"),
    Column("clean", "clean", _percent),
    *(Column(f"certified at {radius}", radius, _percent) for radius in ("0.1", "0.25", "0.5")),
    *(Column(f"not broken at {radius}", f"attack {radius}", _percent) for radius in ("0.5",)),
    Column("upper ÷ lower", "gap", harness.ratio),
    Column("training, s", "seconds", harness.seconds),
)


def training() -> None:
    """The table of certified training."""
    found = results("training")
    rows = {name: found[name] for name in TRAINED if name in found}
    if rows:
        replace("training", harness.table(TRAINING, rows))


def sweep() -> None:
    """The plot of a sweep, as ``lipray report`` draws it."""
    found = results("sweep")
    if not found:
        return
    rows = [SweepRow(**{key: row[key] for key in SweepRow.model_fields if key in row}) for row in found.values()]
    axes = {name: tuple(dict.fromkeys(row.swept[name] for row in rows)) for name in rows[0].swept}
    lower = max(row.lower for row in rows if row.lower is not None)
    lines = lines_of(axes, rows)
    with drawing():
        figure = None if lines is None else bound_figure(lines, lower)
        if figure is not None:
            (IMAGES / "sweep.svg").write_bytes(to_file(figure))
            print("docs/img/sweep.svg")


def peers() -> None:
    """The table beside other tools, what was asked of it, and its plots."""
    found = latest(results("peers").values())
    if found:
        replace("peers", pages.readme(found))
        pages.plots({name: rows for name, rows in found.items() if name in CASES})


def _plain_ticks(axes: plt.Axes, ticks: tuple[float, ...]) -> None:
    """Numbers instead of powers of ten, those that lie on the axis."""
    low, high = axes.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _save(figure: plt.Figure, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(IMAGES / name, metadata={"Date": None})
    plt.close(figure)
    print(f"docs/img/{name}")


def main() -> int:
    """Write what was measured into the documents."""
    parts: tuple[Callable[[], None], ...] = (
        estimate,
        tightness,
        speed,
        partition,
        compositions,
        frequency,
        sizes,
        scaling,
        verification,
        soundness,
        service,
        training,
        sweep,
        peers,
    )
    for part in parts:
        part()
    return 0


if __name__ == "__main__":
    sys.exit(main())

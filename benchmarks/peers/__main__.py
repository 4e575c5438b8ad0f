"""Bound the same networks by every way there is, each in a process of its own, and write the tables and plots.

    cd benchmarks; ../.venv/bin/python -m peers [--only cnn2_s0] [--methods LipSDP] [--limit 60] [--fresh] [--short]

A row that is in ``results/peers.json`` for the same network, method and versions is not measured again. ``--short`` is
a selection that takes some minutes and writes to ``runs/bench-short``. ``--list`` names the networks, in their order.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path

from harness import ROOT, Row

from lipray.model.network import Activation, Conv, MaxPool
from peers import networks, published
from peers.answer import PUBLISHED
from peers.derive import KNOWN
from peers.kept import Kept, latest
from peers.methods import LIMIT, version
from peers.networks import CASES, Case
from peers.pages import ABOUT, write
from peers.process import context, measure
from peers.work import prepare, ways_of

SHORT_LIMIT = 2.0
SHORT = 480.0
"""Seconds after which a short run begins no further row, however busy the machine is."""
MEMORY = 10 * 2**30


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help="these networks, by their whole names")
    parser.add_argument("--methods", nargs="+", default=[], metavar="TEXT", help="methods whose name contains one")
    parser.add_argument(
        "--limit", type=float, default=None, metavar="S", help=f"seconds, times a method's own (default {LIMIT:.0f})"
    )
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there already")
    parser.add_argument("--short", action="store_true", help="few networks, short limits, written to runs/bench-short")
    parser.add_argument("--list", action="store_true", help="name the networks and end")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables and plots again")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: benchmarks/results")
    return parser.parse_args(words)


def asked_for(options: argparse.Namespace) -> list[Case]:
    """The networks of a run, those that are not here named and left out."""
    names = options.only or (networks.SHORT if options.short else tuple(CASES))
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise SystemExit(f"peers: no network {', '.join(unknown)}; --list names them")
    found = []
    for name in names:
        why = networks.missing(CASES[name])
        if why is None:
            found.append(CASES[name])
        else:
            print(f"peers: {name}: skipped, {why}", flush=True)
    return found


def quote(kept: Kept, case: Case) -> None:
    """The rows of figures that others published, or that were measured before."""
    for figure in published.figures(case.name):
        values: Row = {"bound": figure.value, "kind": PUBLISHED, "note": figure.note}
        if figure.method == "GLipSDP":
            other = published.OTHER_NETWORK.get((case.name, figure.method))
            values |= {"ended": published.SOURCES["GLipSDP"], "other_network": other is not None, "note": other or ""}
            kept.keep(case.name, "GLipSDP, published", "anchors.csv", values)
    known = published.known_lipsdp(case.name)
    if known is not None:
        kept.keep(case.name, KNOWN, "anchors.csv", {"bound": known, "kind": PUBLISHED, "ended": "anchors.csv"})


def run(options: argparse.Namespace) -> int:
    """Measure what is asked for and write the tables."""
    folder = options.out or (ROOT / "runs" / "bench-short" if options.short else ROOT / "benchmarks" / "results")
    kept = Kept(folder)
    limit = options.limit or (SHORT_LIMIT if options.short else LIMIT)
    try:
        if not options.report:
            fill(kept, options, limit, SHORT if options.short else math.inf)
    except KeyboardInterrupt:
        print(f"peers: stopped; what was measured is in {kept.path}", flush=True)
        return 130
    finally:
        write(latest(kept.rows.values()), folder, documents=not options.short and options.out is None)
    return 0


def fill(kept: Kept, options: argparse.Namespace, limit: float, seconds: float = math.inf) -> None:
    """Measure every row that is not there, and begin none when ``seconds`` are over."""
    start = time.monotonic()
    made = context()
    for case in asked_for(options):
        quote(kept, case)
        about = described(kept, case)
        for method in ways_of(case, maps=bool(about["maps"])):
            if options.methods and not any(text in method.name for text in options.methods):
                continue
            stamp, allowed = version(method), limit * method.patience
            if not options.fresh and kept.find(case.name, method.name, stamp, allowed) is not None:
                continue
            if time.monotonic() - start > seconds:
                print(f"peers: {seconds:.0f} s are over: the rest is left to another run", flush=True)
                return
            print(f"peers: {case.name}: {method.name} ...", flush=True)
            row = kept.keep(
                case.name,
                method.name,
                stamp,
                measure(made, prepare, allowed, MEMORY, case.name, method.name, allowed),
            )
            value = row.get("proven") or row.get("bound")
            print(f"  {value} {row.get('ended', '')} ({row['seconds']:.2f} s)", flush=True)


def described(kept: Kept, case: Case) -> Row:
    """How large a network is, looked at once."""
    known = kept.find(case.name, ABOUT, "", 0.0)
    if known is not None:
        return known
    made = case.make()
    sizes = [node.size for node in made.nodes if isinstance(node.op, Activation | MaxPool)]
    maps = any(isinstance(node.op, Conv) for node in made.nodes)
    return kept.keep(case.name, ABOUT, "", {"neurons": sum(sizes), "layers": len(sizes), "maps": maps})


def stop(number: int, frame: object) -> None:
    """A signal to end is a Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    options = options_of()
    if options.list:
        print("\n".join(CASES))
        sys.exit(0)
    sys.exit(run(options))

"""A sweep, as anyone would make it: ``lipray sweep`` on the digits network, and the table it leaves.

    .venv/bin/python benchmarks/sweep.py [--fresh] [--short]

In one process with one thread, so that times are those of one core. The plot of the README is drawn from it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache, partial

import harness
from harness import ROOT, Column, Row

NETWORK = "examples/digits_cnn.py:digits_cnn"
WORDS = (
    "--weights",
    "examples/digits_cnn.safetensors",
    "--input-shape",
    "1,8,8",
    "--executor",
    "serial",
    "--threads",
    "1",
)
VALUES = ("--method", "ellipsoid,frequency", "--partition-factor", "1,2,4", "--block-depth", "1,all")
POINTS = 12

COLUMNS = (
    Column("point", "point"),
    Column("method", "method"),
    Column("block depth", "block_depth"),
    Column("partition factor", "partition_factor", str),
    Column("bound", "upper", harness.upper),
    Column("attained", "lower", harness.lower),
    Column("product", "product", harness.upper),
    Column("core time, s", "core_seconds", harness.seconds),
    Column("longest sub-problem, s", "critical_seconds", harness.seconds),
    Column("sub-problems", "subproblems", harness.count),
    Column("distinct", "distinct", harness.count),
    Column("also other points'", "shared", harness.count),
    Column("state", "state"),
)

NOTES = f"""\
`lipray sweep {NETWORK} {" ".join(VALUES)}`, in one process with one thread.

Refused: the method `frequency` does not tile maps. The core time of a point is what it takes alone; sub-problems that
are other points' too were solved once.
"""


@cache
def swept(*, short: bool) -> dict[str, Row]:
    """The rows of a sweep made now, by point; without those figures that a point has not got."""
    with tempfile.TemporaryDirectory() as store:
        quick = ("--set", "iterations=2") if short else ()
        words = [sys.executable, "-m", "lipray", "sweep", NETWORK, *WORDS, *VALUES, *quick, "--store", store, "--json"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    return {row["point"]: _plain(row) for row in rows}


def _plain(row: Row) -> Row:
    if row["upper"] is None:
        return row["swept"] | {name: row[name] for name in ("point", "swept", "state", "why")}
    return row["swept"] | row


def main() -> int:
    """Make the sweep, and keep a row per point."""
    options = harness.arguments(__doc__ or "").parse_args()
    options.repeat = 1
    results = harness.Results("sweep", "A sweep of the digits network", COLUMNS, options, NOTES)
    names = [f"{number:03d}" for number in range(1, POINTS + 1)]
    for name in names:
        results.row(name, partial(lambda point: swept(short=options.short)[point], name))
    return results.close(names)


if __name__ == "__main__":
    sys.exit(main())

"""The rows as Markdown: a table per network, and one of what was asked and seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import harness
from harness import Column, Row

from peers.derive import shown
from peers.methods import LIMIT, LOWER, METHODS
from peers.targets import Target

LAST = ("GLipSDP, published", "LipSDP, known")
"""Rows that nobody measures, at the end of a table."""

NEARLY = 0.8
"""Part of its limit from which on a row counts as ended by it."""

COLUMNS = (
    Column("way", "method"),
    Column("kind", "kind"),
    Column("bound", "bound", harness.number),
    Column("proven of it", "proven", harness.number),
    Column("÷ product", "of_product", harness.share),
    Column("÷ LipSDP", "of_lipsdp", lambda value: f"{value:.5g}"),
    Column("gap", "gap", lambda value: f"{value:.4g}"),
    Column("s", "seconds", harness.seconds),
    Column("CPU, s", "cpu", harness.seconds),
    Column("MiB", "peak", harness.mebibytes),
    Column("ended", "ended"),
)


def order() -> tuple[str, ...]:
    """Names of rows, as they stand in a table."""
    return (*METHODS, *LAST)


def network_table(rows: Mapping[str, Row]) -> list[str]:
    """One network's table, and beneath it what was left out."""
    found = shown(rows)
    kept = {name: dict(found[name]) for name in order() if name in found}
    for name, row in kept.items():
        row["ended"] = "; ".join(part for part in (row.get("ended"), row.get("note"), cut_short(name, row)) if part)
    lines = harness.table(COLUMNS, kept)
    out: dict[str, list[str]] = {}
    for name in order():
        if rows.get(name, {}).get("left_out"):
            out.setdefault(rows[name]["ended"], []).append(name)
    if out:
        lines += ["", "Not here: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in out.items()) + "."]
    return lines


def cut_short(name: str, row: Row) -> str:
    """That a row took most of a limit that is less than its way's own, or more than its way's own."""
    limit, method = row.get("limit"), METHODS.get(name)
    if method is None or limit is None:
        return ""
    own = LIMIT * method.patience
    return f"given {limit:.0f} s" if limit != own and row["seconds"] >= NEARLY * min(limit, own) else ""


def target_table(found: Sequence[Target]) -> list[str]:
    """Asked and seen, and the misses one by one."""
    lines = ["| asked | seen | |", "|---|---|---|"]
    lines += [f"| {target.asked} | {target.seen} | {target.verdict} |" for target in found]
    for target in found:
        if target.misses and target.misses != (target.seen,):
            lines += ["", f"Missed of “{target.asked}”:", "", *(f"- {miss}" for miss in target.misses)]
        if target.each:
            lines += ["", f"Every pair of “{target.asked}”:", "", *(f"- {pair}" for pair in target.each)]
    return lines


SUMMARY = (
    "fnn3_s0",
    "eclipse_mnist_n100",
    "cnn2_s0",
    "cnn3_s0",
    "FC-R18",
    "digits_small",
    "cnn1",
    "fc_L10_W100",
    "fc_L100_W100",
)
"""Networks of the README's table and plot."""
BRIEF = (
    ("SVD product", "product"),
    ("LipLT", "LipLT"),
    ("ECLipsE", "ECLipsE"),
    ("LipSDP, Clarabel", "Clarabel"),
    ("LipSDP, SCS", "SCS"),
    ("LipSDP, SDPA", "SDPA"),
)
"""Ways of the README's table, and what they are called in it."""


def summary(rows: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The README's table: bounds with their seconds, lipray's the best of its own."""
    heads = ["network", "attained", *(head for _, head in BRIEF), "lipray"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for network in SUMMARY:
        own = rows.get(network)
        if not own or LOWER not in own or own[LOWER].get("bound") is None:
            continue
        cells = [network, harness.lower(own[LOWER]["bound"]), *(_brief(own.get(name)) for name, _ in BRIEF)]
        ours = [row for name, row in own.items() if name.startswith("lipray, ") and row.get("bound") is not None]
        cells.append(_brief(min(ours, key=lambda row: (row["bound"] * (1.0 + 1e-9), row["seconds"]), default=None)))
        lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def _brief(row: Row | None) -> str:
    if row is None:
        return ""
    if row.get("left_out"):
        return "–"
    seconds = harness.seconds(row["seconds"])
    if row.get("bound") is None:
        return f"none ({seconds} s)"
    star = "" if row.get("proven") is not None or row["kind"] != "solver's value" else "*"
    bound = row["proven"] if row["kind"] == "solver's value" and row.get("proven") else row["bound"]
    return f"{bound:.5g}{star} ({seconds} s)"

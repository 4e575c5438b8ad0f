"""Where the rows go: ``peers.md`` beside the results, the tables of ``docs/peers.md``, the plots of ``docs/img``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness import ROOT, Row, environment

from peers.networks import CASES
from peers.tables import network_table, summary, target_table
from peers.targets import targets, unproven
from peers.work import ways_of

DOCUMENT = ROOT / "docs" / "peers.md"
ABOUT = "network"
"""The row that says how large a network is."""

Rows = Mapping[str, Mapping[str, Row]]


def write(rows: Rows, folder: Path, *, documents: bool) -> None:
    """Write the tables; with ``documents`` those of docs/peers.md and the plots as well."""
    known = {name: rows[name] for name in CASES if name in rows}
    page = [
        "# The same networks by lipray and its peers",
        "",
        *asked(known),
        "",
        *tables(known),
        "",
        *circumstances(known),
    ]
    (folder / "peers.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print(f"peers: {folder / 'peers.md'}", flush=True)
    if documents and known:
        drawn = [f"![Bound against time, {name}](img/{name}.svg)" for name in plots(known)]
        pictures = [line for picture in drawn for line in (picture, "")][:-1]
        fill(
            DOCUMENT, {"asked": asked(known), "plots": pictures, "tables": [*tables(known), "", *circumstances(known)]}
        )


def asked(rows: Rows) -> list[str]:
    """What was asked and seen, and solvers' values that are not proven."""
    neurons = {name: own[ABOUT]["neurons"] for name, own in rows.items() if ABOUT in own}
    lines = target_table(targets({name: _ways(own) for name, own in rows.items()}, neurons))
    low = unproven(rows)
    if low:
        lines += ["", "Solvers' values that are more than 0.1 % below what is proven from their multipliers:", ""]
        lines += [f"- {text}" for text in low]
    return lines


def tables(rows: Rows) -> list[str]:
    """A table per network, by group."""
    lines: list[str] = []
    for group in groups(rows):
        lines += [f"## {group.capitalize()}", ""]
        for name in (name for name in rows if CASES[name].group == group):
            about = rows[name].get(ABOUT, {})
            size = f": {about['neurons']:,} neurons in {about['layers']} layers" if about else ""
            lines += [f"### {name}", "", f"{CASES[name].about}{size}.", "", *network_table(_ways(rows[name])), ""]
            wanted = ways_of(CASES[name], maps=bool(about.get("maps")))
            later = [method.name for method in wanted if method.name not in rows[name]]
            lines += [f"Not measured yet: {'; '.join(later)}.", ""] if later else []
    without = [name for name in CASES if name not in rows]
    if without:
        lines += [f"Networks not measured yet: {', '.join(without)}.", ""]
    return lines[:-1]


def groups(rows: Rows) -> list[str]:
    """Groups of networks that have rows, in order."""
    return list(dict.fromkeys(CASES[name].group for name in rows))


def plots(rows: Rows) -> list[str]:
    """Draw the plots of docs/img; their names."""
    from peers.plots import save

    named = {group.replace(" ", "-"): [name for name in rows if CASES[name].group == group] for group in groups(rows)}
    written = save({name: _ways(own) for name, own in rows.items()}, named, ROOT / "docs" / "img")
    print("\n".join(f"docs/img/{name}.svg" for name in written), flush=True)
    return written


def readme(rows: Rows) -> list[str]:
    """The README's part: the short table, what was asked, and the plot."""
    lines = summary({name: _ways(own) for name, own in rows.items()})
    if not lines:
        return []
    neurons = {name: own[ABOUT]["neurons"] for name, own in rows.items() if ABOUT in own}
    found = targets({name: _ways(own) for name, own in rows.items() if name in CASES}, neurons)
    lines += ["", "| asked | seen | |", "|---|---|---|"]
    lines += [f"| {target.asked} | {target.seen} | {target.verdict} |" for target in found]
    return [*lines, "", "![Bound against time, a plot per network](docs/img/peers.svg)"]


def circumstances(rows: Rows) -> list[str]:
    """The machine, the versions, and when."""
    here = environment()
    every = [row for own in rows.values() for row in own.values()]
    dates = sorted(str(row["date"]) for row in every if row.get("seconds") is not None)
    versions = sorted({part for row in every for part in str(row["version"]).split(", ") if " " in part})
    return [
        f"- machine: {here['cpu']}, {here['cores']} cores, {here['memory']}, {here['system']}; one BLAS thread per row",
        f"- measured with: {', '.join(versions)}",
        f"- measured: {dates[0]} to {dates[-1]} (UTC)" if dates else "- measured: nothing",
    ]


def fill(path: Path, parts: Mapping[str, list[str]]) -> None:
    """Put lines between the markers ``<!-- NAME -->`` and ``<!-- end of NAME -->`` of a document."""
    text = path.read_text(encoding="utf-8")
    for name, lines in parts.items():
        head, rest = text.split(f"<!-- {name} -->\n")
        _, tail = rest.split(f"<!-- end of {name} -->")
        text = head + f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end of {name} -->" + tail
    path.write_text(text, encoding="utf-8")
    print(f"peers: {path.relative_to(ROOT)}", flush=True)


def _ways(rows: Mapping[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if name != ABOUT}

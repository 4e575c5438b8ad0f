"""A finished run, and a plan, as tables for a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lipray.partition.subproblem import TORUS_METHODS
from lipray.report.numbers import bytes_text, lower_text, seconds_text, shape_text, upper_text
from lipray.run.record.plan_record import PlannedBlock, PlanRecord
from lipray.run.record.records import BlockRecord, ResultRecord, VerdictRecord

_SHOWN_FAILURES = 10
_SHOWN_PROBLEMS = 20
_LONG = 10.0
"""Seconds from which on it is worth telling how to use more threads."""
_TITLES = {"liplt": "LipLT", "eclipse_fast": "ECLipsE-Fast", "closed_form": "closed form"}
"""How the literature writes what the records call by a key."""


def result_table(result: ResultRecord, folder: str | None = None) -> RenderableType:
    """The bracket, what each block adds, other valid bounds, and whatever did not go as planned."""
    parts: list[RenderableType] = [_bracket(result)]
    parts.append(_blocks(result))
    parts.extend(_stages(block) for block in result.blocks if len(block.stages) > 1)
    proofs = _proofs(result)
    if proofs is not None:
        parts.append(proofs)
    figures = _figures(result)
    if figures is not None:
        parts.append(figures)
    parts.extend(_remarks(result))
    if folder is not None:
        parts.append(Text(f"Run folder: {folder}", overflow="fold"))
    return Group(*parts)


def plan_table(plan: PlanRecord) -> RenderableType:
    """What would be solved, per block, and what it is expected to take."""
    table = Table(title=f"Plan for {plan.model.name}, method {plan.method}", title_justify="left")
    table.add_column("block", overflow="fold")
    for name in ("layers", "neurons", "tiles", "distinct", "est. memory", "est. time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("input → output", no_wrap=True)
    for block in plan.blocks:
        table.add_row(
            Text(block.label),
            str(block.layers),
            f"{block.neurons:,}",
            str(block.tiles) if block.tiles else "product only",
            str(block.distinct),
            bytes_text(block.memory),
            seconds_text(block.seconds),
            f"{shape_text(block.input_shape)} → {shape_text(block.output_shape)}",
        )
    table.add_section()
    table.add_row(
        "total",
        str(sum(block.layers for block in plan.blocks)),
        f"{plan.model.neurons:,}",
        str(sum(block.tiles for block in plan.blocks)),
        str(plan.distinct),
        f"{bytes_text(plan.memory)} at most",
        f"{seconds_text(plan.seconds)} in one task",
        f"{shape_text(plan.model.input_shape)} → {shape_text(plan.model.output_shape)}",
    )
    notes = [*_methods(plan), *(Text(f"note: {note}") for note in plan.model.notes)]
    if any(not block.tiles for block in plan.blocks):
        notes.append(
            Text("product only: the block fits no sub-problem within --memory; raise it or lower --block-depth.")
        )
    return Group(table, *notes)


def verdict_table(verdict: VerdictRecord) -> RenderableType:
    """What was verified: the network's bound, and every block's and sub-problem's beside what is claimed."""
    table = Table(title="Verified from the multipliers", title_justify="left")
    table.add_column("part", overflow="fold")
    for name in ("tiles", "claimed", "verified"):
        table.add_column(name, justify="right", no_wrap=True)
    for block in verdict.blocks:
        table.add_row(Text(block.label), str(block.tiles), upper_text(block.claim, 9), upper_text(block.bound, 9))
    table.add_section()
    for problem in verdict.problems[:_SHOWN_PROBLEMS]:
        table.add_row(Text(problem.label), "", upper_text(problem.claim, 9), upper_text(problem.bound, 9))
    if len(verdict.problems) > _SHOWN_PROBLEMS:
        table.add_row(f"… and {len(verdict.problems) - _SHOWN_PROBLEMS} more sub-problems", "", "", "")
    line = Text(
        f"verified: L̄ = {upper_text(verdict.bound, 12)}  (claimed {upper_text(verdict.claim, 12)}, "
        f"{seconds_text(verdict.seconds)} on {verdict.executor})",
        style="bold",
    )
    return Group(table, line)


def _methods(plan: PlanRecord) -> list[Text]:
    """Which method each block gets and why, and where those on tori lie; blocks that are alike share a line."""
    lines = []
    for (method, reason), blocks in _alike(plan.blocks).items():
        names = blocks[0].label if len(blocks) == 1 else f"{len(blocks)} blocks, first {blocks[0].label}"
        lines.append(Text(f"{names}: {method}, {reason}" if reason else f"{names}: {method}"))
    for block in plan.blocks:
        torus = block.torus
        if torus is None:
            continue
        sides = " → ".join(shape_text(sides) for sides in torus.sides)
        leave = f"left after {torus.switch} for the dense window" if torus.switch else "kept until the maps end"
        lines.append(Text(f"{block.label}: tori {sides}, {leave}"))
        dense = f", the dense part {bytes_text(torus.tail_memory)}" if torus.tail_memory else ""
        lines.append(
            Text(
                f"    {torus.groups} groups of frequencies of {bytes_text(torus.group_memory)} each{dense}; "
                f"on one core {seconds_text(torus.closed_form_seconds)} for the closed form and "
                f"{seconds_text(torus.round_seconds)} per step of the optimiser"
            )
        )
    return lines


def _alike(blocks: tuple[PlannedBlock, ...]) -> dict[tuple[str, str], list[PlannedBlock]]:
    """Blocks by method and reason, in order."""
    groups: dict[tuple[str, str], list[PlannedBlock]] = {}
    for block in blocks:
        if block.method:
            groups.setdefault((block.method, block.reason), []).append(block)
    return groups


def _bracket(result: ResultRecord) -> RenderableType:
    table = Table(title=f"Lipschitz constant (l2) of {result.model.name}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("upper bound", f"{upper_text(result.upper, 9)}  (certified, method {result.method})")
    if result.lower > 0.0:
        table.add_row("lower bound", f"{lower_text(result.lower, 9)}  (attained)")
        table.add_row("upper / lower", upper_text(result.gap, 4))
    else:
        table.add_row("lower bound", "0  (none sought or found)")
    shapes = f"{shape_text(result.model.input_shape)} → {shape_text(result.model.output_shape)}"
    table.add_row("network", f"{shapes}, {result.model.neurons:,} neurons")
    table.add_row("time", f"{seconds_text(result.seconds)} on {result.executor}")
    return table


def _blocks(result: ResultRecord) -> RenderableType:
    alternatives = _names(result.blocks)
    table = Table(title="Blocks", title_justify="left")
    table.add_column("block", overflow="fold")
    for name in ("tiles", "distinct", "bound", "by", *(_TITLES.get(name, name) for name in alternatives), "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for block in result.blocks:
        others = {**block.closed_forms, **block.alternatives}
        table.add_row(
            Text(block.label),
            str(block.subproblems),
            str(block.distinct),
            upper_text(block.upper),
            _TITLES.get(block.source, block.source),
            *(upper_text(others[name]) if name in others else "" for name in alternatives),
            f"{seconds_text(block.seconds)} {block.share:.0%}",
        )
    return table


def _proofs(result: ResultRecord) -> RenderableType | None:
    """What the solver believed, what was proven from its multipliers, and what rounding costs."""
    rows = [row for row in result.subproblems if row.bound is not None and (row.solver or row.excess is not None)]
    if not rows:
        return None
    table = Table(title="Solver and proof", title_justify="left")
    table.add_column("sub-problem", overflow="fold")
    for name in ("solver's own", "verified", "of it rounding"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:_SHOWN_PROBLEMS]:
        excess = "not measured" if row.excess is None else f"{row.excess:.1e}"
        solver = "" if row.solver is None else f"{row.solver:.9g}"
        table.add_row(Text(row.label), solver, upper_text(row.bound, 9), excess)
    if len(rows) > _SHOWN_PROBLEMS:
        table.add_row(f"… and {len(rows) - _SHOWN_PROBLEMS} more, in subproblems.csv", "", "", "")
    return table


def _stages(block: BlockRecord) -> RenderableType:
    """How a block's bound grows with depth: bounds of its map up to some of its layers."""
    table = Table(title=Text(f"Within {block.label}, from its input on"), title_justify="left")
    table.add_column("after", overflow="fold")
    table.add_column("bound", justify="right")
    table.add_column("factor", justify="right")
    before: float | None = 1.0
    for stage in block.stages:
        factor = "" if not before or stage.upper is None else f"{stage.upper / before:.3g}"
        table.add_row(stage.after, upper_text(stage.upper), factor)
        before = stage.upper
    return table


def _names(blocks: tuple[BlockRecord, ...]) -> list[str]:
    """Ways to bound a block that are worth a column: those that differ from how it was bounded."""
    names: dict[str, None] = {}
    for block in blocks:
        for name in (*block.alternatives, *block.closed_forms):
            if any(other.source != name for other in blocks):
                names[name] = None
    order = {"diagonal": 0, "overlap": 0, "sum": 1, "product": 9}
    return sorted(names, key=lambda name: order.get(name, 5))


def _figures(result: ResultRecord) -> RenderableType | None:
    if not result.figures:
        return None
    table = Table(title="Whole network, other ways", title_justify="left")
    table.add_column("way")
    table.add_column("bound", justify="right")
    table.add_column("this bound is", justify="right")
    for name, value in sorted(result.figures.items(), key=lambda item: (item[1] is None, item[1] or 0.0, item[0])):
        ratio = "" if not value or result.upper is None else f"{result.upper / value:.3g} of it"
        table.add_row(_TITLES.get(name, name), upper_text(value), ratio)
    return table


def _remarks(result: ResultRecord) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"note: {note}") for note in result.model.notes]
    left = sum(not block.subproblems for block in result.blocks)
    if left:
        lines.append(
            Text(f"{left} block(s) fit no sub-problem within --memory and are left to their product bounds; raise it.")
        )
    solves = [row for row in result.subproblems if row.method not in ("product", *TORUS_METHODS)]
    if result.threads == 1 and len(solves) == 1 and solves[0].seconds > _LONG:
        lines.append(Text("note: one sub-problem on one thread; --threads gives it more, --executor serial all."))
    stored = sum(row.stored for row in result.subproblems)
    if stored:
        lines.append(Text(f"{stored} sub-problem(s) were in the store, and were proven again instead of solved."))
    lines.extend(Text(f"store: {fault}") for fault in result.store_faults[:_SHOWN_FAILURES])
    tiles = sum(len(block.fallbacks) for block in result.blocks)
    if tiles:
        lines.append(Text(f"{tiles} of the tiles have no certificate; their blocks' product bounds stand in."))
    for failure in result.failures[:_SHOWN_FAILURES]:
        times = f" ({failure.attempts} attempts)" if failure.attempts > 1 else ""
        lines.append(Text(f"failed: {failure.label}: {failure.kind}: {failure.why}{times}"))
    if len(result.failures) > _SHOWN_FAILURES:
        lines.append(Text(f"… and {len(result.failures) - _SHOWN_FAILURES} more failures, in subproblems.csv"))
    advice = Counter(row.advice for row in result.subproblems if row.advice)
    lines.extend(Text(f"{count} sub-problem(s): {text}") for text, count in sorted(advice.items()))
    return lines

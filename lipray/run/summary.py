"""From a finished run to its records."""

from __future__ import annotations

from collections import Counter

from lipray.certify.certificate import Certificate
from lipray.model.network import Network
from lipray.partition.cost import estimate_cost
from lipray.run.budget import BUDGET_SPENT
from lipray.run.driver import RunOutcome
from lipray.run.executor import Failure
from lipray.run.record.records import (
    BlockRecord,
    FailureRecord,
    ModelRecord,
    ResultRecord,
    StageRecord,
    SubproblemRecord,
)
from lipray.run.tasks import block_of
from lipray.verify.outward import product_up


def describe_model(
    network: Network, name: str, notes: tuple[str, ...] = (), file_hash: str | None = None
) -> ModelRecord:
    """Name, hashes and sizes of the network that is bounded."""
    return ModelRecord(
        name=name,
        hash=network.content_hash(),
        file_hash=file_hash,
        input_shape=network.input_shape,
        output_shape=network.output_shape,
        neurons=network.neurons,
        notes=notes,
    )


def summarise(
    outcome: RunOutcome, model: ModelRecord, *, composition: str, executor: str, threads: int | None = None
) -> ResultRecord:
    """The result of a run as one record."""
    bound = outcome.bound
    rows = _subproblems(outcome)
    return ResultRecord(
        model=model,
        upper=bound.upper,
        lower=bound.lower,
        gap=bound.gap,
        method=bound.method,
        composition=composition,
        executor=executor,
        threads=threads,
        seconds=bound.seconds,
        blocks=_blocks(outcome, rows),
        figures=_figures(outcome),
        subproblems=rows,
        failures=tuple(
            FailureRecord(label=item.task.label, kind=item.kind, why=item.why, attempts=item.attempts)
            for item in outcome.failures
        ),
        store_faults=outcome.store_faults,
    )


def _subproblems(outcome: RunOutcome) -> tuple[SubproblemRecord, ...]:
    plan, work, bound = outcome.plan, outcome.work, outcome.bound
    owners = block_of(plan, work)
    copies = Counter(work.tiles[tile.key] for block in plan.blocks for tile in block.tiles)
    memory = {work.tiles[tile.key]: tile.memory for block in plan.blocks for tile in block.tiles}
    faults = {failure.task.key: failure for failure in outcome.failures}
    rows = []
    for key, problem in work.by_key.items():
        certificate = bound.certificate.get(key)
        fault = faults.get(key)
        cost = estimate_cost(problem.network, problem.method, problem.settings)
        row = SubproblemRecord(
            block=owners[key].label,
            label=problem.label,
            copies=max(1, copies[key]),
            key=key,
            method=problem.method if certificate is None else certificate.method,
            status="missing" if certificate is None else certificate.status.value,
            bound=None if certificate is None else certificate.bound,
            product=None if certificate is None else certificate.figures.get("product"),
            neurons=problem.network.neurons,
            memory=memory.get(key, cost.memory_bytes),
            seconds=outcome.task_seconds.get(key, 0.0),
            iterations=0 if certificate is None else certificate.iterations,
            stored=key in outcome.stored,
            core_seconds=(0.0 if certificate is None else certificate.seconds) or outcome.task_seconds.get(key, 0.0),
            solver=None if certificate is None else certificate.figures.get("solver"),
            excess=None if certificate is None else _excess(certificate),
            advice=_advice(fault) if certificate is None else certificate.status.advice,
            failure="" if fault is None else f"{fault.kind}: {fault.why}",
        )
        rows.append(row)
    return tuple(rows)


def _excess(certificate: Certificate) -> float | None:
    """How far rounding lifts the bound, relatively; both figures carry some 1e-16 of their own."""
    plain = certificate.figures.get("unrounded")
    return None if not plain else max(0.0, certificate.bound / plain - 1.0)


def _advice(fault: Failure | None) -> str:
    """What may help a sub-problem that has no certificate."""
    if fault is not None and fault.kind == BUDGET_SPENT:
        return "raise --budget: the product bound stands in for what it left no time for"
    if fault is not None and "memory" in f"{fault.kind} {fault.why}".lower():
        return "it ran out of memory: raise --partition-factor, or lower --memory so that the planner cuts smaller"
    return "it has no certificate and its block's product bound stands in; run again, or choose another --method"


def _blocks(outcome: RunOutcome, rows: tuple[SubproblemRecord, ...]) -> tuple[BlockRecord, ...]:
    spent = dict.fromkeys((item.label for item in outcome.bound.blocks), 0.0)
    for row in rows:
        spent[row.block] += row.seconds
    total = sum(spent.values()) or 1.0
    records = []
    for item, block, product in zip(outcome.bound.blocks, outcome.plan.blocks, outcome.work.products, strict=True):
        certificate = outcome.bound.certificate.get(product)
        record = BlockRecord(
            label=item.label,
            upper=item.upper,
            method=block.method,
            source=item.source,
            alternatives=dict(item.alternatives),
            closed_forms={} if certificate is None else dict(certificate.figures),
            subproblems=item.subproblems,
            distinct=item.distinct,
            fallbacks=item.fallbacks,
            stages=tuple(StageRecord(after=name, upper=bound) for name, bound in item.stages),
            seconds=spent[item.label],
            share=spent[item.label] / total,
        )
        records.append(record)
    return tuple(records)


def _figures(outcome: RunOutcome) -> dict[str, float | None]:
    """Valid bounds of the whole network beside the method's own: by composition, and by closed form over the blocks."""
    figures: dict[str, float | None] = dict(outcome.bound.figures)
    certificates = [outcome.bound.certificate.get(key) for key in outcome.work.products]
    found = [certificate.figures for certificate in certificates if certificate is not None]
    if len(found) == len(certificates):
        names = sorted(set.intersection(*(set(item) for item in found))) if found else []
        for name in names:
            figures.setdefault(name, product_up(item[name] for item in found))
    used = {block.source for block in outcome.bound.blocks}
    return {name: value for name, value in figures.items() if used != {name}}

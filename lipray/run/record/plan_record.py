"""A plan as a plain record, for ``lipray plan``."""

from __future__ import annotations

from typing import Literal

from lipray.model.network import Activation, Conv, Dense, Network
from lipray.partition.cost import estimate_cost
from lipray.partition.plan import Block, Plan, TorusWork
from lipray.partition.worklist import worklist
from lipray.run.record.records import ModelRecord, Record


class TorusRecord(Record):
    """A block on tori: ``sides`` of each torus, where they are left, and estimates in bytes and seconds of one core."""

    sides: tuple[tuple[int, ...], ...]
    switch: str | None
    groups: int
    group_memory: int
    tail_memory: int
    round_seconds: float
    closed_form_seconds: float


class PlannedBlock(Record):
    """One block: ``memory`` (bytes) of its largest sub-problem and ``seconds`` of all, both estimates.

    ``reason`` says why ``method`` is the block's; ``torus`` is there for the methods on tori.
    """

    label: str
    layers: int
    neurons: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tiles: int
    distinct: int
    memory: int
    seconds: float
    method: str = ""
    reason: str = ""
    torus: TorusRecord | None = None


class PlanRecord(Record):
    """The plan: ``distinct`` sub-problems over all blocks, the largest one's memory, and the sum of seconds."""

    schema_version: Literal[1] = 1
    model: ModelRecord
    method: str
    partition_factor: int
    block_depth: int | None
    distinct: int
    memory: int
    seconds: float
    blocks: tuple[PlannedBlock, ...]


def describe_plan(plan: Plan, model: ModelRecord) -> PlanRecord:
    """The plan in numbers."""
    blocks = tuple(_block(plan, block) for block in plan.blocks)
    tiles = {tile.key: tile.seconds for block in plan.blocks for tile in block.tiles}
    products = sum(estimate_cost(block.network, "product", plan.settings).seconds for block in plan.blocks)
    return PlanRecord(
        model=model,
        method=plan.method,
        partition_factor=plan.partition_factor,
        block_depth=plan.block_depth,
        distinct=len(worklist(plan).tiles),
        memory=max(block.memory for block in blocks),
        seconds=sum(tiles.values()) + (products if plan.method != "product" else 0.0),
        blocks=blocks,
    )


def _block(plan: Plan, block: Block) -> PlannedBlock:
    product = estimate_cost(block.network, "product", plan.settings)
    return PlannedBlock(
        label=block.label,
        layers=_layers(block.network),
        neurons=block.network.neurons,
        input_shape=block.input_shape,
        output_shape=block.output_shape,
        tiles=len(block.tiles),
        distinct=len(block.distinct),
        memory=max([product.memory_bytes, *(tile.memory for tile in block.tiles)]),
        seconds=sum(tile.seconds for tile in block.distinct) or product.seconds,
        method=block.method,
        reason=block.reason,
        torus=None if block.torus is None else _torus(block.torus),
    )


def _torus(torus: TorusWork) -> TorusRecord:
    return TorusRecord(
        sides=torus.sides,
        switch=torus.switch,
        groups=torus.groups,
        group_memory=torus.group_memory,
        tail_memory=torus.tail_memory,
        round_seconds=torus.round_seconds,
        closed_form_seconds=torus.closed_form_seconds,
    )


def _layers(network: Network) -> int:
    """Layers with weights or an activation."""
    return sum(isinstance(node.op, (Activation, Conv, Dense)) for node in network.nodes)

"""The plan: blocks of consecutive layers, and for each block the tiles of its output map."""

from __future__ import annotations

from dataclasses import dataclass

from lipray.model.network import Network, Shape
from lipray.partition.subproblem import Settings
from lipray.verify.tiles import Window
from lipray.verify.torus.layout import Sides


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a block's output map, and the receptive field it depends on.

    ``network`` maps the receptive field to the tile; ``key`` is its content hash, equal for tiles that
    are translates of each other. ``output`` and ``field`` are empty for the whole, untiled block.
    """

    label: str
    network: Network
    key: str
    output: Window
    field: Window
    neurons: int
    memory: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TorusWork:
    """A block that is carried on tori: where, and what a round over all frequencies takes (estimates).

    ``sides`` of every torus, finest first. ``switch`` names the node after which the torus is left for the
    dense window, ``None`` where it is kept to the end of the maps. ``groups`` of frequencies are the independent
    pieces; ``group_memory`` (bytes) is what one of them takes, ``tail_memory`` what the dense part does. In seconds
    on one core: ``pass_seconds`` over all groups once, ``round_seconds`` for a step of the optimiser, and
    ``closed_form_seconds`` for the bound without it.
    """

    sides: tuple[Sides, ...]
    switch: str | None
    groups: int
    group_memory: int
    tail_memory: int
    pass_seconds: float
    round_seconds: float
    closed_form_seconds: float


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive layers between two cuts: the sub-network, its tiles, and how they are solved.

    One tile: the block is solved whole. No tile: the block neither fits the memory allowed nor can be
    tiled, and is left to the product bound. ``reason`` says why ``method`` is the block's. ``weighted``: the tiles'
    networks are those of their weighted inputs (``lipray.verify.weights``), composed by diagonal metrics.
    """

    label: str
    network: Network
    tiles: tuple[Tile, ...]
    input_shape: Shape
    output_shape: Shape
    method: str
    settings: Settings
    reason: str = ""
    torus: TorusWork | None = None
    weighted: bool = False

    @property
    def distinct(self) -> tuple[Tile, ...]:
        """One tile of each content; the others are its translates."""
        return tuple({tile.key: tile for tile in reversed(self.tiles)}.values())[::-1]


@dataclass(frozen=True, slots=True)
class Plan:
    """All blocks in order; the network's map is the composition of the blocks' maps.

    ``method`` and ``settings`` are those asked for; every block has its own.
    """

    blocks: tuple[Block, ...]
    method: str
    settings: Settings
    partition_factor: int
    block_depth: int | None

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
class RoundWork:
    """A block whose problem is solved in rounds that workers can share, and what one takes (estimates).

    ``groups`` are its independent pieces (groups of frequencies, distinct tiles), ``group_memory`` (bytes) is what one
    of them takes. In seconds on one core: ``pass_seconds`` over all groups once, ``round_seconds`` for a step of the
    optimiser, and ``closed_form_seconds`` for the bound without it.
    """

    groups: int
    group_memory: int
    pass_seconds: float
    round_seconds: float
    closed_form_seconds: float


@dataclass(frozen=True, slots=True)
class TorusWork(RoundWork):
    """A block that is carried on tori: ``sides`` of every torus, finest first.

    ``switch`` names the node after which the torus is left for the dense window, ``None`` where it is kept to the end
    of the maps; ``tail_memory`` (bytes) is what the dense part takes.
    """

    sides: tuple[Sides, ...]
    switch: str | None
    tail_memory: int


@dataclass(frozen=True, slots=True)
class TileWork(RoundWork):
    """A block that is solved by its tiles' metrics together: how many ``tiles``, of which ``groups`` are distinct."""

    tiles: int


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive layers between two cuts: the sub-network, its tiles, and how they are solved.

    One tile: the block is solved whole. No tile: the block neither fits the memory allowed nor can be
    tiled, and is left to the product bound. ``reason`` says why ``method`` is the block's. ``together``: it is one
    sub-problem, solved by its tiles' metrics. ``weighted``: the tiles' networks are those of their weighted inputs
    (``lipray.verify.weights``), composed by diagonal metrics.
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
    together: TileWork | None = None
    weighted: bool = False

    @property
    def rounds(self) -> RoundWork | None:
        """What its rounds take, if it is solved in rounds."""
        return self.torus or self.together

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

"""The plan: blocks of consecutive layers, and for each block the tiles of its output map."""

from __future__ import annotations

from dataclasses import dataclass

from lipray.model.network import Network, Shape
from lipray.partition.subproblem import Settings

Window = tuple[tuple[int, int], ...]
"""Half-open index range per spatial axis of a map."""


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
class Block:
    """Consecutive layers between two cuts: the sub-network, and its tiles.

    One tile: the block is solved whole. No tile: the block neither fits the memory allowed nor can be
    tiled, and is left to the product bound.
    """

    label: str
    network: Network
    tiles: tuple[Tile, ...]
    input_shape: Shape
    output_shape: Shape

    @property
    def distinct(self) -> tuple[Tile, ...]:
        """One tile of each content; the others are its translates."""
        return tuple({tile.key: tile for tile in reversed(self.tiles)}.values())[::-1]


@dataclass(frozen=True, slots=True)
class Plan:
    """All blocks in order; the network's map is the composition of the blocks' maps."""

    blocks: tuple[Block, ...]
    method: str
    settings: Settings
    partition_factor: int
    block_depth: int | None

"""Smaller tiles in the place of those that could not be solved."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

from lipray.partition.plan import Block, Plan, Tile
from lipray.partition.planner import label_tiles
from lipray.verify.tiles import CutTile, Window, cut_tiles, tile_windows


def finer(plan: Plan, failed: AbstractSet[str]) -> Plan:
    """The plan with every failed tile of a tiled block cut in two along each axis.

    Args:
        plan: as it was.
        failed: contents (``Tile.key``) of tiles.

    Returns:
        The new plan. Blocks solved whole, and tiles of one position, are as they were, and so are weighted tiles,
        whose weights depend on all of a block's tiles.
    """
    return replace(plan, blocks=tuple(_finer(block, failed) for block in plan.blocks))


def coarser(plan: Plan, before: Plan, failed: AbstractSet[str]) -> Plan:
    """A finer plan with the tiles of ``before`` back wherever a part of them failed."""
    return replace(
        plan, blocks=tuple(_coarser(now, then, failed) for now, then in zip(plan.blocks, before.blocks, strict=True))
    )


def _finer(block: Block, failed: AbstractSet[str]) -> Block:
    if block.weighted:
        return block
    tiles: list[Tile] = []
    for tile in block.tiles:
        parts = _parts(block, tile) if tile.key in failed and tile.output else ()
        tiles.extend(parts or (tile,))
    return block if len(tiles) == len(block.tiles) else replace(block, tiles=tuple(tiles))


def _parts(block: Block, tile: Tile) -> tuple[Tile, ...]:
    shape = (block.output_shape[0], *(stop - start for start, stop in tile.output))
    if max(shape[1:]) < 2:
        return ()
    windows: tuple[Window, ...] = tuple(
        tuple((origin + low, origin + high) for (origin, _), (low, high) in zip(tile.output, window, strict=True))
        for window in tile_windows(shape, 2)
    )
    cuts: tuple[CutTile, ...] = cut_tiles(block.network, windows)
    labelled = tuple((f"{tile.label}-{number}", cut) for number, cut in enumerate(cuts, start=1))
    return label_tiles(block.label, labelled, block.method, block.settings)


def _coarser(now: Block, then: Block, failed: AbstractSet[str]) -> Block:
    """Tiles cover the map in order, each of ``then`` as itself or as its parts."""
    if len(now.tiles) == len(then.tiles):
        return now
    left = list(now.tiles)
    tiles: list[Tile] = []
    for tile in then.tiles:
        if left[0].output == tile.output:
            tiles.append(left.pop(0))
            continue
        count = sum(part.label.startswith(f"{tile.label}-") for part in left)
        parts, left = left[:count], left[count:]
        tiles.extend((tile,) if any(part.key in failed for part in parts) else parts)
    return replace(now, tiles=tuple(tiles))

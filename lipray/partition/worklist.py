"""The sub-problems of a plan: each distinct one once, and where its certificate belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipray.partition.plan import Block, Plan
from lipray.partition.subproblem import Settings, Subproblem, subproblem_key

FALLBACK_METHOD = "product"
"""The method whose bound stands in for what is missing."""


@dataclass(frozen=True, slots=True)
class Worklist:
    """Distinct sub-problems by key, in plan order, and the lookups from the plan to their keys.

    ``tiles`` maps ``Tile.key`` (content of the tile's network) to the key of its sub-problem; ``products``
    holds, per block, the key of the sub-problem that gives the block's product bound.
    """

    by_key: Mapping[str, Subproblem]
    tiles: Mapping[str, str]
    products: tuple[str, ...]

    @property
    def subproblems(self) -> tuple[Subproblem, ...]:
        """All distinct sub-problems, in plan order."""
        return tuple(self.by_key.values())


def worklist(plan: Plan) -> Worklist:
    """List the distinct sub-problems of a plan, hashing every network once.

    First each block's product bound, which is cheap and makes a valid bound exist early, then the tiles.
    A tile that is a translate of an earlier one, in whatever block, adds nothing.
    """
    by_key: dict[str, Subproblem] = {}
    products: list[str] = []
    for block in plan.blocks:
        settings = _product_settings(block)
        key = subproblem_key(_content(block), FALLBACK_METHOD, settings)
        products.append(key)
        if key not in by_key:
            by_key[key] = Subproblem(f"{block.label} product", block.network, FALLBACK_METHOD, settings)
    tiles: dict[str, str] = {}
    for block in plan.blocks:
        for tile in block.distinct:
            if tile.key not in tiles:
                key = subproblem_key(tile.key, block.method, block.settings)
                tiles[tile.key] = key
                if key not in by_key:
                    by_key[key] = Subproblem(tile.label, tile.network, block.method, block.settings)
    return Worklist(by_key=by_key, tiles=tiles, products=tuple(products))


def subproblems(plan: Plan) -> tuple[Subproblem, ...]:
    """All distinct sub-problems of a plan: the blocks' product bounds, then the tiles."""
    return worklist(plan).subproblems


def _product_settings(block: Block) -> Settings:
    # Under the product method an untiled block and its fallback are one and the same sub-problem.
    return block.settings if block.method == FALLBACK_METHOD else Settings()


def _content(block: Block) -> str:
    whole = len(block.tiles) == 1 and block.tiles[0].network is block.network
    return block.tiles[0].key if whole else block.network.content_hash()

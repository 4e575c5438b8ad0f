"""Composition over depth: the constant of a composition is at most the product of the constants."""

from __future__ import annotations

from collections.abc import Sequence

from lipray.compose.bound import BlockBound
from lipray.verify.composition import compose_blocks
from lipray.verify.outward import product_up


def depth_bound(blocks: Sequence[BlockBound]) -> float:
    """Product of the blocks' bounds from input to output, every step rounded upward.

    The order is the blocks', so the answer does not depend on the order in which certificates arrived.
    """
    return compose_blocks([block.upper for block in blocks])


def depth_figures(blocks: Sequence[BlockBound]) -> dict[str, float]:
    """What the whole network's bound would be by one way throughout, for comparison.

    A block that does not have an alternative (an untiled block has no "sum") contributes the bound it is
    used with. A way that no block has is left out.
    """
    names = sorted({name for block in blocks for name in block.alternatives})
    return {name: product_up(block.alternatives.get(name, block.upper) for block in blocks) for name in names}

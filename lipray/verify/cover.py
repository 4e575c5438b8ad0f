"""Tiles that stand for their block: together they are its output map, every position once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipray.errors import PlanError, VerificationError
from lipray.model.network import Network
from lipray.verify.tiles import CutTile, Window, cut_tiles, is_tileable


def covering_tiles(label: str, block: Network, windows: Sequence[Window]) -> tuple[CutTile, ...]:
    """The tiles of a block, once their windows are seen to cover its output map exactly once.

    Raises:
        VerificationError: they do not, or the block cannot be cut so.
    """
    if not is_tileable(block):
        raise VerificationError(label, "it has tiles, and is no map that acts locally in space")
    extent = block.output_shape[1:]
    covered = np.zeros(extent, dtype=bool)
    for window in windows:
        if len(window) != len(extent) or any(not 0 <= a < b <= n for (a, b), n in zip(window, extent, strict=True)):
            raise VerificationError(label, f"{window} is no window of its output map of {extent}")
        own = covered[tuple(slice(a, b) for a, b in window)]
        if own.any():
            raise VerificationError(label, f"its tiles overlap: another one holds positions of {window} too")
        own[...] = True
    if not covered.all():
        raise VerificationError(label, "its tiles leave positions of its output map out")
    try:
        return cut_tiles(block, windows)
    except PlanError as fault:
        raise VerificationError(label, f"it cannot be cut into its tiles ({fault.describe()})") from None

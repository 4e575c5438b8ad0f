"""The pieces of a round, of whatever problem: groups of frequencies, or a tile."""

from __future__ import annotations

from lipray.certify.frequency import bundle as frequency
from lipray.certify.tile_step import AnyTileBundle, AnyTileResult, StepBundle, perform_tile
from lipray.verify.tile_bundle import TileBundle

AnyBundle = frequency.AnyBundle | AnyTileBundle
AnyResult = frequency.AnyResult | AnyTileResult


def perform(bundle: AnyBundle) -> AnyResult:
    """Do the work of one bundle."""
    if isinstance(bundle, StepBundle | TileBundle):
        return perform_tile(bundle)
    return frequency.perform_bundle(bundle)

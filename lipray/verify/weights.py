"""Composition of tiles by diagonal metrics: every position of the input is shared out among the tiles that read it.

Let d_i(p) > 0 weigh the positions p of tile i's receptive field, and let L_i be a Lipschitz constant of the tile as a
map of d_i Δx instead of Δx: ‖Δf_i‖ <= L_i ‖d_i Δx_i‖. That is a constant of the tile after a division of its input by
d_i, a network like any other. The tiles' outputs together are the block's output, each entry once, hence

    ‖Δf‖² = Σ_i ‖Δf_i‖² <= Σ_i L_i² Σ_p d_i(p)² ‖Δx_p‖² <= max_p (Σ_i L_i² d_i(p)²) ‖Δx‖².

Any weights give a bound; d_i = 1 gives the overlap-aware one. Here the squares of a position's weights add up to one
over the tiles that read it, so that it is about the largest L_i, and a tile has a smaller share of what lies near the
border of its field, where few of its outputs read it and its neighbour's read more. Without the weights ``max_i L_i``
is no bound.

Weights come from +, x, / and square roots, which IEEE 754 rounds correctly: they are the same numbers everywhere, and
nobody has to write them down.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lipray.model.network import AvgPool, Network, Node
from lipray.verify.tiles import CutTile, Window


def tile_weights(windows: Sequence[Window], fields: Sequence[Window], shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Weights d_i on the receptive field of every tile, all in (0, 1]; Σ_i d_i(p)² is 1 but for rounding.

    A position's share of a tile falls towards those borders of the field that are not the map's, over as many positions
    as neighbouring fields have in common: as t^(5/8), t the distance to the border over that number.

    Args:
        windows: of the output map, one per tile.
        fields: their receptive fields on the input map.
        shape: (C, ...) of the block's input map.
    """
    extent = tuple(shape[1:])
    common = [
        _common([(w[axis], f[axis]) for w, f in zip(windows, fields, strict=True)]) for axis in range(len(extent))
    ]
    raw = []
    total = np.zeros(extent)
    for field in fields:
        share = np.ones(())
        for span, size, depth in zip(field, extent, common, strict=True):
            share = np.multiply.outer(share, _profile(span, size, depth))
        raw.append(share)
        total[_slices(field)] += share
    return tuple(np.sqrt(share / total[_slices(field)]) for share, field in zip(raw, fields, strict=True))


def weighted(network: Network, weights: np.ndarray) -> Network:
    """The network after a division of its input by weights (one per position, the same for all channels)."""
    key = f"#weights {hashlib.sha256(repr(weights.shape).encode() + weights.tobytes()).hexdigest()[:32]}"
    rank = weights.ndim
    first = network.nodes[0]
    division = AvgPool((1,) * rank, (1,) * rank, ((0, 0),) * rank, key)
    rest = (replace(node, inputs=tuple(place + 1 for place in node.inputs)) for node in network.nodes[1:])
    arrays: Mapping[str, np.ndarray] = ChainMap({key: weights}, network.weights)  # type: ignore[arg-type]  # only read
    return Network((first, Node(f"{first.name}.weighted", division, (0,), first.shape), *rest), arrays)


def weighted_tiles(tiles: Sequence[CutTile], given: Sequence[np.ndarray]) -> tuple[CutTile, ...]:
    """The tiles of a block as maps of their inputs, weighted; those that are alike share one ``Network`` object."""
    made: dict[tuple[int, bytes], Network] = {}
    for tile, weights in zip(tiles, given, strict=True):
        made.setdefault((id(tile.network), weights.tobytes()), weighted(tile.network, weights))
    return tuple(
        replace(tile, network=made[id(tile.network), weights.tobytes()])
        for tile, weights in zip(tiles, given, strict=True)
    )


def _common(spans: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> int:
    """How many positions the fields of neighbouring tiles have in common on one axis, at most."""
    ends: dict[int, int] = {}
    for window, field in spans:
        ends[window[1]] = max(field[1], ends.get(window[1], field[1]))
    return max([1, *(ends[window[0]] - field[0] for window, field in spans if window[0] in ends)])


def _profile(span: tuple[int, int], size: int, depth: int) -> np.ndarray:
    """t^(5/8) along one axis of a field."""
    place = np.arange(span[0], span[1]) + 0.5
    near = np.full(len(place), float(depth))
    if span[0] > 0:
        near = np.minimum(near, place - span[0])
    if span[1] < size:
        near = np.minimum(near, span[1] - place)
    t = near / depth
    root = np.sqrt(t)
    profile: np.ndarray = root * np.sqrt(np.sqrt(root))
    return profile


def _slices(field: Window) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in field)

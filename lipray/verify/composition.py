"""Composition: of a block from the tiles of its output map, and of the network from its blocks."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from lipray.verify.outward import mul_up, product_up, sqrt_up, sum_up
from lipray.verify.tiles import Window


def compose_blocks(bounds: Sequence[float]) -> float:
    """Product of the blocks' bounds from input to output, every step rounded upward.

    ‖f_b(…f_1(x)) − f_b(…f_1(y))‖ ≤ L_b … L_1 ‖x − y‖.
    """
    return product_up(bounds)


def sum_bound(bounds: Sequence[float]) -> float:
    """sqrt(sum_i L_i²), rounded upward, over all tiles (translates counted each time).

    Proof: the tiles' outputs together are the block's output, each entry once, so that
    ‖Δf‖² = Σ ‖Δf_i‖² ≤ Σ L_i² ‖Δx‖² (Sulehman and Mu, the family of equation 4).

    Args:
        bounds: L_i of every tile.
    """
    return _root([mul_up(bound, bound) for bound in bounds], bounds)


def overlap_bound(bounds: Sequence[float], fields: Sequence[Window]) -> float:
    """sqrt(max over input pixels of sum_{i: pixel in field(i)} L_i²), rounded upward.

    Proof: tile i sees its receptive field only, and the tiles' outputs together are the block's output,
    each entry once. With Δx_p the increments of all channels at pixel p,
    ‖Δf‖² = Σ_i ‖Δf_i‖² ≤ Σ_i L_i² ‖Δx_field(i)‖² = Σ_p ‖Δx_p‖² Σ_{i: p in field(i)} L_i²
    ≤ max_p (Σ_{i: p in field(i)} L_i²) ‖Δx‖².
    It is never above ``sum_bound``. max_i L_i alone is not a bound where fields overlap.

    The sum is constant on the cells between the fields' edges; it is accumulated there with every addition
    rounded upward, so no subtraction can lose digits.

    Args:
        bounds: L_i of every tile.
        fields: receptive field of every tile, half-open windows on the block's input map.
    """
    rank = len(fields[0])
    edges = [sorted({edge for field in fields for edge in field[axis]}) for axis in range(rank)]
    cover = np.zeros(tuple(max(len(axis) - 1, 1) for axis in edges))
    for bound, field in zip(bounds, fields, strict=True):
        square = mul_up(bound, bound)
        if square == 0.0:
            continue
        cells = tuple(
            slice(bisect.bisect_left(edges[axis], low), bisect.bisect_left(edges[axis], high))
            for axis, (low, high) in enumerate(field)
        )
        before = cover[cells]
        # Adding to an empty cell is exact; elsewhere step to the next double above the rounded sum.
        with np.errstate(over="ignore"):
            cover[cells] = np.where(before == 0.0, square, np.nextafter(before + square, np.inf))
    peak = float(cover.max())
    return min(_root([peak], bounds), sum_bound(bounds))


def diagonal_bound(
    bounds: Sequence[float],
    fields: Sequence[Window],
    weights: Sequence[np.ndarray | None],
    shape: Sequence[int],
) -> float:
    """sqrt(max over input positions p of Σ_{i: p in field(i)} L_i² d_i(p)²), rounded upward.

    The proof is in ``lipray.verify.weights``. Every step is rounded to the double above.

    Args:
        bounds: L_i of every tile: ‖Δf_i‖ <= L_i ‖d_i Δx_i‖.
        fields: receptive field of every tile, half-open windows on the block's input map.
        weights: d_i on every field, positive; ``None`` where the bound is one in Δx_i itself.
        shape: (C, ...) of the block's input map.
    """
    cover = np.zeros(tuple(shape[1:]))
    for bound, field, own in zip(bounds, fields, weights, strict=True):
        square = mul_up(bound, bound)
        if square == 0.0:
            continue
        at = tuple(slice(low, high) for low, high in field)
        with np.errstate(over="ignore"):
            part = square if own is None else np.nextafter(square * np.nextafter(own * own, np.inf), np.inf)
            cover[at] = np.nextafter(cover[at] + part, np.inf)
    return sqrt_up(float(cover.max()))


def _root(squares: Sequence[float], bounds: Sequence[float]) -> float:
    """sqrt(Σ squares) from above; a single tile needs no detour over its square."""
    return bounds[0] if len(bounds) == 1 else sqrt_up(sum_up(squares))

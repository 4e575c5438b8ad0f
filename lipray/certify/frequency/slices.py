"""One level without a head as LipSDP's inequality, a slice per frequency, for the interior-point method."""

from __future__ import annotations

import itertools

import torch

from lipray.certify.inequality import Inequality, Place
from lipray.verify.torus.groups import frequencies_of
from lipray.verify.torus.levels import Expression, lower_level
from lipray.verify.torus.proof import Setup


def slices_order(setup: Setup) -> int | None:
    """Order of the inequality at one frequency, ``None`` where the set-up is not one level with a map as output."""
    if setup.tail is not None or len(setup.problem.torus.sides) != 1:
        return None
    return setup.network.nodes[0].shape[0] + sum(setup.problem.sizes)


def slices_bytes(setup: Setup) -> int:
    """Bytes that ``slices`` takes, as complex128."""
    order = slices_order(setup) or 0
    rows = order - setup.network.nodes[0].shape[0] + setup.network.nodes[setup.cut].shape[0]
    return 16 * len(setup.groups) * rows * order


def slices(setup: Setup) -> Inequality:
    """The inequality at all frequencies of a one-level set-up, (F, n, d + n)."""
    problem = setup.problem
    finest = frequencies_of([group for group, _ in setup.groups], problem.torus.sides)[0]
    level = lower_level(problem.network, problem.torus, problem.handed, 0, finest)
    d = sum(level.parts)
    starts = [0, *itertools.accumulate([*level.parts, *level.widths])]
    B = torch.zeros(level.count, starts[-1] - d, starts[-1], dtype=torch.complex128)
    C = torch.zeros(level.count, sum(level.output_sizes), starts[-1], dtype=torch.complex128)
    places: list[Place] = []
    for j, layer in enumerate(level.layers):
        at = starts[len(level.parts) + j] - d
        for rows, columns in _fill(B, layer.reads, slice(at, at + layer.size), starts, level.count):
            places.append((rows, columns))
    at = 0
    for reads, size in zip(level.outputs, level.output_sizes, strict=True):
        _fill(C, reads, slice(at, at + size), starts, level.count)
        at += size
    if C.shape[1] > d and len({id(reads) for reads in level.outputs}) == 1:
        C = _square(C)
    return Inequality(B, C, d, tuple(places))


def _fill(target: torch.Tensor, reads: Expression, rows: slice, starts: list[int], count: int) -> list[Place]:
    filled = []
    for source, symbol in reads.items():
        columns = slice(starts[source], starts[source + 1])
        target[:, rows, columns] = symbol.dense(count)
        filled.append((rows, columns))
    return filled


def _square(C: torch.Tensor) -> torch.Tensor:
    """A square factor with the same C* C where that is smaller."""
    used = (C.abs().sum(dim=(0, 1)) > 0).nonzero()[:, 0]
    if used.numel() >= C.shape[1]:
        return C
    factor = torch.linalg.qr(C[:, :, used], mode="r").R
    result = torch.zeros(C.shape[0], factor.shape[1], C.shape[2], dtype=C.dtype)
    result[:, :, used] = factor
    return result

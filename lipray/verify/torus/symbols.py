"""Linear maps between channels at a batch of frequencies, with what their rounding can amount to.

A translation-invariant map y = A x on a torus acts on each frequency ω alone: ŷ(ω) = A(ω) x̂(ω). For a convolution,
A(ω) = Σ_a K[a] e^{iω·(d a - p)}. ``magnitude`` and ``error`` bound |A(ω)| and |A(ω) - exact| entrywise for every
frequency at once, so that they are computed once, on real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lipray.model.network import Conv
from lipray.verify.linear_maps import UNIT
from lipray.verify.underflow import LOST, TINY

Frequencies = tuple[torch.Tensor, ...]
"""Per axis the index k of each frequency 2πk/N, (F,) int64."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A(ω) for a batch of frequencies.

    ``values`` is (F, m, n) complex, or (F, n) (or (1, n)) for a diagonal map; ``magnitude`` is (m, n) or (n,), real and
    at least |A(ω)|; ``error``, of the same shape, bounds the error of ``values``, ``None`` where there is none.
    """

    values: torch.Tensor
    magnitude: torch.Tensor
    error: torch.Tensor | None

    @property
    def diagonal(self) -> bool:
        """Whether the map acts on each channel alone."""
        return self.magnitude.dim() == 1

    @property
    def rows(self) -> int:
        """Number of channels of the result."""
        return int(self.magnitude.shape[0])

    def dense(self, count: int) -> torch.Tensor:
        """The values as (F, m, n)."""
        if not self.diagonal:
            return self.values
        return torch.diag_embed(self.values.expand(count, -1))


def identity(channels: int, dtype: torch.dtype = torch.complex128) -> Symbol:
    """Give the identity on ``channels`` channels."""
    return Symbol(torch.ones(1, channels, dtype=dtype), torch.ones(channels, dtype=torch.float64), None)


def scaling(factors: torch.Tensor, *, rounded: bool) -> Symbol:
    """Scale each channel; ``rounded``: the factors themselves carry 8 units of rounding."""
    values, magnitude = factors.to(torch.complex128)[None], factors.abs()
    if not rounded:
        return Symbol(values, magnitude * (1.0 + 16.0 * UNIT), None)
    lost = _lost(magnitude)
    return Symbol(values, magnitude * (1.0 + 16.0 * UNIT) + lost, magnitude * (8.0 * UNIT) + lost)


def _lost(magnitude: torch.Tensor) -> torch.Tensor:
    """``LOST`` for every number that is not zero, and nothing where units of none of them underflow."""
    moving = magnitude > 0.0
    if not bool((moving & (magnitude < TINY)).any()):
        return torch.zeros_like(magnitude)
    return moving.to(magnitude) * LOST


def on_device(array: np.ndarray) -> torch.Tensor:
    """The array in float64, on the device that new tensors are made on."""
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(torch.get_default_device())


def turns(index: torch.Tensor, side: int, offset: int) -> torch.Tensor:
    """e^{iω offset} at ω = 2π index / side; exact multiples of a quarter turn are exact."""
    # Whole turns are removed in integers, so that the argument stays below 2π.
    step = torch.remainder(index * offset, side)
    angle = step.to(torch.float64) * (2.0 * math.pi / side)
    wave = torch.polar(torch.ones_like(angle), angle)
    quarters = step * 4
    for quarter, value in enumerate((1.0, 1j, -1.0, -1j)):
        wave = torch.where(quarters == quarter * side, torch.tensor(value, dtype=torch.complex128), wave)
    return wave


def shift(frequencies: Frequencies, sides: tuple[int, ...], axis: int, offset: int, channels: int) -> Symbol:
    """Read y[i] = x[i + offset] along one axis."""
    wave = turns(frequencies[axis], sides[axis], offset)
    ones = torch.ones(channels, dtype=torch.float64)
    values = wave[:, None].expand(-1, channels)
    return Symbol(values, ones * (1.0 + 32.0 * UNIT), None if offset == 0 else ones * (24.0 * UNIT))


def convolution(op: Conv, weight: np.ndarray, frequencies: Frequencies, sides: tuple[int, ...]) -> Symbol:
    """A(ω) of a convolution at stride 1; ``weight`` is (out, in / groups, k...)."""
    stored = on_device(weight)
    outputs, per_group = stored.shape[:2]
    taps = stored.shape[2:]
    flat = stored.reshape(outputs * per_group, -1)
    waves = torch.ones(frequencies[0].shape[0], 1, dtype=torch.complex128)
    for axis, count in enumerate(taps):
        offsets = [op.dilation[axis] * a - op.padding[axis][0] for a in range(count)]
        table = torch.stack([turns(frequencies[axis], sides[axis], offset) for offset in offsets], dim=1)
        waves = (waves[:, :, None] * table[:, None, :]).reshape(waves.shape[0], -1)
    values = waves * flat[:, 0] if flat.shape[1] == 1 else waves @ flat.T.to(torch.complex128)
    moduli = flat.abs()
    absolute = moduli.sum(dim=1) * (1.0 + 2.0 * (flat.shape[1] + 16) * UNIT)
    # Products with waves off by a few units each, then a sum of as many terms as taps.
    error = absolute * (4.0 * (flat.shape[1] + 12) * UNIT) + _lost(moduli).sum(dim=1)
    exact = flat.shape[1] == 1 and all(op.padding[axis][0] == 0 for axis in range(len(taps)))
    values = values.reshape(-1, outputs, per_group)
    absolute, error = absolute.reshape(outputs, per_group), error.reshape(outputs, per_group)
    if op.groups > 1 and per_group == 1 and op.groups == outputs:
        return Symbol(values[:, :, 0], absolute[:, 0], None if exact else error[:, 0])
    if op.groups > 1:
        values, absolute, error = (_ungroup(part, op.groups) for part in (values, absolute[None], error[None]))
        absolute, error = absolute[0], error[0]
    return Symbol(values, absolute, None if exact else error)


def _ungroup(part: torch.Tensor, groups: int) -> torch.Tensor:
    count, outputs, per_group = part.shape
    rows = outputs // groups
    full = torch.zeros(count, outputs, per_group * groups, dtype=part.dtype)
    for group in range(groups):
        block = slice(group * rows, (group + 1) * rows)
        full[:, block, group * per_group : (group + 1) * per_group] = part[:, block]
    return full


def compose(outer: Symbol, inner: Symbol) -> Symbol:
    """Outer after inner, with the rounding of the product."""
    if outer.diagonal and inner.diagonal:
        values = outer.values * inner.values
        magnitude, terms = outer.magnitude * inner.magnitude, 1
        times: Times = torch.mul
    elif outer.diagonal:
        values = outer.values[:, :, None] * inner.values
        magnitude, terms = outer.magnitude[:, None] * inner.magnitude, 1
        times = _by_rows
    elif inner.diagonal:
        values = outer.values * inner.values[:, None, :]
        magnitude, terms = outer.magnitude * inner.magnitude, 1
        times = torch.mul
    else:
        values = outer.values @ inner.values
        magnitude, terms = outer.magnitude @ inner.magnitude, outer.magnitude.shape[1]
        times = torch.matmul
    parts = _products(outer, inner, times)
    magnitude = magnitude * (1.0 + 2.0 * (terms + 2) * UNIT)
    if not (_trivial(outer) or _trivial(inner)):
        parts.append(magnitude * (8.0 * (terms + 2) * UNIT))
        if bool((magnitude < TINY).any()):
            lost = times((outer.magnitude > 0.0).double(), (inner.magnitude > 0.0).double()) * LOST
            parts.append(lost)
            magnitude = magnitude + lost
    return Symbol(values, magnitude, _total(parts))


def add(first: Symbol, second: Symbol) -> Symbol:
    """Give the sum of two maps."""
    if first.diagonal != second.diagonal:
        count = max(first.values.shape[0], second.values.shape[0])
        first, second = (_opened(symbol, count) for symbol in (first, second))
    values = first.values + second.values
    magnitude = (first.magnitude + second.magnitude) * (1.0 + 4.0 * UNIT)
    parts = [part for part in (first.error, second.error) if part is not None]
    parts.append(magnitude * (2.0 * UNIT))
    return Symbol(values, magnitude, _total(parts))


def scale(coefficient: float, symbol: Symbol) -> Symbol:
    """Give a real multiple of a map."""
    if coefficient == 1.0:
        return symbol
    parts = [] if symbol.error is None else [symbol.error * abs(coefficient)]
    magnitude = symbol.magnitude * abs(coefficient) * (1.0 + 4.0 * UNIT)
    if abs(coefficient) not in {0.0, 1.0}:
        parts.append(magnitude * (2.0 * UNIT))
        if bool((magnitude < TINY).any()):
            lost = (symbol.magnitude > 0.0).to(magnitude) * LOST
            parts.append(lost)
            magnitude = magnitude + lost
    return Symbol(symbol.values * coefficient, magnitude, _total(parts))


def place(symbol: Symbol, rows: int, start: int, count: int) -> Symbol:
    """Put the map's rows at ``start`` among ``rows`` rows of zeros (a concatenation's part)."""
    opened = _opened(symbol, count)
    values = torch.zeros(opened.values.shape[0], rows, opened.values.shape[2], dtype=opened.values.dtype)
    values[:, start : start + opened.rows] = opened.values
    return Symbol(
        values,
        _padded(opened.magnitude, rows, start),
        None if opened.error is None else _padded(opened.error, rows, start),
    )


def _padded(part: torch.Tensor, rows: int, start: int) -> torch.Tensor:
    full = torch.zeros(rows, part.shape[1], dtype=part.dtype)
    full[start : start + part.shape[0]] = part
    return full


def _opened(symbol: Symbol, count: int) -> Symbol:
    """The same map stored densely."""
    if not symbol.diagonal:
        return symbol
    error = None if symbol.error is None else torch.diag(symbol.error)
    return Symbol(symbol.dense(count), torch.diag(symbol.magnitude), error)


Times = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _by_rows(factors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return factors[:, None] * matrix


def _products(outer: Symbol, inner: Symbol, times: Times) -> list[torch.Tensor]:
    parts = []
    if outer.error is not None:
        parts.append(times(outer.error, inner.magnitude if inner.error is None else inner.magnitude + inner.error))
    if inner.error is not None:
        parts.append(times(outer.magnitude, inner.error))
    return parts


def _trivial(symbol: Symbol) -> bool:
    """Whether multiplying by the map rounds nothing: a diagonal of ones and minus ones."""
    return (
        symbol.diagonal
        and symbol.error is None
        and bool((symbol.values.real.abs() == 1.0).all())
        and not bool(symbol.values.imag.any())
    )


def _total(parts: list[torch.Tensor]) -> torch.Tensor | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total * (1.0 + 1e-9)

"""Numbers of many digits, and a network's operations on them: float64 products that round nothing, int64 carries.

A number is whole in units of 2^(bits·low) and written in digits to the base 2^bits: all in [0, 2^bits) but the highest,
which is in [-2^bits, 2^bits) and has the number's sign. The numbers of a batch have equally many.

*Products are exact.* Weights are written in digits too, all of them, so that nothing of a weight is lost. A digit of a
weight times one of a signal is at most 4^bits in modulus. What ``evaluate_node`` makes of a batch of digits with one
digit of the weights is a sum of at most t such products, t the terms of one entry, and ``fitting`` takes the digits
so small that t 4^bits <= 2^53. Every partial sum, in any order and with fused operations or without, is then a whole
number of at most 2^53: float64 holds it, and nothing is rounded. A padding adds zeros. Images are added up as int64:
2^53 times the digits of a weight (at most 2000 / 15) and a carry stay below 2^63.

*What is lost* is below the unit: less than one of them, downward, where something is multiplied or divided, and towards
zero where a float64 number is written in digits. ReLU, leaky ReLU's and abs's branches and maxima are told by signs,
which are exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from lipray.model.evaluate import Weights, evaluate_node, pad_spatial
from lipray.model.network import Activation, AvgPool, Conv, Dense, MaxPool, Network, Node, Sum

FINEST = 900
"""A unit is not below 2^-FINEST, no weight but zero below that in modulus, and none above its inverse."""
TERMS = 2**22
"""Terms of one entry, at most."""
ACTIVATIONS = ("relu", "leaky_relu", "abs")

Apply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fitting(terms: int) -> int:
    """Bits of a digit, so that sums of that many products are exact."""
    return (53 - (terms - 1).bit_length()) // 2


def divisor(op: AvgPool, weights: Weights) -> torch.Tensor:
    """What the sums over windows are divided by."""
    count = torch.tensor(float(math.prod(op.kernel)), dtype=torch.float64)
    return count if op.divisor is None else weights[op.divisor]


def windows(op: MaxPool, shape: tuple[int, ...]) -> torch.Tensor:
    """Flat positions on a map of that shape, (taps, windows); for those outside one inside, -1 if there is none."""
    places = pad_spatial(torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, 1, *shape), op.padding, -1.0)
    kernel, dilation, stride = ((1, *sizes)[-2:] for sizes in (op.kernel, op.dilation, op.stride))
    found = F.unfold(places.unsqueeze(-2) if len(shape) == 1 else places, kernel, dilation, 0, stride)[0].long()
    found = found.sort(0, descending=True).values
    return torch.where(found < 0, found[:1], found)


def _digits(values: torch.Tensor, bits: int, lowest: int) -> dict[int, torch.Tensor]:
    """Digits by position, of the sign of the numbers; what is left is below 2^(bits·lowest) in modulus. Exact."""
    found, rest = {}, values
    while rest.numel() and (most := float(rest.abs().max())) > 0.0:
        position = (math.frexp(most)[1] - 1) // bits
        if position < lowest:
            break
        found[position] = torch.trunc(rest / math.ldexp(1.0, bits * position))
        rest = rest - found[position] * math.ldexp(1.0, bits * position)
    return found


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers in digits of ``bits`` bits from position ``low`` up: int64 tensors (digits, points, *shape)."""

    bits: int
    low: int

    def images(self, network: Network, points: torch.Tensor, weights: Weights) -> torch.Tensor:
        """The outputs of a batch of points."""
        last_use = {source: index for index, node in enumerate(network.nodes) for source in node.inputs}
        signals = {0: self.number(points)}
        for index, node in enumerate(network.nodes[1:], start=1):
            signals[index] = self.node(node, [signals[i] for i in node.inputs], weights)
            for i in set(node.inputs):
                if last_use[i] == index:
                    del signals[i]
        return signals[len(network.nodes) - 1]

    def node(self, node: Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
        """One node's signal."""
        op, x = node.op, sources[0]
        if isinstance(op, Conv | Dense):
            bare, key = replace(node, op=replace(op, bias=None)), op.weight
            result = self.times(x, weights[key], lambda batch, digit: evaluate_node(bare, [batch], {key: digit}))
            if op.bias is None:
                return result
            shape = [1] * len(node.shape)
            shape[0 if isinstance(op, Conv) else -1] = -1
            return self.total(result, self.number(weights[op.bias].reshape(1, *shape)))
        if isinstance(op, Activation):
            return self.activation(op, x)
        if isinstance(op, Sum):
            factors = [torch.tensor([value], dtype=torch.float64) for value in op.coefficients]
            return self.total(*(self.times(x, c, torch.mul) for x, c in zip(sources, factors, strict=True)))
        if isinstance(op, MaxPool):
            return self.max_pool(op, x).reshape(len(x), -1, *node.shape)
        if isinstance(op, AvgPool):
            whole, one = replace(node, op=replace(op, divisor="one")), torch.ones((), dtype=torch.float64)
            sums = self.carried(_each([x], lambda batches: evaluate_node(whole, batches, {"one": one})))
            return self.divided(sums, divisor(op, weights).long())
        return self.carried(_each(sources, lambda batches: evaluate_node(node, batches, {})))

    def number(self, values: torch.Tensor) -> torch.Tensor:
        """Float64 numbers, cut off towards zero."""
        digits = _digits(values, self.bits, self.low)
        result = torch.zeros((max(digits, default=self.low) - self.low + 1, *values.shape), dtype=torch.int64)
        for position, digit in digits.items():
            result[position - self.low] = digit.long()
        return self.carried(result)

    def carried(self, x: torch.Tensor) -> torch.Tensor:
        """The same numbers, of any digits, in the digits of the module's docstring, as few as hold them."""
        digits, carry = [], torch.zeros_like(x[0])
        for digit in x:
            carry = carry + digit
            digits.append(carry & (1 << self.bits) - 1)
            carry = carry >> self.bits  # downward
        while not _sign(carry):
            digits.append(carry & (1 << self.bits) - 1)
            carry = carry >> self.bits
        digits.append(carry)
        while len(digits) > 1 and _sign(digits[-1]):
            top = digits.pop()
            digits[-1] = digits[-1] + (top << self.bits)
        return torch.stack(digits)

    def total(self, *terms: torch.Tensor) -> torch.Tensor:
        """A sum, points and shapes broadcast."""
        digits = max(map(len, terms))
        return self.carried(functools.reduce(torch.add, (_filled(term, digits) for term in terms)))

    def times(self, x: torch.Tensor, factor: torch.Tensor, apply: Apply) -> torch.Tensor:
        """What is linear in a batch and in float64 numbers, rounded down to units."""
        digits = _digits(factor, self.bits, -FINEST) or {0: torch.zeros_like(factor)}
        low, batch = min(digits), x.flatten(0, 1).double()
        result = torch.zeros(0, dtype=torch.int64)
        for position, digit in digits.items():  # the highest first
            image = _split(apply(batch, digit), len(x))
            if not len(result):
                result = torch.zeros((len(x) + position - low, *image.shape[1:]), dtype=torch.int64)
            result[position - low : position - low + len(x)] += image
        if low >= 0:
            return self.carried(torch.cat([result.new_zeros((low, *result.shape[1:])), result]))
        whole = self.carried(result)
        return whole[-low:] if len(whole) > -low else whole[-1:] >> self.bits

    def divided(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """Quotients by positive whole numbers below 4^bits, rounded down: long division from the top."""
        rest, digits = torch.zeros_like(x[0]), []
        for digit in x.flip(0):
            rest = (rest << self.bits) + digit
            digits.append(rest.div(by, rounding_mode="floor"))
            rest = rest - digits[-1] * by
        return self.carried(torch.stack(digits).flip(0))

    def activation(self, op: Activation, x: torch.Tensor) -> torch.Tensor:
        """One of ``ACTIVATIONS``."""
        if op.function == "leaky_relu":
            slopes = torch.tensor(op.parameters, dtype=torch.float64).reshape(-1, *[1] * (x.dim() - 3))
            below = self.times(x, slopes, torch.mul)
        else:
            below = -x if op.function == "abs" else torch.zeros_like(x[:1])
        keep = x[-1] >= 0
        return self.total(torch.where(keep, x, 0), torch.where(keep, 0, below))

    def max_pool(self, op: MaxPool, x: torch.Tensor) -> torch.Tensor:
        """Maxima over windows, the positions flat: the larger of two is told by the sign of their difference."""
        places = windows(op, tuple(x.shape[3:]))
        entries = x.flatten(3)
        best = entries[..., places[0]]
        for window in places[1:]:
            other = entries[..., window]
            best = torch.where(self.total(other, -best)[-1] >= 0, other, best)
        return best


def _sign(digit: torch.Tensor) -> bool:
    """Whether a highest digit only says the sign."""
    return bool(((digit == 0) | (digit == -1)).all())


def _filled(x: torch.Tensor, digits: int) -> torch.Tensor:
    return x if len(x) == digits else torch.cat([x, x.new_zeros((digits - len(x), *x.shape[1:]))])


def _split(batch: torch.Tensor, digits: int) -> torch.Tensor:
    return batch.long().reshape(digits, len(batch) // digits, *batch.shape[1:])


def _each(sources: list[torch.Tensor], apply: Callable[[list[torch.Tensor]], torch.Tensor]) -> torch.Tensor:
    """What does not multiply, done digit by digit."""
    digits = max(map(len, sources))
    return _split(apply([_filled(x, digits).flatten(0, 1).double() for x in sources]), digits)

"""The inequality behind a bound as a quotient of two quadratic forms of live weights.

With a network in sector form, z = (x, u_1, u_2, ...) any signals at the input and behind the activations, v_k(z) what
activation k reads and y(z) the output, all linear in z, multipliers λ >= 0 and

    N(z) = ‖x‖² + 2 Σ_k Σ_a λ_ka u_ka (u_ka - v_ka(z)),

slopes in [0, 1] give u (u - v) <= 0, so ‖x‖² >= N, and where N is positive definite

    Lip² <= ρ(λ, W) = max over z of ‖y(z)‖² / N(z)

(``lipray.verify.elimination`` computes the same ρ by elimination, with its rounding). A maximiser z* gives the
gradient: with λ held fixed dρ/dW is the derivative of the quotient at z*, W alone moving (Danskin 1967, theorem I).
Where λ is optimal its own derivative vanishes, so that this is the gradient of the optimised bound too (the envelope
theorem, Milgrom & Segal 2002). z* is found by locally optimal conjugate gradients (Knyazev 2001) from where the last
ones ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lipray.errors import TrainingError
from lipray.model import network as net
from lipray.train.product import apply_linear

Weights = Mapping[str, torch.Tensor]
Signals = list[torch.Tensor]
"""x (1, *input), then u (1, *shape) per activation."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """A network's activations: node indices, the slopes' low ends and widths, (*shape) or broadcast over it."""

    network: net.Network
    nodes: tuple[int, ...]
    low: tuple[torch.Tensor, ...]
    width: tuple[torch.Tensor, ...]


def lift(network: net.Network) -> Lifted:
    """Set up.

    Raises:
        TrainingError: a max-pool or softmax, whose sector form has other signals.
    """
    nodes, low, width = [], [], []
    for index, node in enumerate(network.nodes):
        if isinstance(node.op, net.MaxPool | net.Softmax):
            raise TrainingError(
                f"layer {node.name!r}",
                f"a {type(node.op).__name__} has no multipliers to train with",
                hint="Use an average pool, or train with the product bound.",
            )
        if isinstance(node.op, net.Activation):
            ones = (-1, *[1] * (len(node.shape) - 1))
            bounds = [torch.tensor(side, dtype=torch.float64).reshape(ones) for side in (node.op.lower, node.op.upper)]
            nodes.append(index)
            low.append(bounds[0])
            width.append(bounds[1] - bounds[0])
    return Lifted(network, tuple(nodes), tuple(low), tuple(width))


def spread_multipliers(
    lifted: Lifted, names: tuple[tuple[str, int], ...], found: tuple[np.ndarray, ...]
) -> list[torch.Tensor] | None:
    """λ (*shape) of every activation, from a proof's layers; ``None`` where they cannot be told apart.

    A proof has one number per channel (tori), or per neuron whose slope can vary (the sector form leaves the others
    out); layers of other names (masks of windows) have no signals of their own in space.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for (name, _), own in zip(names, found, strict=True):
        by_name.setdefault(name, []).append(own)
    spread = []
    for index, width in zip(lifted.nodes, lifted.width, strict=True):
        node = lifted.network.nodes[index]
        moving = (width != 0.0).expand(node.shape)
        held = by_name.get(node.name, [])
        if not bool(moving.any()):
            spread.append(torch.zeros(node.shape, dtype=torch.float64))
            continue
        if len(held) != 1:
            return None
        values = torch.from_numpy(np.asarray(held[0], dtype=np.float64))
        full = torch.zeros(node.shape, dtype=torch.float64)
        if len(values) == int(moving.sum()):
            full[moving] = values
        elif len(values) == node.shape[0]:
            full = values.reshape(-1, *[1] * (len(node.shape) - 1)).expand(node.shape) * moving
        else:
            return None
        spread.append(full)
    return spread


class Quotient:
    """‖y‖² / N at given multipliers, and a maximiser that is kept.

    Args:
        lifted: the network.
        multipliers: λ (*shape) per activation.
        seed: of the first vector.
    """

    def __init__(self, lifted: Lifted, multipliers: list[torch.Tensor], seed: int = 0) -> None:
        self.lifted = lifted
        self.multipliers = [value[None] for value in multipliers]
        generator = torch.Generator().manual_seed(seed)
        shapes = [lifted.network.input_shape, *(lifted.network.nodes[index].shape for index in lifted.nodes)]
        first = [torch.randn(1, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        # Not from u = 0: where all of the output comes through activations, the quotient is stationary there.
        behind = zip(first[1:], self.multipliers, strict=True)
        self.signals = [first[0], *(part * _inverse(lam).sqrt() for part, lam in behind)]
        self._past: Signals | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        multipliers = [value[0] for value in self.multipliers]
        return {"multipliers": multipliers, "signals": self.signals, "past": self._past}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the maximiser in ``state``."""
        self.signals, self._past = state["signals"], state["past"]

    @torch.enable_grad()
    def climb(self, weights: Weights, steps: int) -> float | None:
        """Improve the maximiser at these weights; ρ so far, ``None`` if N is seen not to be positive definite."""
        like = next(iter(weights.values()))
        fixed = {key: value.detach() for key, value in weights.items()}
        lams = [lam.to(like) for lam in self.multipliers]
        scale = [torch.ones((), dtype=like.dtype), *(_inverse(lam) for lam in lams)]
        z = [part.to(like) for part in self.signals]
        past = None if self._past is None else [part.to(like) for part in self._past]
        value = 0.0
        for _ in range(steps):
            for part in z:
                part.requires_grad_()
            top, below = self._forms(z, fixed, lams)
            if not below.item() > 0.0:
                return None
            value = top.item() / below.item()
            slope = torch.autograd.grad(top - value * below, z)
            z = [part.detach() for part in z]
            directions = [z, [s * g for s, g in zip(scale, slope, strict=True)]]
            if past is not None:
                directions.append(past)
            chosen = self._best(directions, fixed, lams)
            if chosen is None:
                return None
            moved = [sum_of(parts, chosen) for parts in zip(*directions, strict=True)]
            past = [a - chosen[0] * b for a, b in zip(moved, z, strict=True)]
            size = float(torch.sqrt(sum_of([part.square().sum() for part in moved], [1.0] * len(moved))))
            if not size > 0.0:
                break
            z = [part / size for part in moved]
            past = [part / size for part in past]
        self.signals = [part.detach() for part in z]
        self._past = past
        return value

    def value(self, weights: Weights) -> torch.Tensor:
        """ρ at the kept maximiser, differentiable in the weights."""
        like = next(iter(weights.values()))
        z = [part.to(like) for part in self.signals]
        top, below = self._forms(z, weights, [lam.to(like) for lam in self.multipliers])
        return top / below

    def _forms(self, z: Signals, weights: Weights, lams: Signals) -> tuple[torch.Tensor, torch.Tensor]:
        reads, output = self._run(z, weights)
        below = z[0].square().sum()
        for u, v, lam in zip(z[1:], reads, lams, strict=True):
            below = below + 2.0 * (lam * u * (u - v)).sum()
        return output.square().sum(), below

    def _run(self, z: Signals, weights: Weights) -> tuple[Signals, torch.Tensor]:
        """What every activation reads, and the output."""
        network = self.lifted.network
        place = {index: number for number, index in enumerate(self.lifted.nodes)}
        signals: list[torch.Tensor] = []
        reads: Signals = []
        for index, node in enumerate(network.nodes):
            if isinstance(node.op, net.Input):
                signals.append(z[0])
            elif index in place:
                number = place[index]
                v = signals[node.inputs[0]]
                low, width = self.lifted.low[number].to(v), self.lifted.width[number].to(v)
                reads.append(v)
                signals.append(low * v + width * z[number + 1])
            else:
                signals.append(_linear(node, [signals[i] for i in node.inputs], weights))
        return reads, signals[-1]

    def _best(self, directions: list[Signals], weights: Weights, lams: Signals) -> list[float] | None:
        """Coefficients of the best combination of the directions; ``None`` where N is not positive on it."""
        with torch.no_grad():
            images = [self._run(direction, weights) for direction in directions]
            count = len(directions)
            top = torch.zeros(count, count, dtype=torch.float64)
            below = torch.zeros(count, count, dtype=torch.float64)
            for i in range(count):
                for j in range(count):
                    top[i, j] = float((images[i][1] * images[j][1]).sum())
                    value = float((directions[i][0] * directions[j][0]).sum())
                    pairs = zip(directions[i][1:], directions[j][1:], images[i][0], images[j][0], lams, strict=True)
                    for u, w, v, r, lam in pairs:
                        value += float((lam * (2.0 * u * w - u * r - w * v)).sum())
                    below[i, j] = value
        size = below.diagonal().clamp(min=1e-300).rsqrt()
        factor, fault = torch.linalg.cholesky_ex(size[:, None] * below * size)
        if int(fault) or bool((below.diagonal() <= 0.0).any()):
            return None if count == 1 else self._best(directions[:-1], weights, lams)
        inner = torch.linalg.solve_triangular(factor, size[:, None] * top * size, upper=False)
        inner = torch.linalg.solve_triangular(factor, inner.mT, upper=False)
        vector = torch.linalg.eigh((inner + inner.mT) / 2.0).eigenvectors[:, -1:]
        coefficients = torch.linalg.solve_triangular(factor.mT, vector, upper=True)[:, 0] * size
        found = [float(c) for c in coefficients]
        return found if found[0] != 0.0 else [1.0, *found[1:]]


def _linear(node: net.Node, sources: list[torch.Tensor], weights: Weights) -> torch.Tensor:
    if isinstance(node.op, net.Sum | net.Concat):
        from lipray.model.evaluate import evaluate_node

        return evaluate_node(node, sources, weights)
    return apply_linear(node, sources[0], weights)


def _inverse(lam: torch.Tensor) -> torch.Tensor:
    """Preconditioner 1 / 2λ; where λ is 0 the signal counts nowhere, or has no slope to vary."""
    return torch.where(lam > 0.0, 0.5 / lam.clamp(min=1e-30), torch.zeros_like(lam))


def sum_of(parts: list[torch.Tensor] | tuple[torch.Tensor, ...], factors: list[float]) -> torch.Tensor:
    """Σ factors · parts."""
    total = factors[0] * parts[0]
    for part, factor in zip(parts[1:], factors[1:], strict=False):
        total = total + factor * part
    return total

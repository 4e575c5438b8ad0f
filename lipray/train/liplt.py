"""LipLT on live weights, for chains (Fazlyab, Entesari, Roy & Chellappa 2023).

With slopes in [a, b], φ(v) = c v + r w, c = (a + b) / 2, r = (b - a) / 2 and |Δw| <= |Δv|. Unrolled through the linear
parts, v_j = D_j0 x + Σ_i D_ji w_i with D_ji = W_j c W_(j-1) ... c W_(i+1) r, so that L_j <= ‖D_j0‖ + Σ_i ‖D_ji‖ L_i.
Each L_j is also at most the product ‖W_j‖ max(|a|, |b|) L_(j-1), and the smaller is taken: with ReLU the first is never
larger, with MinMax it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lipray.errors import TrainingError
from lipray.model import network as net
from lipray.train.norms import Iterates
from lipray.train.product import apply_linear

Weights = Mapping[str, torch.Tensor]
Map = Callable[[torch.Tensor], torch.Tensor]


class LipLT:
    """The bound of a chain: every node reads the one before it, and only activations are not linear.

    Args:
        network: the graph.
        steps: power iterations per call and product of layers; there are as many of these as pairs of layers.

    Raises:
        TrainingError: the network is no chain, or has a max-pool.
    """

    def __init__(self, network: net.Network, steps: int = 1) -> None:
        self.network = network
        self.iterates = Iterates(steps)
        self._parts: list[list[net.Node]] = [[]]
        self._activations: list[net.Node] = []
        for index, node in enumerate(network.nodes):
            if index and node.inputs != (index - 1,):
                raise TrainingError(
                    "bound 'liplt'", f"layer {node.name!r} does not follow the one before it", hint=_HINT
                )
            match node.op:
                case net.MaxPool() | net.Softmax():
                    raise TrainingError("bound 'liplt'", f"layer {node.name!r} is not element-wise", hint=_HINT)
                case net.Activation():
                    self._activations.append(node)
                    self._parts.append([])
                case net.Input():
                    pass
                case _:
                    self._parts[-1].append(node)

    def __call__(self, weights: Weights) -> torch.Tensor:
        """The bound at these weights, from below as far as the iterates have not converged."""
        like = next(iter(weights.values()))
        bounds = [torch.ones((), dtype=like.dtype, device=like.device)]
        for j, part in enumerate(self._parts):
            terms = [self._norm(i, j, weights, like) * bounds[i] for i in range(j + 1)]
            total = torch.stack(terms).sum()
            if j:
                steepest = max(map(abs, (*self._activations[j - 1].op.lower, *self._activations[j - 1].op.upper)))  # type: ignore[union-attr]
                own = self._norm(-1, j, weights, like)
                total = torch.minimum(total, own * steepest * bounds[j]) if part else total
            bounds.append(total)
        return bounds[-1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"iterates": self.iterates.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.iterates.restore(state["iterates"])

    def _norm(self, start: int, end: int, weights: Weights, like: torch.Tensor) -> torch.Tensor:
        """‖D_ji‖ with w_i behind activation i (0: the input); ``start`` -1: the norm of the linear part alone."""
        first = end if start < 0 else start
        shape = self.network.input_shape if first == 0 else self._activations[first - 1].shape
        apply = self._alone(end, weights) if start < 0 else self._product(start, end, weights)
        return self.iterates.norm(f"{start}:{end}", apply, shape, like)

    def _alone(self, end: int, weights: Weights) -> Map:
        return lambda x: _through(self._parts[end], x, weights)

    def _product(self, start: int, end: int, weights: Weights) -> Map:
        def apply(x: torch.Tensor) -> torch.Tensor:
            if start:
                x = _factor(self._activations[start - 1], x, half_width=True)
            for index in range(start, end + 1):
                x = _through(self._parts[index], x, weights)
                if index < end:
                    x = _factor(self._activations[index], x, half_width=False)
            return x

        return apply


_HINT = "Train with the product, the closed form or the optimised bound."


def _through(part: Sequence[net.Node], x: torch.Tensor, weights: Weights) -> torch.Tensor:
    for node in part:
        x = apply_linear(node, x, weights)
    return x


def _factor(node: net.Node, x: torch.Tensor, *, half_width: bool) -> torch.Tensor:
    op = node.op
    assert isinstance(op, net.Activation)  # noqa: S101 (as collected)
    sign = -1.0 if half_width else 1.0
    values = [(upper + sign * lower) / 2.0 for lower, upper in zip(op.lower, op.upper, strict=True)]
    return x * torch.tensor(values).to(x).reshape(-1, *[1] * (x.dim() - 2))

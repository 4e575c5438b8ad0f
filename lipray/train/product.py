"""The product bound on live weights: the walk of ``lipray.verify.product``, with norms by power iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lipray.model import network as net
from lipray.model.evaluate import evaluate_node
from lipray.train.norms import Iterates
from lipray.verify.layer_norms import operation_constant

Weights = Mapping[str, torch.Tensor]


class Product:
    """Product of the norms along the graph, batch norms joined to their convolution.

    Args:
        network: the graph.
        fixed: keys of arrays that training does not change; the norms of their layers are worked out once.
        steps: power iterations per call and layer.
    """

    def __init__(self, network: net.Network, fixed: frozenset[str] = frozenset(), steps: int = 1) -> None:
        self.network = network
        self.iterates = Iterates(steps)
        self._joined = frozenset(_joined(network))
        self._constants = {
            index: operation_constant(node.op, network.weights, network.nodes[node.inputs[0]].shape, node.shape)
            for index, node in enumerate(network.nodes)
            if node.inputs and index not in self._joined and not _is_live(node, fixed) and not _joins(node)
        }

    def __call__(self, weights: Weights) -> torch.Tensor:
        """The bound at these weights, from below as far as the iterates have not converged."""
        like = next(iter(weights.values()))
        nodes = self.network.nodes
        values: list[torch.Tensor] = []
        for index, node in enumerate(nodes):
            inputs = [values[i] for i in node.inputs]
            match node.op:
                case net.Input():
                    values.append(torch.ones((), dtype=like.dtype, device=like.device))
                case net.Sum():
                    terms = zip(node.op.coefficients, inputs, strict=True)
                    values.append(torch.stack([abs(c) * x for c, x in terms]).sum())
                case net.Concat():
                    values.append(torch.stack(inputs).square().sum().clamp(min=1e-30).sqrt())
                case _ if index in self._joined:
                    values.append(inputs[0])  # together with the batch norm that follows
                case _ if index in self._constants:
                    values.append(self._constants[index] * inputs[0])
                case _:
                    values.append(self._norm(index, weights, like) * inputs[0])
        return values[-1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"iterates": self.iterates.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.iterates.restore(state["iterates"])

    def _norm(self, index: int, weights: Weights, like: torch.Tensor) -> torch.Tensor:
        node = self.network.nodes[index]
        chain = [node]
        if node.inputs[0] in self._joined:
            chain.insert(0, self.network.nodes[node.inputs[0]])
        source = self.network.nodes[chain[0].inputs[0]].shape

        def apply(x: torch.Tensor) -> torch.Tensor:
            for part in chain:
                x = apply_linear(part, x, weights)
            return x

        return self.iterates.norm(str(index), apply, source, like)


def apply_linear(node: net.Node, x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """A node's linear part: without its bias or shift."""
    match node.op:
        case net.Conv() | net.Dense():
            return evaluate_node(replace(node, op=replace(node.op, bias=None)), [x], weights)
        case net.ChannelAffine():
            return x * weights[node.op.scale].reshape(-1, *[1] * (len(node.shape) - 1))
        case _:
            return evaluate_node(node, [x], weights)


def _joins(node: net.Node) -> bool:
    return isinstance(node.op, net.Sum | net.Concat)


def _is_live(node: net.Node, fixed: frozenset[str]) -> bool:
    match node.op:
        case net.Conv() | net.Dense():
            return node.op.weight not in fixed
        case net.ChannelAffine():
            return node.op.scale not in fixed
        case _:
            return False


def _joined(network: net.Network) -> list[int]:
    """Convolutions that only a batch norm reads."""
    readers: dict[int, list[net.Node]] = {}
    for node in network.nodes:
        for source in node.inputs:
            readers.setdefault(source, []).append(node)
    return [
        index
        for index, node in enumerate(network.nodes)
        if isinstance(node.op, net.Conv)
        and len(readers.get(index, [])) == 1
        and isinstance(readers[index][0].op, net.ChannelAffine)
    ]

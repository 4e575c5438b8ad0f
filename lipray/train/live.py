"""A module's graph with its weights as they are now: what the differentiable bounds are written on.

The module is imported once (``lipray.model.importer``); after that the arrays of the graph are read from the live
module, so that a bound has a gradient in its parameters. Which array is which tensor is found by name, and checked on a
copy with other weights: a graph whose arrays are not followed would train against the bound of a network that is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from lipray.errors import TrainingError
from lipray.model.importer import import_module
from lipray.model.network import Dense, Network, Node, array_keys

Read = Callable[[nn.Module], torch.Tensor]

CLOSE = 1e-4
"""Relative difference between an array of the graph (float64) and a module's tensor (float32) that counts as equal."""

LINEAR_FIELDS = ("weight", "scale", "divisor")
"""Arrays that a Lipschitz constant depends on; biases and shifts are not followed."""


@dataclass(frozen=True, slots=True)
class Live:
    """A graph and how its arrays are read from the module; arrays that training does not change are in ``constant``."""

    network: Network
    followed: Mapping[str, Read]
    constant: Mapping[str, torch.Tensor]

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The arrays that count, by key, in the module's precision and on its device, with gradients."""
        sample = next(module.parameters())
        read = {key: reader(module) for key, reader in self.followed.items()}
        return read | {key: value.to(sample) for key, value in self.constant.items()}


def live(module: nn.Module, input_shape: Sequence[int]) -> Live:
    """The graph of a module, in eval mode, and how to read it.

    Args:
        module: a network that is trained; its mode is left as it was.
        input_shape: of one input.

    Raises:
        TrainingError: an array of the graph depends on parameters in a way that cannot be followed.
        ModelError: and its kinds, from the import.
    """
    was = module.training
    try:
        module.eval()
        shape = tuple(input_shape)
        network = import_module(module, shape)
        other = _disturbed(module)
        disturbed = import_module(other, shape)
    finally:
        module.train(was)
    followed: dict[str, Read] = {}
    constant: dict[str, torch.Tensor] = {}
    pairs = zip(_arrays(network.nodes), _arrays(disturbed.nodes), strict=True)
    for (node, field, key), (_, _, other_key) in pairs:
        if key in followed or key in constant:
            continue
        array, changed = network.weights[key], disturbed.weights[other_key]
        if np.array_equal(array, changed):
            constant[key] = torch.from_numpy(np.asarray(array, dtype=np.float64).copy())
            continue
        followed[key] = _reader(node, field, key, [(module, array), (other, changed)])
    return Live(network, followed, constant)


def _arrays(nodes: Sequence[Node]) -> list[tuple[Node, str, str]]:
    """Node, field and key of every array that counts, in order."""
    found = []
    for node in nodes:
        for item in fields(node.op):
            value = getattr(node.op, item.name)
            if item.name in LINEAR_FIELDS and value is not None:
                found.append((node, item.name, value))
    return found


@torch.no_grad()
def _disturbed(module: nn.Module) -> nn.Module:
    """A copy with other weights."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            noise = torch.rand(parameter.shape, generator=generator).to(parameter)
            parameter.add_((parameter.abs().mean() * 0.1 + 1e-3) * (noise - 0.5))
    return other


def _reader(node: Node, field: str, key: str, cases: list[tuple[nn.Module, np.ndarray]]) -> Read:
    for reader in _candidates(node, field, key):
        if all(_reads(reader, module, array) for module, array in cases):
            return reader
    raise TrainingError(
        f"layer {node.name!r}",
        f"its {field} is worked out in forward, in a way that cannot be followed",
        hint="Give the layer a property `weight`: the effective weight, differentiable in its parameters.",
    )


@torch.no_grad()
def _reads(reader: Read, module: nn.Module, array: np.ndarray) -> bool:
    try:
        value = reader(module)
    except AttributeError:
        return False
    if not isinstance(value, torch.Tensor) or value.shape != array.shape:
        return False
    found, wanted = value.double().cpu().numpy(), np.asarray(array, dtype=np.float64)
    return bool(np.abs(found - wanted).max(initial=0.0) <= CLOSE * max(np.abs(wanted).max(initial=0.0), 1e-30))


def _candidates(node: Node, field: str, key: str) -> list[Read]:
    """The tensor of the array's own name; a batch norm's scale; the property ``weight`` of the layer or its parents."""
    found: list[Read] = [_attribute(key)]
    parts = node.name.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        if field == "scale":
            found.append(_batch_norm(path))
        found.append(_attribute(f"{path}.weight"))
    return found


def _attribute(path: str) -> Read:
    owner, _, name = path.rpartition(".")

    def read(module: nn.Module) -> torch.Tensor:
        value: torch.Tensor = getattr(module.get_submodule(owner), name)
        return value

    return read


def _batch_norm(path: str) -> Read:
    def read(module: nn.Module) -> torch.Tensor:
        layer = module.get_submodule(path)
        variance, gain = layer.get_buffer("running_var"), layer.get_parameter("weight")
        scale: torch.Tensor = gain / (variance + getattr(layer, "eps")).sqrt()  # noqa: B009  (not of every module)
        return scale

    return read


def without_head(network: Network) -> tuple[Network, str | None]:
    """The network before its last dense layer, and that layer's weight by key; without one the whole, and ``None``."""
    last = network.nodes[-1]
    if not isinstance(last.op, Dense) or len(network.nodes) < 3:
        return network, None
    before = network.nodes[: last.inputs[0] + 1]
    cut = Network(before, network.weights)
    kept = array_keys(cut)
    return Network(before, {key: network.weights[key] for key in kept}), last.op.weight

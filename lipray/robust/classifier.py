"""The network whose classes are certified: logits of inputs in the units of the data, cut at its head.

**Normalisation.** A radius is in the units of the data. Where the trained network expects (x - mean) / std, that map is
put in front of it, and its constant 1 / min std counts like any layer's.

**Softmax.** softmax(f)_i > softmax(f)_j exactly where f_i > f_j, because both are exp and the same positive divisor;
log-softmax subtracts the same number from all f_i. The largest output is that of the largest logit, at every input,
so that what is certified of the logits' classes holds for the network's. The radii are those of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipray.errors import ModelError, UsageError
from lipray.model.network import ChannelAffine, Dense, Input, Network, Node, Reshape, Softmax

NO_SOFTMAX = "The last {} was left out: it does not change which output is largest, and radii are those of the logits."


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before a last dense layer, and that layer's weight; ``None`` where nothing but a reshape does."""

    before: Network | None
    weight: np.ndarray


def as_classifier(
    network: Network, name: str, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Network, tuple[str, ...]]:
    """The map from data to logits, and what a reader should know of how it came to be.

    Args:
        network: as it was imported.
        name: what messages call it.
        mean: per channel, or one for all; 0 where only ``std`` is given.
        std: per channel, or one for all; 1 where only ``mean`` is given.

    Raises:
        ModelError: its output is no vector of at least two logits.
        UsageError: ``mean`` or ``std`` does not fit the input, or a deviation is not positive.
    """
    notes: list[str] = []
    last = network.nodes[-1]
    if isinstance(last.op, Softmax):
        network = replace(network, nodes=network.nodes[: last.inputs[0] + 1])
        notes.append(NO_SOFTMAX.format("log-softmax" if last.op.log else "softmax"))
    shape = network.output_shape
    if len(shape) != 1:
        hint = "End the network in a flatten, so that it returns one number per class."
        raise ModelError(name, f"its output has shape {shape}, which is no vector of logits", hint=hint)
    if shape[0] < 2:
        hint = "Return two, such as torch.cat([torch.zeros_like(z), z], dim=1) of the one, and label classes 0 and 1."
        raise ModelError(name, "it has one output, and a class is the largest of several", hint=hint)
    if mean is not None or std is not None:
        network = normalised(network, (0.0,) if mean is None else mean, (1.0,) if std is None else std)
        notes.append("The normalisation (x - mean) / std is part of the network, and its constant counts.")
    return network, tuple(notes)


def normalised(network: Network, mean: Sequence[float], std: Sequence[float]) -> Network:
    """The network after (x - mean) / std, as a batch norm's affine map, whose numbers are known to be rounded.

    Raises:
        UsageError: there are not as many numbers as channels (or one), or a deviation is not positive and finite.
    """
    first = network.nodes[0]
    channels = first.shape[0]
    given = {"--mean": np.asarray(mean, dtype=np.float64), "--std": np.asarray(std, dtype=np.float64)}
    for option, values in given.items():
        if values.ndim != 1 or len(values) not in {1, channels}:
            raise UsageError(option, f"{values.size} numbers are given for {channels} channels", hint=_per(channels))
        if not np.isfinite(values).all():
            raise UsageError(option, "a number is not finite")
    centre, spread = (np.broadcast_to(values, (channels,)) for values in given.values())
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale = 1.0 / spread
        shift = -centre / spread
    if not (spread > 0.0).all() or not np.isfinite(scale).all() or not np.isfinite(shift).all():
        raise UsageError("--std", "a deviation is not positive, or too small to divide by")
    taken = {*network.weights, *(node.name for node in network.nodes)}
    name = "normalisation"
    while name in taken or f"{name}.scale" in taken or f"{name}.shift" in taken:
        name = f"#{name}"
    op = ChannelAffine(f"{name}.scale", f"{name}.shift")
    rest = (replace(node, inputs=tuple(place + 1 for place in node.inputs)) for node in network.nodes[1:])
    arrays = {op.scale: np.ascontiguousarray(scale), op.shift: np.ascontiguousarray(shift)}
    return Network((first, Node(name, op, (0,), first.shape), *rest), {**network.weights, **arrays})


def head_of(network: Network) -> Head | None:
    """The network cut before its last dense layer; ``None`` where it ends in something else.

    Reshapes at the cut keep the norm, and are left out. What nothing of the rest reads goes with them.
    """
    last = network.nodes[-1]
    if not isinstance(last.op, Dense):
        return None
    end = last.inputs[0]
    while isinstance(network.nodes[end].op, Reshape):
        end = network.nodes[end].inputs[0]
    weight = np.asarray(network.weights[last.op.weight], dtype=np.float64)
    if isinstance(network.nodes[end].op, Input):
        return Head(None, weight)
    return Head(_pruned(network, end), weight)


def _pruned(network: Network, end: int) -> Network:
    """The network whose output is one of the nodes, with those only that it depends on."""
    kept = {0, end}
    for index in range(end, 0, -1):
        if index in kept:
            kept.update(network.nodes[index].inputs)
    places = {old: new for new, old in enumerate(sorted(kept))}
    nodes = tuple(
        replace(network.nodes[old], inputs=tuple(places[place] for place in network.nodes[old].inputs))
        for old in sorted(kept)
    )
    return Network(nodes, network.weights)


def _per(channels: int) -> str:
    return f"Give one number for all, or {channels}, separated by commas."

"""Names, default shapes and constructors of the built-in architectures.

This file does not import torch: ``lipray plan`` and ``--help`` list the names from it. The modules'
state-dict keys and shapes are torchvision's where torchvision has the architecture, so that its
checkpoints load unchanged.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Entry = tuple[str, int]
"""A state-dict key and an axis of that tensor."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One built-in architecture.

    Attributes:
        name: What the user types.
        factory: ``file:function`` within this package; the function returns a torch module.
        arguments: Fixed arguments of the factory.
        input_shape: Default shape of one input, channels first, without the batch dimension.
        classes: Default number of outputs.
        inferred: Arguments of the factory that the shapes of a checkpoint determine: from one entry
            an integer, from several a tuple of integers.
        counted: Arguments of the factory that are how many entries of a checkpoint there are: a key with ``{}`` in
            the place of 0, 1, 2 ...
        resizable: Whether other heights and widths than the default's work.
    """

    name: str
    factory: str
    input_shape: tuple[int, ...]
    classes: int
    arguments: Mapping[str, object] = field(default_factory=dict)
    inferred: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    counted: Mapping[str, str] = field(default_factory=dict)
    resizable: bool = True

    def build(self, **arguments: object) -> nn.Module:
        """The module, in train mode, with torch's own initial weights.

        Args:
            arguments: Override the defaults, such as ``classes=100``.
        """
        file, function = self.factory.split(":")
        module = importlib.import_module(f"lipray.model.architectures.{file}")
        built: nn.Module = getattr(module, function)(**{"classes": self.classes, **self.arguments, **arguments})
        return built

    def arguments_for(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
        """The factory's arguments that tensors of these shapes call for; absent ones keep the default."""
        found: dict[str, object] = {}
        for argument, entries in self.inferred.items():
            sizes = tuple(shapes[key][axis] for key, axis in entries if key in shapes and axis < len(shapes[key]))
            if len(sizes) == len(entries) and min(sizes) > 0:
                found[argument] = sizes[0] if len(sizes) == 1 else sizes
        for argument, key in self.counted.items() if shapes else ():
            found[argument] = next(count for count in itertools.count() if key.format(count) not in shapes)
        return found


def _vgg(depth: int, *, batch_norm: bool) -> Architecture:
    return Architecture(
        name=f"vgg{depth}_bn" if batch_norm else f"vgg{depth}",
        factory="vgg:vgg",
        input_shape=(3, 224, 224),
        classes=1000,
        arguments={"depth": depth, "batch_norm": batch_norm},
        inferred={"classes": (("classifier.6.weight", 0),)},
    )


def _resnet(depth: int) -> Architecture:
    return Architecture(
        name=f"resnet{depth}",
        factory="resnet:resnet",
        input_shape=(3, 224, 224),
        classes=1000,
        arguments={"depth": depth},
        inferred={"classes": (("fc.weight", 0),)},
    )


def _vgg_cifar(*, batch_norm: bool) -> Architecture:
    return Architecture(
        name="vgg16_bn-cifar" if batch_norm else "vgg16-cifar",
        factory="vgg:vgg_cifar",
        input_shape=(3, 32, 32),
        classes=10,
        arguments={"depth": 16, "batch_norm": batch_norm},
        inferred={"classes": (("classifier.weight", 0),)},
        resizable=False,
    )


def _lenet5(name: str, *, classic: bool) -> Architecture:
    return Architecture(
        name=name,
        factory="small:lenet5",
        input_shape=(1, 28, 28),
        classes=10,
        arguments={"classic": classic},
        inferred={"classes": (("fc3.weight", 0),)},
        resizable=False,
    )


def _cnn(name: str, input_shape: tuple[int, ...], classes: int, convolutions: int) -> Architecture:
    return Architecture(
        name=name,
        factory=f"small:{name}",
        input_shape=input_shape,
        classes=classes,
        inferred={
            "channels": tuple((f"conv{index}.weight", 0) for index in range(1, convolutions + 1)),
            "classes": (("fc2.weight", 0),),
        },
        resizable=False,
    )


def _liresnet(name: str, input_shape: tuple[int, int, int], **arguments: int) -> Architecture:
    return Architecture(
        name=name,
        factory="liresnet:liresnet",
        input_shape=input_shape,
        classes=10,
        arguments={"channels": input_shape[0], "side": input_shape[1], **arguments},
        inferred={
            "classes": (("head.weight", 0),),
            "width": (("stem.weight", 0),),
            "kernel": (("stem.weight", 2),),
            "patch": (("neck.weight", 2),),
            "neck": (("neck.weight", 0),),
            "dense": (("head.weight", 1),),
        },
        counted={"depth": "backbone.{}.weight", "dense_depth": "dense.{}.weight"},
        resizable=False,
    )


_DIGITS = {"width": 16, "depth": 3, "kernel": 3, "stride": 1, "patch": 2, "neck": 32, "dense": 128, "dense_depth": 3}

_ALL = (
    _cnn("cnn1", (1, 28, 28), 10, convolutions=2),
    _cnn("cnn2", (3, 32, 32), 100, convolutions=5),
    _lenet5("lenet5", classic=False),
    _lenet5("lenet5-tanh", classic=True),
    *(_resnet(depth) for depth in (18, 34, 50, 101)),
    Architecture(
        name="resnet18-cifar",
        factory="resnet:resnet_cifar",
        input_shape=(3, 32, 32),
        classes=10,
        arguments={"depth": 18},
        inferred={"classes": (("fc.weight", 0),), "width": (("conv1.weight", 0),)},
    ),
    *(_vgg(depth, batch_norm=batch_norm) for depth in (11, 13, 16, 19) for batch_norm in (False, True)),
    _vgg_cifar(batch_norm=False),
    _vgg_cifar(batch_norm=True),
    _liresnet("liresnet", (3, 32, 32)),
    _liresnet("liresnet-digits", (1, 8, 8), **_DIGITS),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({entry.name: entry for entry in _ALL})
"""The built-in architectures by name."""

"""The module that a run trains, its data, and its optimiser."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from lipray.data.labelled import Labelled
from lipray.data.read import read_data
from lipray.errors import DataError, TrainingError
from lipray.model.architectures import ARCHITECTURES
from lipray.model.architectures.liresnet import Sizes
from lipray.train.config import Generated, TrainConfig
from lipray.train.liresnet import LiResNet


@runtime_checkable
class Deployable(Protocol):
    """A module that is trained in another form than it is deployed in."""

    def plain(self) -> nn.Module:
        """The module to deploy: the same function in torch's own layers."""


def build_module(config: TrainConfig, data: Labelled) -> nn.Module:
    """The module with the initial weights of ``config.seed``, in train mode.

    Raises:
        ModelError: there is no such model, or it cannot be built.
        TrainingError: sizes that do not fit the data.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model.startswith("liresnet") and config.model in ARCHITECTURES:
            return _liresnet(config, data).train()
        if config.model in ARCHITECTURES:
            return ARCHITECTURES[config.model].build(classes=data.classes).train()
        from lipray.model.load import load_module

        return load_module(config.model).train()


def _liresnet(config: TrainConfig, data: Labelled) -> LiResNet:
    if len(data.shape) != 3 or data.shape[1] != data.shape[2]:
        raise TrainingError(
            config.model, f"takes square images, and the data have shape {data.shape}", hint="Name another model."
        )
    unknown = sorted(set(config.sizes) - {each.name for each in fields(Sizes)})
    if unknown:
        raise TrainingError("sizes", f"{', '.join(unknown)} is no size of {config.model}")
    of_data = {"channels": data.shape[0], "side": data.shape[1], "classes": data.classes}
    sizes: dict[str, Any] = {**ARCHITECTURES[config.model].arguments, **of_data, **config.sizes}
    try:
        return LiResNet(Sizes(**sizes))
    except (RuntimeError, ValueError, ZeroDivisionError) as fault:
        raise TrainingError("sizes", f"no network can be built with them: {fault}") from None


def check_module(module: nn.Module, data: Labelled) -> None:
    """One forward pass on an example, so that what does not fit is said before training begins.

    Raises:
        DataError: the network does not take the examples, or has fewer outputs than there are classes.
    """
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(torch.from_numpy(data.x[:2]).to(next(module.parameters())))
    except (RuntimeError, ValueError) as fault:
        first = str(fault).strip().splitlines()[0]
        raise DataError(data.source, f"the network does not take examples of shape {data.shape}: {first}") from None
    finally:
        module.train(was)
    if outputs.dim() != 2 or outputs.shape[1] < data.classes:
        raise DataError(
            data.source,
            f"has {data.classes} classes, and the network gives outputs of shape {tuple(outputs.shape[1:])}",
        )


def read_training_data(config: TrainConfig) -> tuple[Labelled, Labelled | None, Labelled]:
    """Training examples, generated ones if asked for, and test examples.

    Raises:
        DataError: data cannot be read, or do not fit together.
    """
    train = read_data(config.data, "train")
    test = read_data(config.data if config.test is None else config.test, "test")
    extra = None if config.generated is None else _generated(config.generated)
    for other in (test, extra):
        if other is not None and other.shape != train.shape:
            raise DataError(other.source, f"has examples of shape {other.shape}, and {train.source} of {train.shape}")
        if other is not None and other.classes > train.classes:
            raise DataError(other.source, f"has {other.classes} classes, and {train.source} {train.classes}")
    return train, extra, test


def _generated(options: Generated) -> Labelled:
    data = read_data(options.data, "train")
    if options.confidence <= 0.0:
        return data
    if not data.source.endswith(".npz"):
        raise DataError(data.source, "has no confidence to choose by", hint="Take an .npz with an array confidence.")
    with np.load(data.source, allow_pickle=False) as arrays:
        if "confidence" not in arrays or arrays["confidence"].shape != (len(data),):
            raise DataError(
                data.source, f"has no array confidence of shape ({len(data)},)", hint="Leave the option confidence out."
            )
        kept = np.flatnonzero(arrays["confidence"] >= options.confidence)
    if len(kept) == 0:
        raise DataError(data.source, f"no sample has a confidence of {options.confidence}")
    return data.take(kept)


def make_optimiser(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the module's parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(config.model, "has no parameter to train")
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimiser:
        case "nadam":
            return torch.optim.NAdam(parameters, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay, nesterov=True)


def rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up over ``warm_up`` epochs, then a cosine to zero."""
    warm = config.warm_up * steps / config.epochs
    rise = min(1.0, (step + 1) / warm) if warm >= 1.0 else 1.0
    return config.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def radius_at(config: TrainConfig, step: int, steps: int) -> float:
    """Training radius of a step."""
    ramp = config.ramp
    share = min(1.0, step / (ramp.share * steps))
    return config.radius * (ramp.begin + (ramp.end - ramp.begin) * share)

"""Train the example networks on scikit-learn's handwritten digits and store them beside this script.

    python examples/train_digits.py --network digits_cnn

The digits are the 1797 test images of the UCI set "Optical Recognition of Handwritten Digits" that
scikit-learn carries, 8x8 pixels with values 0 to 16, here scaled to [0, 1]. A quarter of them,
chosen by a fixed seed and stratified by class, is the test set. For the larger networks they are
resized (bilinear), and copied to three equal channels where the network takes three.

Training is ordinary: cross-entropy, AdamW, a cosine learning rate and light (default) weight decay;
nothing pushes the Lipschitz constant down, but that the two networks with batch norm have ten times
the weight decay, also on its scales. One thread and a fixed seed make a run repeatable on the same
machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import torch
from digits_cnn import digits_cnn
from digits_small import digits_small
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from vgg_digits32 import vgg_digits32

from lipray.model.architectures import ARCHITECTURES

FOLDER = Path(__file__).resolve().parent
SEED = 0
BATCH = 64
WEIGHT_DECAY = 1e-2
LEARNING_RATE = 3e-3


def cnn1() -> nn.Module:
    """The built-in CNN1 with its default channels."""
    return ARCHITECTURES["cnn1"].build()


def resnet18() -> nn.Module:
    """The built-in resnet18-cifar with a quarter of its width."""
    return ARCHITECTURES["resnet18-cifar"].build(width=16)


@dataclass(frozen=True)
class Example:
    """One network to train: its constructor, file, image side and channels, number of epochs and weight decay."""

    build: Callable[[], nn.Module]
    model: str
    file: str
    architecture: str
    side: int
    epochs: int
    channels: int = 1
    weight_decay: float = WEIGHT_DECAY


EXAMPLES = {
    "digits_cnn": Example(
        digits_cnn,
        "examples/digits_cnn.py:digits_cnn",
        "digits_cnn",
        "conv 1-8 3x3 pad 1, ReLU, conv 8-16 3x3 stride 2 pad 1, ReLU, dense 256-10",
        8,
        60,
    ),
    "digits_small": Example(
        digits_small,
        "examples/digits_small.py:digits_small",
        "digits_small",
        "conv 1-4 3x3 pad 1, ReLU, conv 4-4 3x3 stride 2 pad 1, ReLU, dense 64-10",
        8,
        100,
    ),
    "cnn1": Example(
        cnn1,
        "cnn1",
        "cnn1_digits28",
        "conv 1-3 5x5, ReLU, conv 3-4 5x5, ReLU, dense 1600-50, ReLU, dense 50-10",
        28,
        20,
    ),
    "resnet18": Example(
        resnet18,
        "resnet18-cifar",
        "resnet18_digits32",
        "ResNet-18 for 32x32 images (3x3 stem, no max-pool), channels 16-32-64-128, batch norm, dense 128-10",
        32,
        15,
        channels=3,
        weight_decay=0.1,
    ),
    "vgg": Example(
        vgg_digits32,
        "examples/vgg_digits32.py:vgg_digits32",
        "vgg_digits32",
        "3x3 convs pad 1, batch norm, ReLU, 16-16-M-32-32-M-64-64-M (M: 2x2 max-pool), dense 1024-10",
        32,
        15,
        channels=3,
        weight_decay=0.1,
    ),
}


def images(side: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images (n, channels, side, side) and labels, then test images and labels; pixels in [0, 1].

    More than one channel are copies of the grey one.
    """
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16.0
    if side != x.shape[-1]:
        x = nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    x = x.repeat(1, channels, 1, 1)
    y = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(y)), test_size=0.25, random_state=SEED, stratify=digits.target)
    return x[train], y[train], x[test], y[test]


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    with torch.no_grad():
        return float((net.eval()(x).argmax(dim=1) == y).double().mean())


def train(example: Example) -> dict[str, object]:
    """Train one network, store its weights and return its record."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    x, y, x_test, y_test = images(example.side, example.channels)
    net = example.build()
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=example.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, example.epochs)
    started = time.perf_counter()
    for _ in range(example.epochs):
        net.train()
        for batch in torch.randperm(len(y)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
        schedule.step()
    seconds = time.perf_counter() - started
    save_file(
        {key: value.contiguous() for key, value in net.state_dict().items() if value.is_floating_point()},
        FOLDER / f"{example.file}.safetensors",
    )
    resized = "" if example.side == 8 else f", resized to {example.side}x{example.side} (bilinear)"
    copied = "" if example.channels == 1 else f", {example.channels} equal channels"
    return {
        "model": example.model,
        "architecture": example.architecture,
        "input_shape": [example.channels, example.side, example.side],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dtype": "float32",
        "data": f"scikit-learn digits{resized}{copied}",
        "normalisation": "pixels divided by 16, in [0, 1]; no mean or deviation",
        "train_images": len(y),
        "test_images": len(y_test),
        "train_accuracy": round(accuracy(net, x, y), 4),
        "test_accuracy": round(accuracy(net, x_test, y_test), 4),
        "seed": SEED,
        "epochs": example.epochs,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "weight_decay": example.weight_decay,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }


def main() -> None:
    """Train the networks asked for and write ``NAME.safetensors`` and ``NAME.json``."""
    parser = argparse.ArgumentParser(description="Train the example networks on scikit-learn's digits.")
    parser.add_argument("--network", choices=[*EXAMPLES, "all"], default="digits_cnn")
    chosen = parser.parse_args().network
    for name in EXAMPLES if chosen == "all" else [chosen]:
        example = EXAMPLES[name]
        record = train(example)
        (FOLDER / f"{example.file}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{example.file}: test accuracy {record['test_accuracy']:.2%} after {record['seconds']} s")


if __name__ == "__main__":
    main()

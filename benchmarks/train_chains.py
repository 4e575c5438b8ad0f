"""Train the deep chains of 3x3 convolutions that the benchmarks bound, and store them in ``benchmarks/data``.

    .venv/bin/python benchmarks/train_chains.py [--only chain_D16_CH8 ...]

A chain is D convolutions of C to C channels, 3x3, stride 1, padding 1, on 14x14 maps with a ReLU between any two, laid
out as the published chains of GLipSDP (arXiv 2405.01125) are, but deeper and wider. It is trained inside a classifier
of scikit-learn's handwritten digits resized to 14x14: a convolution from 1 to C channels with ReLU before the chain; a
ReLU, global average pooling and a dense layer after it. As in the published study, only the chain is kept.

Weights start He-normal (fan-in), with norms near 2.9, and biases at zero; cross-entropy, AdamW, a one-cycle learning
rate. Plain training lets the norms grow (16 layers of 8 channels: product 4e8), and weight decay strong enough against
that costs the accuracy (below 0.75), so a penalty on each layer's norm above 2.3 holds them where the published chains'
are. One thread and a fixed seed make a run repeatable on the same machine and versions.

``data/networks.json`` has the published networks' layout: ``LIPRAY_NETWORKS=benchmarks/data`` has them read by the same
reader.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

FOLDER = Path(__file__).resolve().parent / "data"
SIDE = 14
TORUS = 16
"""Side of the torus the norms are taken on: a padded 14x14 map fits on it, so they bound the layers' own."""
SEED = 0
BATCH = 64
CLIP = 1.0
TARGET = 2.3
"""Norm above which a layer is pulled down; the published chains' layers have 2.0 to 2.4."""


@dataclass(frozen=True)
class Chain:
    """One chain to train."""

    depth: int
    channels: int
    epochs: int = 30
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    penalty: float = 0.02

    @property
    def name(self) -> str:
        """``D`` counts the convolutions of the chain itself; the published ``C`` counts one more, left out there."""
        return f"chain_D{self.depth}_CH{self.channels}"


CHAINS = (
    Chain(16, 8, epochs=60),
    Chain(16, 16, epochs=40),
    Chain(8, 32, epochs=20),
    Chain(16, 32, epochs=20),
)


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images (n, 1, 14, 14) and labels, then test images and labels; pixels in [0, 1]."""
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16.0
    x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    y = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(y)), test_size=0.25, random_state=SEED, stratify=digits.target)
    return x[train], y[train], x[test], y[test]


def classifier(chain: Chain) -> tuple[nn.Module, list[nn.Conv2d]]:
    """The network to train, and the convolutions of it that are the chain."""

    def convolution(channels: int) -> nn.Conv2d:
        layer = nn.Conv2d(channels, chain.channels, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        return layer

    kept = [convolution(chain.channels) for _ in range(chain.depth)]
    layers: list[nn.Module] = [convolution(1), nn.ReLU()]
    for layer in kept:
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chain.channels, 10)), kept


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    with torch.no_grad():
        return float((net(x).argmax(dim=1) == y).double().mean())


def norms(kept: list[nn.Conv2d]) -> list[float]:
    """Spectral norm of each convolution on the 16x16 torus, in double precision."""
    found = []
    for layer in kept:
        transfer = np.fft.fft2(layer.weight.detach().double().numpy(), (TORUS, TORUS)).transpose(2, 3, 0, 1)
        found.append(float(np.linalg.norm(transfer, 2, axis=(2, 3)).max()))
    return found


class Penalty:
    """Sum over the layers of (norm - TARGET)² where the norm is larger, by one power iteration per call.

    The norms here are those of the padded convolutions on 14x14 maps, and a little small until the iteration has
    settled: they steer the training, and nothing is certified by them.
    """

    def __init__(self, kept: list[nn.Conv2d]) -> None:
        self.kept = kept
        self.right = [torch.randn(1, layer.in_channels, SIDE, SIDE) for layer in kept]

    def __call__(self) -> torch.Tensor:
        """The sum, differentiable in the weights."""
        total = torch.zeros(())
        for index, layer in enumerate(self.kept):
            with torch.no_grad():
                left = nn.functional.conv2d(self.right[index], layer.weight, padding=1)
                left = left / left.norm()
                right = nn.functional.conv_transpose2d(left, layer.weight, padding=1)
                self.right[index] = right = right / right.norm()
            norm = (left * nn.functional.conv2d(right, layer.weight, padding=1)).sum()
            total = total + torch.relu(norm - TARGET).square()
        return total


def train(chain: Chain) -> dict[str, Any]:
    """Train one chain, store its weights and return its entry of ``networks.json``."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    x, y, x_test, y_test = images()
    net, kept = classifier(chain)
    before = norms(kept)
    optimiser = torch.optim.AdamW(net.parameters(), lr=chain.learning_rate, weight_decay=chain.weight_decay)
    steps = chain.epochs * math.ceil(len(y) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, chain.learning_rate, total_steps=steps, pct_start=0.1)
    penalty = Penalty(kept)
    started = time.perf_counter()
    for _ in range(chain.epochs):
        for batch in torch.randperm(len(y)).split(BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch]) + chain.penalty * penalty()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimiser.step()
            schedule.step()
    seconds = time.perf_counter() - started
    layers: list[dict[str, object]] = []
    for index in range(1, chain.depth + 1):
        layers += [{"conv2d": f"conv{index}", "stride": 1, "padding": 1}, {"relu": True}]
    tensors = {f"conv{i}.{key}": value for i, layer in enumerate(kept, 1) for key, value in layer.state_dict().items()}
    save_file(tensors, FOLDER / f"{chain.name}.safetensors")
    after = norms(kept)
    return {
        "file": f"{chain.name}.safetensors",
        "input_shape": [chain.channels, SIDE, SIDE],
        "layers": layers[:-1],
        "origin": "benchmarks/train_chains.py",
        "licence": "as this project's",
        "note": "inner part of a digits classifier: the first convolution (1 to C channels), the pool and the dense "
        "layer are left out, as in the published chains",
        "training": {
            "data": f"scikit-learn digits, resized to {SIDE}x{SIDE} (bilinear), pixels divided by 16",
            "train_accuracy": round(accuracy(net, x, y), 4),
            "test_accuracy": round(accuracy(net, x_test, y_test), 4),
            "seed": SEED,
            "epochs": chain.epochs,
            "batch": BATCH,
            "learning_rate": chain.learning_rate,
            "weight_decay": chain.weight_decay,
            "norm_penalty": chain.penalty,
            "norm_target": TARGET,
            "gradient_clip": CLIP,
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
            "scikit_learn": sklearn.__version__,
        },
        "torus_side": TORUS,
        "norms_at_start": [round(value, 4) for value in before],
        "norms": [round(value, 4) for value in after],
        "product_of_norms": float(f"{math.prod(after):.6g}"),
    }


def main() -> None:
    """Train the chains asked for and write their weights and entries of ``networks.json``."""
    parser = argparse.ArgumentParser(description="Train the chains of convolutions that the benchmarks bound.")
    parser.add_argument("--only", nargs="+", choices=[chain.name for chain in CHAINS], default=None)
    chosen = parser.parse_args().only
    FOLDER.mkdir(exist_ok=True)
    catalogue = FOLDER / "networks.json"
    for chain in CHAINS:
        if chosen is not None and chain.name not in chosen:
            continue
        entry = train(chain)
        known = json.loads(catalogue.read_text()) if catalogue.is_file() else {}
        known[chain.name] = entry
        ordered = {each.name: known[each.name] for each in CHAINS if each.name in known}
        catalogue.write_text(json.dumps(ordered, indent=1) + "\n")
        training = entry["training"]
        print(
            f"{chain.name}: test accuracy {training['test_accuracy']:.2%}, product of norms "
            f"{entry['product_of_norms']:.4g}, {training['seconds']} s"
        )


if __name__ == "__main__":
    main()

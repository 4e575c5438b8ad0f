"""A plain CNN, its bracket and its vacuous radii; then the same with a penalty on its Lipschitz constant.

    python examples/penalty.py [--epochs 30] [--out runs/penalty]

Both networks are trained here on scikit-learn's digits, by the same loop of a dozen lines, and certified by
``lipray.certify_radii`` with its attack. The table and the plot are written to ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

import lipray
from lipray.data.read import read_data
from lipray.report.plots.accuracy import accuracy_files
from lipray.train import LipschitzPenalty

RADII = (0.1, 0.25, 0.5)


def network() -> nn.Module:
    """Two convolutions and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(weight: float, epochs: int, bound: str) -> nn.Module:
    """Cross-entropy plus ``weight`` times the logarithm of the constant."""
    torch.manual_seed(0)
    data = read_data("digits", "train")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    module = network()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    penalty = LipschitzPenalty(module, data.shape, bound=bound) if weight > 0.0 else None
    for _ in range(epochs):
        if penalty is not None:
            penalty.refresh()
        for batch in torch.randperm(len(y)).split(64):
            loss = F.cross_entropy(module(x[batch]), y[batch])
            if penalty is not None:
                loss = loss + weight * penalty()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return module.eval()


def main() -> None:
    """Train both, certify both, and write the table and the plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--weight", type=float, default=0.05)
    parser.add_argument("--bound", choices=("product", "liplt", "closed-form", "optimised"), default="product")
    parser.add_argument("--out", type=Path, default=Path("runs/penalty"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    test = read_data("digits", "test")
    lines = ["| network | lower | upper | clean | " + " | ".join(f"certified at {r:g}" for r in RADII) + " |"]
    lines.append("|---" * (4 + len(RADII)) + "|")
    for name, weight in (("plain", 0.0), ("penalty", options.weight)):
        module = train(weight, options.epochs, options.bound)
        found = lipray.certify_radii(module, (test.x, test.y), radii=RADII, method="frequency", iterations=100)
        constants = found.constants
        shares = " | ".join(f"{at.verified:.1%}" for at in found.at)
        clean = found.correct.mean()
        lines.append(f"| {name} | {constants.lower:.3g} | {constants.upper:.3g} | {clean:.1%} | {shares} |")
        for suffix, content in accuracy_files(found.radii, found.empirical, found.correct, RADII).items():
            (options.out / f"{name}.{suffix}").write_bytes(content)
    table = "\n".join(lines)
    (options.out / "table.md").write_text(table + "\n")
    print(table)
    print(f"plots: {options.out}")


if __name__ == "__main__":
    main()

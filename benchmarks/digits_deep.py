"""A network of three convolutions on 8x8 digits, and its training: full LipSDP is within reach of it, but slow.

    .venv/bin/python benchmarks/digits_deep.py

The data are those of ``examples/train_digits.py``: scikit-learn's digits, pixels divided by 16, a quarter of the images
for the test. Cross-entropy, AdamW, a cosine learning rate; nothing pushes the Lipschitz constant down. One thread and a
fixed seed make a run repeatable on the same machine and versions. Weights and record go to ``benchmarks/data``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

DATA = Path(__file__).resolve().parent / "data"
NAME = "digits_deep"
SEED = 0
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


def digits_deep() -> nn.Module:
    """3x3 convolutions, padding 1: 1 to 8, 8 to 16 (stride 2), 16 to 16; dense 256 to 10."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def main() -> int:
    """Train the network and store it."""
    import sklearn
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    digits = load_digits()
    x = torch.from_numpy(digits.images).to(torch.float32)[:, None] / 16.0
    y = torch.from_numpy(digits.target).to(torch.int64)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=SEED, stratify=digits.target)
    net = digits_deep()
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    started = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in torch.tensor(train)[torch.randperm(len(train))].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
        schedule.step()
    seconds = time.perf_counter() - started
    save_file(net.state_dict(), DATA / f"{NAME}.safetensors")
    with torch.no_grad():
        right = (net(x).argmax(dim=1) == y).double()
    record = {
        "model": f"benchmarks/{NAME}.py:{NAME}",
        "architecture": "conv 1-8, 8-16 stride 2, 16-16 (3x3, pad 1), ReLU after each, dense 256-10",
        "input_shape": [1, 8, 8],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "data": "scikit-learn digits, pixels divided by 16",
        "train_accuracy": round(float(right[train].mean()), 4),
        "test_accuracy": round(float(right[test].mean()), 4),
        "seed": SEED,
        "epochs": EPOCHS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }
    (DATA / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{NAME}: test accuracy {record['test_accuracy']:.2%} after {record['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

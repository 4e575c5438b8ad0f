"""Make digits like scikit-learn's: a small flow draws them, and those that a classifier is sure of are kept.

    .venv/bin/python examples/generate_digits.py

writes ``generated_digits.npz`` (x in sixteenths, y, scale, confidence), ``generated_digits.png`` with a hundred,
and ``generated_digits.json`` with what was measured. Neither the flow nor the classifier sees a test image; test images
only say how good the classifier is, and how near new images come to old ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from lipray.data.digits import LEVELS
from lipray.data.labelled import Labelled
from lipray.data.read import read_data
from lipray.train.generate.draw import Generated, draw_images
from lipray.train.generate.flow import FlowSettings, train_flow
from lipray.train.generate.judge import probabilities, train_judge
from lipray.train.generate.network import FlowNetwork

FOLDER = Path(__file__).resolve().parent


def nearest(x: np.ndarray, to: np.ndarray) -> np.ndarray:
    """l2 distance of each image to the nearest of others."""
    one, other = x.reshape(len(x), -1).astype(np.float64), to.reshape(len(to), -1).astype(np.float64)
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.sqrt(squares.min(axis=1).clip(0))


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance of images to the mean of their class, the mean over classes."""
    return float(np.mean([x[y == each].reshape((y == each).sum(), -1).var(axis=0).sum() for each in np.unique(y)]))


def share_right(judge: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Share of images that a classifier takes for their label."""
    return float((probabilities(judge, torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def picture(made: Generated, path: Path, *, rows: int = 10) -> None:
    """A grid of images, a row for each class, dark on light."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    grid = [made.levels[np.flatnonzero(made.y == digit)[:rows], 0] for digit in range(10)]
    tiles = np.pad(np.array(grid), ((0, 0), (0, 0), (1, 1), (1, 1)))
    plt.imsave(path, 1 - tiles.transpose(0, 2, 1, 3).reshape(100, -1).repeat(3, 0).repeat(3, 1) / LEVELS, cmap="gray")


def measured(made: Generated, judge: torch.nn.Module, other: torch.nn.Module, train: Labelled, test: Labelled) -> dict:
    """What is to be said of the images: how many were kept, whether they are right, and whether they are new."""
    x = (made.levels * made.scale).astype(np.float32)
    few = np.random.default_rng(0).permutation(len(x))[: len(train)]
    near = {
        "generated_to_training": nearest(x, train.x),
        "test_to_training": nearest(test.x, train.x),
        "test_to_generated": nearest(test.x, x),
        "test_to_as_many_generated_as_training": nearest(test.x, x[few]),
    }
    return {
        "judge_test_accuracy": round(share_right(judge, test.x, test.y), 4),
        "drawn": made.drawn,
        "taken_for_their_label": round(made.agreed, 4),
        "kept_share": round(made.kept, 4),
        "kept_right_by_another_classifier": round(share_right(other, x, made.y), 4),
        "nearest": {
            name: dict(zip(("p5", "p50", "p95"), np.percentile(d, (5, 50, 95)).round(3).tolist(), strict=True))
            for name, d in near.items()
        },
        "spread_of_training": round(spread(x, made.y) / spread(train.x, train.y), 3),
        "equal_to_a_training_image": int((near["generated_to_training"] < 1e-6).sum()),
        "distinct": len(np.unique(made.levels.reshape(len(made.y), -1), axis=0)),
    }


def main() -> None:
    """Train, draw, keep, measure and write."""
    parser = argparse.ArgumentParser(description="Make digits by a small flow.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=FlowSettings().steps)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER / "generated_digits")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(chosen.seed)
    train, test = read_data("digits", "train"), read_data("digits", "test")

    started = time.process_time()
    settings = FlowSettings(steps=chosen.steps, seed=chosen.seed)
    losses: list[float] = []

    def progress(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 200 == 0:
            spent = time.process_time() - started
            print(
                f"step {step + 1:5d} of {settings.steps}: loss {np.mean(losses[-200:]):.4f}, {spent:.0f} s",
                file=sys.stderr,
            )

    network = train_flow(FlowNetwork(train.shape, train.classes), train, settings, progress=progress)
    trained = time.process_time()
    judge = train_judge(train, policy="shift", seed=chosen.seed)
    judged = time.process_time()
    made = draw_images(network, judge, chosen.count, threshold=chosen.threshold, levels=LEVELS, seed=chosen.seed)
    ended = time.process_time()

    made.save(chosen.out.with_suffix(".npz"))
    picture(made, chosen.out.with_suffix(".png"))
    other = train_judge(train, policy="shift", seed=chosen.seed + 1)
    record = {
        "data": "scikit-learn digits, training split of 1,347 images",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "settings": asdict(settings),
        "loss_first_last": [round(losses[0], 3), round(float(np.mean(losses[-200:])), 4)],
        "count": chosen.count,
        "threshold": chosen.threshold,
        **measured(made, judge, other, train, test),
        "cpu_seconds": {
            "flow": round(trained - started, 1),
            "judge": round(judged - trained, 1),
            "sampling": round(ended - judged, 1),
        },
        "torch": torch.__version__,
    }
    chosen.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""As many generated images as are asked for, of every class alike, those left out of which a classifier is not sure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lipray.errors import TrainingError
from lipray.run.store.files import whole_file
from lipray.train.generate.flow import sample_flow
from lipray.train.generate.judge import probabilities
from lipray.train.generate.network import FlowNetwork

CHUNK = 500  # images sampled together
PATIENCE = 5  # times as many as are asked for are drawn at most


@dataclass(frozen=True, slots=True)
class Generated:
    """Generated images that were kept.

    ``levels`` (N, *shape) are whole numbers, and ``scale`` what they are multiplied by to lie in [0, 1].
    ``confidence`` (N,) is the probability that the judge gives their labels ``y`` (N,). ``drawn`` counts what was
    sampled for them; ``agreed`` is the share of that which the judge takes for its label, and ``kept`` the share of
    which it is as sure as was asked.
    """

    levels: np.ndarray
    scale: float
    y: np.ndarray
    confidence: np.ndarray
    drawn: int
    agreed: float
    kept: float

    def save(self, path: Path) -> None:
        """Write the ``.npz`` file that :func:`lipray.data.npz.read_npz` reads, with the confidences beside."""
        with whole_file(path) as file:
            sure = self.confidence.astype(np.float16)
            np.savez_compressed(file, x=self.levels, y=self.y, scale=self.scale, confidence=sure)


def draw_images(
    network: FlowNetwork,
    judge: nn.Module,
    count: int,
    *,
    threshold: float = 0.9,
    levels: int = 255,
    seed: int = 0,
    steps: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Sample images until ``count`` of them, as many of each class, are certain enough.

    Args:
        network: trained flow.
        judge: a classifier that was trained on real images.
        count: how many to keep, a multiple of the number of classes.
        threshold: the least probability that the judge may give an image's label.
        levels: pixels are rounded to this many steps from 0 to 1, as those of the data are.
        seed: of the noise.
        steps: of the sampler.
        progress: told how many are kept and how many were drawn.

    Raises:
        TrainingError: a count or threshold without meaning, or too few images that are certain enough.
    """
    classes = network.classes
    if count < classes or count % classes or not 0 <= threshold < 1 or not 1 <= levels <= 255:
        raise TrainingError(
            "generated images",
            f"{count} of {classes} classes, a threshold of {threshold} and {levels} levels cannot be asked for",
            hint="Ask for a multiple of the number of classes, a threshold from 0 to below 1, and 1 to 255 levels.",
        )
    missing = np.full(classes, count // classes)
    y = np.arange(CHUNK) % classes
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    drawn, agreed, sure = 0, 0, 0
    while missing.any():
        if drawn >= PATIENCE * count + CHUNK:
            raise TrainingError(
                "generated images",
                f"{sure} of {drawn} were of their class with probability {threshold}; {missing.sum()} are missing",
                hint="Train the flow for longer, or lower the threshold.",
            )
        sampled = sample_flow(network, torch.from_numpy(y), seed=_chunk_seed(seed, drawn // CHUNK), steps=steps)
        whole = (sampled * levels).round()
        likely = probabilities(judge, whole / levels).numpy()
        confidence = likely[np.arange(CHUNK), y]
        certain = confidence >= threshold
        drawn, sure = drawn + CHUNK, sure + int(certain.sum())
        agreed += int((likely.argmax(1) == y).sum())
        rows = _wanted(certain, y, missing)
        missing -= np.bincount(y[rows], minlength=classes)
        parts.append((whole.numpy()[rows].astype(np.uint8), y[rows], confidence[rows]))
        if progress is not None:
            progress(count - int(missing.sum()), drawn)
    levels_kept, y_kept, confidence_kept = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Generated(levels_kept, 1 / levels, y_kept, confidence_kept, drawn, agreed / drawn, sure / drawn)


def _wanted(certain: np.ndarray, y: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The first rows that are certain, of every class as many as are missing."""
    rows = [np.flatnonzero(certain & (y == each))[:still] for each, still in enumerate(missing)]
    return np.sort(np.concatenate(rows))


def _chunk_seed(seed: int, chunk: int) -> int:
    return int(np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)[0] >> np.uint64(1))

"""The order in which an epoch takes real and generated examples: plain arrays of indices, the same for any workers."""

from __future__ import annotations

import numpy as np

from lipray.errors import TrainingError


def epoch_order(
    real: int, generated: int, *, batch: int, seed: int, epoch: int, ratio: tuple[int, int] = (1, 3)
) -> np.ndarray:
    """The batches of an epoch: (steps, batch) indices, of real examples below ``real``, of generated ones from there.

    An epoch takes every real example once, in an order that depends on ``seed`` and ``epoch`` alone, but for what is
    left over after the last whole batch. Generated examples are drawn anew in every epoch, none twice before all have
    been taken. Within a batch the real ones come first.

    Args:
        real: number of real examples.
        generated: number of generated ones; 0 for batches of real ones only, whatever the ratio.
        batch: size of the global batch.
        seed: of the run.
        epoch: from 0.
        ratio: real to generated, such as (1, 3); rounded to whole examples of a batch.

    Raises:
        TrainingError: a batch that is larger than the real data can fill, or a ratio that leaves no real example.
    """
    share = real_share(batch, generated, ratio)
    steps = real // share
    if steps == 0:
        raise TrainingError(
            "batch", f"takes {share} real examples, of which there are {real}", hint="Take a smaller batch."
        )
    first = _generator(seed, epoch, 0).permutation(real)[: steps * share].reshape(steps, share)
    needed = steps * (batch - share)
    if not needed:
        return first
    shuffle = _generator(seed, epoch, 1)
    rounds = [shuffle.permutation(generated) for _ in range(-(-needed // generated))]
    second = real + np.concatenate(rounds)[:needed].reshape(steps, batch - share)
    return np.concatenate([first, second], axis=1)


def real_share(batch: int, generated: int, ratio: tuple[int, int]) -> int:
    """How many examples of a batch are real.

    Raises:
        TrainingError: none would be, or the numbers mean nothing.
    """
    one, other = ratio
    if batch < 1 or one < 0 or other < 0 or one + other == 0:
        raise TrainingError("batch", f"{batch} examples at a ratio of {one} to {other} are no batch")
    share = round(batch * one / (one + other)) if generated else batch
    if share == 0:
        raise TrainingError(
            "ratio", f"{one} to {other} leaves no real example in a batch of {batch}", hint="Take a larger batch."
        )
    return share


def worker_order(order: np.ndarray, rank: int, world: int) -> np.ndarray:
    """One worker's part of :func:`epoch_order`: (steps, batch / world), every ``world``-th example of each batch.

    All parts are of one size, so that the mean of the workers' mean gradients is that of the global batch, and every
    worker gets its share of real and of generated examples. The same columns of what was drawn for the global batch
    (:func:`lipray.train.augment.draw`) belong to the part.

    Raises:
        TrainingError: the batch cannot be shared out evenly.
    """
    if not 0 <= rank < world:
        raise TrainingError("worker", f"number {rank} of {world}")
    if order.shape[1] % world:
        raise TrainingError(
            "batch",
            f"{order.shape[1]} examples cannot be shared out evenly among {world} workers",
            hint=f"Take a multiple of {world}.",
        )
    return order[:, rank::world]


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, stream])

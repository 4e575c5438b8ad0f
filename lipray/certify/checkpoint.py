"""A descent's state as arrays, so that another process goes on where one was ended.

A state only says where to look for multipliers. What is found is proven like anything else, so that a state that is
damaged, or made up, costs time and never a bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from lipray.certify.lbfgs import MEMORY, POWERS, Point, State

LAST = 7
"""Values of a stage that are remembered."""


class Shelf(Protocol):
    """Keeps arrays by name for a later process."""

    def load(self, name: str) -> Mapping[str, np.ndarray] | None:
        """What was kept last under a name; ``None`` if nothing was."""

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays in the place of what was there; it may be left out now and then."""


def name_of(theta: torch.Tensor, *settings: object) -> str:
    """A name for a descent: where it began, and with which settings."""
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(np.ascontiguousarray(theta.numpy()).tobytes())
    return f"descent-{digest.hexdigest()[:32]}"


def to_arrays(state: State) -> dict[str, np.ndarray]:
    """A state as float64 arrays."""
    numbers = [state.stage, state.left, state.used, state.point.value, state.point.top, state.best_value]
    size = len(state.theta)
    return {
        "numbers": np.array(numbers, dtype=np.float64),
        "history": np.array(state.history, dtype=np.float64),
        "theta": state.theta.numpy(),
        "gradient": state.point.gradient.numpy(),
        "best": state.best_theta.numpy(),
        "steps": _stacked(state.steps, size),
        "changes": _stacked(state.changes, size),
    }


def from_arrays(arrays: Mapping[str, np.ndarray], size: int) -> State | None:
    """The state of a descent in ``size`` variables; ``None`` where the arrays are not one."""
    try:
        numbers, history = arrays["numbers"], arrays["history"]
        rows = [arrays[name] for name in ("steps", "changes")]
        flat = [arrays[name] for name in ("theta", "gradient", "best")]
    except KeyError:
        return None
    shapes = {array.shape for array in flat} == {(size,)} and numbers.shape == (6,) and history.ndim == 1
    kept = len({array.shape for array in rows}) == 1 and rows[0].shape[1:] == (size,) and len(rows[0]) <= MEMORY
    if not shapes or not kept or not 1 <= len(history) <= LAST or not np.isfinite(numbers).all():
        return None
    stage, left, used = (int(number) for number in numbers[:3])
    if not 0 <= stage < len(POWERS) or left < 1 or used < 0:
        return None
    theta, gradient, best = (_tensor(array) for array in flat)
    steps, changes = (tuple(_tensor(row) for row in array) for array in rows)
    point = Point(float(numbers[3]), float(numbers[4]), gradient)
    known = tuple(float(value) for value in history)
    return State(stage, left, used, theta, point, steps, changes, known, best, float(numbers[5]))


def _stacked(rows: Sequence[torch.Tensor], size: int) -> np.ndarray:
    return np.stack([row.numpy() for row in rows]) if rows else np.empty((0, size))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))

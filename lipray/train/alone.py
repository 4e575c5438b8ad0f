"""A training run of one process: checkpoints in a folder, written so that one is always whole."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lipray.errors import StoreError, TrainingError
from lipray.run.store.files import reason, whole_file
from lipray.train.loop import Row

CHECKPOINT = "checkpoint.pt"


class Alone:
    """The place of a loop without other workers.

    Args:
        folder: of the run; ``None`` keeps no checkpoints.
        device: to train on.
        notify: called with every epoch's row.
    """

    rank = 0
    world = 1

    def __init__(self, folder: Path | None, device: torch.device, notify: Callable[[Row], None]) -> None:
        self.folder, self.device, self.notify = folder, device, notify

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Nothing: there are no others."""

    def load(self) -> dict[str, Any] | None:
        """The folder's checkpoint."""
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return None
        return read_checkpoint(self.folder / CHECKPOINT, self.device)

    def keep(self, state: dict[str, Any], row: Row) -> None:
        """Write the checkpoint over the last one."""
        if self.folder is not None:
            write_checkpoint(self.folder / CHECKPOINT, state)
        self.notify(row)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint in one move, after its bytes are on the disk.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        with whole_file(path) as file:
            torch.save(state, file)
    except OSError as fault:
        raise StoreError(str(path), f"cannot be written ({reason(fault)})") from None


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint; tensors and plain values only, no code is run.

    Raises:
        StoreError: it cannot be read.
        TrainingError: it is no checkpoint of a training run.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as fault:
        raise StoreError(str(path), f"cannot be read ({fault.strerror})") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as fault:
        raise StoreError(
            str(path), f"is no whole checkpoint ({type(fault).__name__})", hint="Begin the run anew."
        ) from None
    if not isinstance(state, dict) or state.get("lipray") != 1:
        raise TrainingError(str(path), "is no checkpoint of lipray train")
    return state

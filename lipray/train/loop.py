"""The training loop: one plain function, the same on one process and on many workers.

Everything random is drawn from (seed, epoch, step), so that a run which is resumed, or has another number of workers,
takes the same steps. Constants in here are by power iteration, from below: they steer. What is certified is certified
afterwards, by ``lipray certify``.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from lipray.data.labelled import Labelled
from lipray.errors import TrainingError
from lipray.train.augment import augment, draw
from lipray.train.bounds import Constants
from lipray.train.build import make_optimiser, radius_at, rate_at
from lipray.train.config import TrainConfig, differences
from lipray.train.lookahead import Lookahead
from lipray.train.losses import LOSSES, certified
from lipray.train.mixing import epoch_order, worker_order
from lipray.train.projection import project, scalable

Row = dict[str, float]
"""What is logged of an epoch."""

EVALUATED = 500
"""Examples that are evaluated at a time."""

STEADY = 20
"""Calls of a bound before progress is reported, so that its iterates have settled."""


class Place(Protocol):
    """Where a loop runs: alone, or as one of several workers."""

    rank: int
    world: int
    device: torch.device

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace every tensor by its mean over the workers."""

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, ``None`` at the beginning."""

    def keep(self, state: dict[str, Any], row: Row) -> None:
        """Write a checkpoint, and tell of the epoch."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained, and on what."""

    config: TrainConfig
    module: nn.Module
    train: Labelled
    generated: Labelled | None
    test: Labelled

    @property
    def digest(self) -> str:
        """Of the examples that are trained on."""
        found = hashlib.sha256()
        for part in (self.train, self.generated):
            if part is not None:
                found.update(np.ascontiguousarray(part.x).data)
                found.update(np.ascontiguousarray(part.y).data)
        return found.hexdigest()


def run_loop(work: Work, place: Place) -> list[Row]:
    """Train; the module of ``work`` is changed in place.

    Returns:
        One row per epoch, those before a resumption included.

    Raises:
        TrainingError: the loss is not finite; the checkpoint is of another architecture, configuration or other data.
    """
    config, module = work.config, work.module.to(place.device)
    constants = _constants(work, module)
    optimiser = make_optimiser(config, module)
    lookahead = Lookahead(module.parameters(), config.lookahead)
    pool = _pool(work, place.device)
    rows: list[Row] = []
    scaled = [] if constants is None or config.limit is None else scalable(module, constants.graph)
    parts = Parts(module, optimiser, lookahead, constants, scaled, work.digest)
    state = place.load()
    if state is not None:
        rows = parts.restore(state, config)
    for epoch in range(len(rows), config.epochs):
        began = time.perf_counter()
        if constants is not None:
            constants.refresh(module)
        loss, radius = _epoch(epoch, work, place, parts, pool)
        seconds = time.perf_counter() - began
        row = {"epoch": epoch + 1, "loss": loss, "radius": radius, "seconds": seconds, **_progress(work, parts, place)}
        rows.append(row)
        place.keep(parts.state(config, rows), row)
    return rows


@dataclass(slots=True)
class Parts:
    """What changes while training goes on, and is kept in a checkpoint."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    lookahead: Lookahead
    constants: Constants | None
    scaled: list[str]
    data: str

    def project(self, limit: float | None) -> None:
        """Scale weights back where the largest constant of a margin is above the limit."""
        constants = self.constants
        if limit is not None and constants is not None:
            project(self.module, lambda: constants(self.module).amax(), limit, self.scaled)

    def state(self, config: TrainConfig, rows: list[Row]) -> dict[str, Any]:
        """A checkpoint: tensors, numbers and texts only, so that reading it runs no code."""
        return {
            "lipray": 1,
            "config": config.model_dump(mode="json"),
            "data": self.data,
            "rows": rows,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "lookahead": self.lookahead.state(),
            "constants": None if self.constants is None else self.constants.state(),
        }

    def restore(self, state: dict[str, Any], config: TrainConfig) -> list[Row]:
        """Go on from a checkpoint; its rows.

        Raises:
            TrainingError: it is of another configuration, other data or another architecture.
        """
        changed = differences(state["config"], config.model_dump(mode="json"))
        if changed:
            raise TrainingError(
                "the configuration",
                f"differs from that of the run to resume ({'; '.join(changed)})",
                hint="Resume with the configuration it began with, or begin a new run.",
            )
        if state.get("data") != self.data:
            raise TrainingError(
                "the training examples",
                "are not those that the run began with",
                hint="Resume with the same data, or begin a new run.",
            )
        check_state(self.module, state["module"])
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.lookahead.restore(state["lookahead"])
        if self.constants is not None and state["constants"] is not None:
            self.constants.restore(state["constants"])
        rows: list[Row] = list(state["rows"])
        return rows


def check_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Refuse a checkpoint of another architecture.

    Raises:
        TrainingError: names the first tensor that does not fit.
    """
    own = module.state_dict()
    for key in own:
        if key not in state:
            raise TrainingError("the checkpoint", f"is of another architecture: it has no {key!r}")
        if state[key].shape != own[key].shape:
            theirs, ours = tuple(state[key].shape), tuple(own[key].shape)
            raise TrainingError("the checkpoint", f"is of another architecture: {key!r} is {theirs}, and {ours} here")
    surplus = sorted(set(state) - set(own))
    if surplus:
        raise TrainingError("the checkpoint", f"is of another architecture: {surplus[0]!r} has no place in the network")


def _constants(work: Work, module: nn.Module) -> Constants | None:
    """The bound that the loss or the penalty needs, if any."""
    config = work.config
    if config.loss == "cross-entropy" and config.penalty == 0.0 and config.limit is None:
        return None
    return Constants(
        module, work.train.shape, config.bound, steps=config.bound_steps, iterations=config.bound_iterations
    )


def _pool(work: Work, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Real examples, then generated ones."""
    parts = [work.train] if work.generated is None else [work.train, work.generated]
    x = np.concatenate([part.x for part in parts])
    y = np.concatenate([part.y for part in parts])
    return torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)


def _epoch(
    epoch: int, work: Work, place: Place, parts: Parts, pool: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """One epoch; the mean loss over its steps and workers, and the last training radius."""
    config = work.config
    extra = 0 if work.generated is None else len(work.generated)
    ratio = (1, 3) if config.generated is None else config.generated.ratio
    whole = epoch_order(len(work.train), extra, batch=config.batch, seed=config.seed, epoch=epoch, ratio=ratio)
    order = worker_order(whole, place.rank, place.world)
    steps = config.epochs * len(order)
    parts.module.train()
    total, radius = torch.zeros((), device=place.device), 0.0
    for number, index in enumerate(order):
        step = epoch * len(order) + number
        for group in parts.optimiser.param_groups:
            group["lr"] = rate_at(config, step, steps)
        radius = radius_at(config, step, steps)
        draws = draw(config.augment, config.batch, _generator(config.seed, step))[place.rank :: place.world]
        chosen = torch.from_numpy(index).to(place.device)
        x, y = augment(pool[0][chosen], config.augment, draws), pool[1][chosen]
        loss = _loss(config, parts, x, y, radius)
        parts.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        moved = [parameter for parameter in parts.module.parameters() if parameter.grad is not None]
        place.average([parameter.grad for parameter in moved if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(moved, config.clip)
        parts.optimiser.step()
        parts.lookahead.step()
        parts.project(config.limit)
        total += loss.detach()
    mean = [total / len(order)]
    place.average(mean)
    if not bool(torch.isfinite(mean[0])):
        raise TrainingError(
            "the loss", f"is {float(mean[0])} in epoch {epoch + 1}", hint="Take a smaller learning_rate, or clip more."
        )
    return float(mean[0]), radius


def _loss(config: TrainConfig, parts: Parts, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    logits = parts.module(x)
    if parts.constants is None:
        return LOSSES["cross-entropy"](logits, y, None, radius)  # type: ignore[arg-type]
    constants = parts.constants(parts.module)
    loss = LOSSES[config.loss](logits, y, constants, radius)
    if config.penalty > 0.0:
        loss = loss + config.penalty * constants.amax().clamp(min=1e-30).log()
    return loss


def _generator(seed: int, step: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, step]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


@torch.no_grad()
def _progress(work: Work, parts: Parts, place: Place) -> Row:
    """Accuracy on the test examples, and what would be certified if the constants were bounds."""
    module = parts.module.eval()
    data = work.test
    constants = None
    if parts.constants is not None:
        for _ in range(STEADY - 1):
            parts.constants(module)
        constants = parts.constants(module)
    counts = torch.zeros(1 + len(work.config.radii), dtype=torch.float64)
    for start in range(place.rank * EVALUATED, len(data), place.world * EVALUATED):
        some = slice(start, start + EVALUATED)
        logits = module(torch.from_numpy(data.x[some]).to(place.device))
        right = logits.argmax(dim=1).cpu() == torch.from_numpy(data.y[some])
        counts[0] += right.sum()
        if constants is not None:
            held = [right & certified(logits, constants, radius).cpu() for radius in work.config.radii]
            counts[1:] += torch.stack(held).sum(dim=1)
    shares = (counts * place.world / len(data)).to(place.device)
    place.average([shares])
    clean, *robust = shares.tolist()
    row: Row = {"clean": clean}
    if constants is not None:
        row |= {f"robust {radius:.4g}": share for radius, share in zip(work.config.radii, robust, strict=True)}
        row["constant"] = float(constants.max())
    return row

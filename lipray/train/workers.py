"""The same loop as one of several Ray Train workers (``ray.train.torch.TorchTrainer``)."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lipray.errors import ClusterError, TrainingError
from lipray.train.alone import CHECKPOINT, read_checkpoint, write_checkpoint
from lipray.train.config import TrainConfig, make_train_config
from lipray.train.loop import Row, Work, run_loop

RESTARTS = 3
"""How often a run whose worker died goes on from its last checkpoint, before it gives up."""


class Worker:
    """The place of a loop within a group of workers: gradients are averaged, the first worker keeps checkpoints."""

    def __init__(self, first: str | None) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._first = first

    def average(self, tensors: list[torch.Tensor]) -> None:
        """One all-reduce of all of them together."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()

    def load(self) -> dict[str, Any] | None:
        """Ray's last checkpoint of this run, or the one it was told to begin with."""
        import ray.train

        kept = ray.train.get_checkpoint()
        if kept is not None:
            with kept.as_directory() as folder:
                return read_checkpoint(Path(folder) / CHECKPOINT, self.device)
        if self._first is not None:
            return read_checkpoint(Path(self._first), self.device)
        return None

    def keep(self, state: dict[str, Any], row: Row) -> None:
        """Report the epoch; with a checkpoint from the first worker."""
        import ray.train

        if self.rank:
            ray.train.report(row)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder) / CHECKPOINT, state)
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _worker_loop(options: dict[str, Any]) -> None:
    """What every worker runs."""
    from lipray.train.build import build_module, read_training_data

    if options["meeting"] is not None:
        meet(Path(options["meeting"]))
    config = make_train_config(options["config"], "configuration")
    torch.set_num_threads(config.threads or 1)
    train, generated, test = read_training_data(config)
    module = build_module(config, train)
    run_loop(Work(config, module, train, generated, test), Worker(options["first"]))


def meet(folder: Path) -> None:
    """Make the workers of one machine a group by way of a file: torch's own meeting place listens on all addresses."""
    import ray.train
    import ray.train.collective

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    token = ray.train.collective.broadcast_from_rank_zero(uuid.uuid4().hex)  # a group begun anew meets elsewhere
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{folder / token}", rank=rank, world_size=world)


def run_workers(
    config: TrainConfig, folder: Path, name: str, first: Path | None, notify: Callable[[Row], None], *, alone: bool
) -> dict[str, Any]:
    """Train on the connected Ray by ``config.workers`` workers.

    A worker that dies takes the group along; Ray begins it anew from the last checkpoint, up to ``RESTARTS`` times.

    Args:
        config: the run; data are read by every worker, so their paths must hold on all nodes.
        folder: for Ray's own files of the run, on storage that all nodes share where there are several.
        name: of the run.
        first: a checkpoint to go on from.
        notify: called with every epoch's row, after the end.
        alone: on an embedded Ray, whose workers meet on this machine and listen on loopback only.

    Returns:
        The last checkpoint.

    Raises:
        TrainingError: training failed, also after restarts; says what a worker said last.
        ClusterError: Ray Train is not installed, or there are not enough CPUs or GPUs.
    """
    try:
        import ray.train
        import ray.train.torch
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    except ImportError as fault:
        raise ClusterError("Ray Train", "is not installed", hint='Run pip install "lipray[train]".') from fault
    gpu = config.device == "cuda" or (config.device == "auto" and _gpus() >= config.workers)
    _check_room(config.workers, gpu=gpu)
    trainer_of = DataParallelTrainer if alone else ray.train.torch.TorchTrainer
    folder.mkdir(parents=True, exist_ok=True)
    trainer = trainer_of(
        _worker_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "meeting": str(folder.resolve()) if alone else None,
            "first": None if first is None else str(first.resolve()),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=gpu),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(folder.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as fault:  # Ray raises what the worker raised, wrapped in errors of its own
        raise told(fault) from fault
    if result.checkpoint is None:
        raise TrainingError("the workers", "ended without a checkpoint")
    with result.checkpoint.as_directory() as last:
        state = read_checkpoint(Path(last) / CHECKPOINT)
    for row in state["rows"]:
        notify(row)
    return state


def told(fault: BaseException) -> Exception:
    """The error of lipray that a worker raised, or one that says what it said."""
    from lipray.errors import LiprayError

    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, LiprayError):
            return seen
        inner = list(getattr(seen, "worker_failures", {}).values())
        seen = seen.__cause__ or (inner[0] if inner else None)
    lines = [line for line in str(fault).strip().splitlines() if line.strip()]
    return TrainingError("the workers", lines[-1].strip() if lines else type(fault).__name__)


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _check_room(workers: int, *, gpu: bool) -> None:
    import ray

    resources = ray.cluster_resources()
    have = int(resources.get("GPU" if gpu else "CPU", 0))
    if have < workers:
        kind = "GPUs" if gpu else "CPUs"
        raise ClusterError("the cluster", f"has {have} {kind}, and {workers} workers need one each")


def loopback_for_gloo(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """An embedded Ray's workers find one another on loopback only."""
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")

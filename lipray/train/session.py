"""A whole training run for the command line and for Python: configuration in, weights, log and checkpoint out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lipray.errors import StoreError, TrainingError, UsageError
from lipray.run.record.folder import choose_folder, open_run
from lipray.run.store.files import LocalFiles
from lipray.train.alone import CHECKPOINT, Alone, read_checkpoint, write_checkpoint
from lipray.train.build import Deployable, build_module, check_module, read_training_data
from lipray.train.config import TrainConfig, differences, make_train_config
from lipray.train.loop import Row, Work, check_state, run_loop

CONFIG, LOG, WEIGHTS = "config.yaml", "log.csv", "model.safetensors"


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run: its folder, its log, the module as it is deployed, and how ``lipray certify`` names it."""

    folder: Path
    rows: list[Row]
    module: nn.Module
    config: TrainConfig

    @property
    def command(self) -> str:
        """The command that certifies it."""
        data = self.config.data if self.config.test is None else self.config.test
        radii = " ".join(f"--radius {radius:g}" for radius in self.config.radii)
        return f"lipray certify {self.config.model} --weights {self.folder / WEIGHTS} --data {data} {radii}"


def run_training(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    address: str | None = None,
    notify: Callable[[Row], None] = lambda _: None,
) -> Trained:
    """Train and leave a folder with ``config.yaml``, ``log.csv``, ``checkpoint.pt`` and ``model.safetensors``.

    Args:
        config: what to do.
        out: the folder, which must be empty or not exist; by default one in ``runs/`` by model and time.
        resume: the folder of an earlier attempt, to go on in from its last whole epoch.
        address: of a Ray cluster; with it, or with more than one worker, the loop runs on Ray Train.
        notify: called with every epoch's figures (by workers: at the end).

    Raises:
        LiprayError: data, model, configuration or folder are not usable, or training failed; what was trained until
            then is in the checkpoint.
    """
    train, generated, test = read_training_data(config)
    module = build_module(config, train)
    for data in (train, test):
        check_module(module, data)
    folder = _resumed(resume, config, module) if resume is not None else _new_folder(out, config)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        if config.workers > 1 or address is not None:
            state = _on_ray(config, folder, address, notify, resumed=resume is not None)
            module.load_state_dict(state["module"])
            rows = state["rows"]
            write_checkpoint(folder / CHECKPOINT, state)
        else:
            rows = run_loop(
                Work(config, module, train, generated, test), Alone(folder, _device(config), _both(folder, notify))
            )
    finally:
        torch.set_num_threads(threads)
    deployed = deployed_module(module)
    files = open_run(folder)
    files.write(LOG, log_text(rows).encode())
    files.write(WEIGHTS, _weights(deployed))
    return Trained(folder, rows, deployed, config)


def deployed_module(module: nn.Module) -> nn.Module:
    """The module to certify: in eval mode, on the CPU, in torch's own layers where it has another form for training."""
    module = module.cpu().eval()
    return module.plain().cpu().eval() if isinstance(module, Deployable) else module


def log_text(rows: list[Row]) -> str:
    """The log as CSV, one line per epoch."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.10g}" for key, value in row.items()} for row in rows)
    return text.getvalue()


def _both(folder: Path, notify: Callable[[Row], None]) -> Callable[[Row], None]:
    """Every epoch into the log, so that it can be followed, and to whoever listens."""
    files = LocalFiles(folder)

    def told(row: Row) -> None:
        files.append("progress.jsonl", json.dumps(row).encode() + b"\n")
        notify(row)

    return told


def _on_ray(
    config: TrainConfig, folder: Path, address: str | None, notify: Callable[[Row], None], *, resumed: bool
) -> dict[str, Any]:
    from lipray.run.ray.cluster import connect
    from lipray.train.workers import loopback_for_gloo, run_workers

    if address is None:
        loopback_for_gloo()
    cluster = connect(address, workers=config.workers, threads=config.threads or 1, gpus=_gpus_here(config))
    try:
        first = folder / CHECKPOINT if resumed and (folder / CHECKPOINT).exists() else None
        name = datetime.now(UTC).strftime("attempt-%Y%m%d-%H%M%S")
        return run_workers(config, folder / "ray", name, first, notify, alone=address is None)
    finally:
        cluster.close()


def _gpus_here(config: TrainConfig) -> int:
    return torch.cuda.device_count() if config.device != "cpu" and torch.cuda.is_available() else 0


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device", "cuda is asked for, and torch sees no GPU", hint="Set device: auto or cpu.")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _new_folder(out: Path | None, config: TrainConfig) -> Path:
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode()
    name = f"train-{config.model.rpartition(':')[2]}"
    folder = choose_folder(out, None, name, hashlib.sha256(content).hexdigest(), datetime.now(UTC))
    folder.write(CONFIG, content)
    return Path(folder.place)


def _resumed(folder: Path, config: TrainConfig, module: nn.Module) -> Path:
    """The folder of a run to resume, whose configuration and architecture are looked at before anything is done."""
    kept = stored_config(folder)
    changed = differences(kept.model_dump(mode="json"), config.model_dump(mode="json"))
    if changed:
        raise TrainingError(
            str(folder),
            f"was begun with another configuration ({'; '.join(changed)})",
            hint="Resume with the configuration it began with, or begin a new run.",
        )
    if (folder / CHECKPOINT).exists():
        check_state(module, read_checkpoint(folder / CHECKPOINT)["module"])
    return folder


def stored_config(folder: Path) -> TrainConfig:
    """The configuration that a run was begun with.

    Raises:
        StoreError: the folder holds no training run.
    """
    try:
        values = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise StoreError(str(folder), f"holds no training run ({CONFIG} cannot be read)") from None
    return make_train_config(values or {}, str(folder / CONFIG))


def _weights(module: nn.Module) -> bytes:
    from safetensors.torch import save

    content: bytes = save({key: value.detach().contiguous() for key, value in module.state_dict().items()})
    return content

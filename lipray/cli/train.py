"""``lipray train``: Lipschitz-aware training from a YAML file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lipray.train.loop import Row


@click.command("train")
@click.argument("config", metavar="[CONFIG.yaml]", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the run; default in runs/.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with the run in this folder.")
@click.option("--address", metavar="HOST:PORT", help="Train on this Ray cluster (auto: the one of this machine).")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Workers, instead of those of the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the last epoch and the folder as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train_command(
    config: Path | None,
    *,
    out: Path | None,
    resume: Path | None,
    address: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Train a network so that its certified radii are large, as CONFIG.yaml says.

    The run's folder has the log, a checkpoint of every epoch, and model.safetensors for lipray certify, whose command
    is printed at the end. With --resume and without CONFIG the run goes on as it was begun.
    """
    del debug  # read by the group
    from lipray.errors import UsageError
    from lipray.train.config import make_train_config, read_train_config

    if resume is not None and out is not None:
        raise UsageError("--out", "a resumed run stays in its folder", hint="Leave it out.")
    if config is not None:
        chosen = read_train_config(config)
    elif resume is not None:
        from lipray.train.session import stored_config

        chosen = stored_config(resume)
    else:
        raise UsageError("CONFIG.yaml", "is missing", hint="See examples/training for configurations.")
    if workers is not None:
        chosen = make_train_config({**chosen.model_dump(), "workers": workers}, "--workers")

    from lipray.cli.console import end_cleanly, print_result
    from lipray.train.session import run_training

    with end_cleanly(), shown(chosen.epochs, quiet=quiet) as told:
        trained = run_training(chosen, out=out, resume=resume, address=address, notify=told)
    if as_json:
        import json

        record = {"folder": str(trained.folder), "epochs": len(trained.rows), "last": trained.rows[-1]}
        click.echo(json.dumps(record, indent=2))
        return 0
    from lipray.report.training import training_table

    print_result(training_table(trained.rows[-1], str(trained.folder), trained.command))
    return 0


@contextlib.contextmanager
def shown(epochs: int, *, quiet: bool) -> Iterator[Callable[[Row], None]]:
    """Who is told of every epoch: a line each, and on a terminal a bar below them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)
    if quiet or not console.is_terminal:
        yield lambda row: None if quiet else click.echo(line(row, epochs), err=True)
        return
    columns = (TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("epochs", total=epochs)

        def told(row: Row) -> None:
            console.print(line(row, epochs), highlight=False)
            progress.update(task, completed=row["epoch"])

        yield told


def line(row: Row, epochs: int) -> str:
    """One epoch in one line."""
    shown = [f"epoch {int(row['epoch'])}/{epochs}", f"loss {row['loss']:.4f}", f"clean {row['clean']:.2%}"]
    shown += [f"{key} {value:.2%}" for key, value in row.items() if key.startswith("robust")]
    if "constant" in row:
        shown.append(f"constant {row['constant']:.4g}")
    return "  ".join([*shown, f"{row['seconds']:.1f} s"])

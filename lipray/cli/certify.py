"""``lipray certify``: radii within which no perturbation changes the class, for every example of a data set."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipray.cli.estimate import set_threads
from lipray.cli.options import certify_options, configure, load

if TYPE_CHECKING:
    from lipray.config import EstimateConfig
    from lipray.data.labelled import Labelled
    from lipray.model.load import Loaded
    from lipray.robust.attack import AttackOptions

EVERY = 5.0
"""Seconds between lines about examples."""


@click.command("certify")
@certify_options
def certify_command(
    model: str,
    *,
    config: Path | None,
    data: str,
    split: str,
    limit: int | None,
    radius: tuple[str, ...],
    mean: str | None,
    std: str | None,
    each_pair: bool,
    attack: bool,
    restarts: int,
    steps: int,
    attack_device: str | None,
    clip: str | None,
    as_json: bool,
    trust_model: bool,
    no_store: bool,
    quiet: bool,
    debug: bool,
    **flags: Any,
) -> int:
    """Certify the classes that MODEL gives the examples of a data set.

    Prints clean accuracy, and for every --radius the share that is correct and certified, beside the share that an
    attack leaves correct. Every example's radius is in radii.csv. A certified radius that the attack breaks is a defect
    of lipray, and ends the command with exit code 12.
    """
    del debug  # read by the group
    options = _options(flags, config, no_store=no_store)
    set_threads(options)

    from lipray.robust.radius import parse_radius

    radii = [parse_radius(text) for text in radius]
    centre, spread, box = (_numbers(text, f"--{name}") for name, text in (("mean", mean), ("std", std), ("clip", clip)))
    attacked = _attacked(options, restarts, steps, attack_device, box) if attack else None

    from lipray.data.read import read_data

    examples = read_data(data, split)
    if limit is not None:
        examples = examples.take(slice(limit))
    loaded = _load(model, options, examples, trust=trust_model)

    from lipray.cli.console import end_cleanly, print_result
    from lipray.cli.progress import show_progress
    from lipray.robust.session import run_certify

    with end_cleanly() as watch, redirect_stdout(sys.stderr), show_progress(quiet=quiet) as notify:
        certified = run_certify(
            loaded.network,
            loaded.name,
            examples,
            options,
            radii=radii,
            attacked=attacked,
            mean=centre,
            std=spread,
            each_pair=each_pair,
            notes=loaded.notes,
            file_hash=loaded.weights_hash,
            notify=watch(notify),
            told=None if quiet else _Told(),
        )
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(certified.record, certified.folder))
    else:
        from lipray.robust.table import record_table

        print_result(record_table(certified.record, certified.folder, certified.lacking))

    from lipray.run.session import INCOMPLETE

    return 0 if certified.record.constants.complete else INCOMPLETE


class _Told:
    """Lines on stderr about the examples that are done, every few seconds and at the end."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int, count: int) -> None:
        now = time.monotonic()
        if done == count or now - self._last >= EVERY:
            self._last = now
            click.echo(f"{done}/{count} examples", err=True)


def _load(model: str, options: EstimateConfig, examples: Labelled, *, trust: bool) -> Loaded:
    """The model, at the shape of the examples unless another is asked for.

    Raises:
        DataError: it does not take inputs of their shape.
    """
    if options.input_shape is not None:
        return load(model, options, trust=trust)

    from lipray.errors import DataError, InputShapeError

    try:
        return load(model, options.model_copy(update={"input_shape": examples.shape}), trust=trust)
    except InputShapeError as fault:
        why = f"its examples have shape {examples.shape}, which the network does not take: {fault.args[1]}"
        hint = "Give the data that the network was made for, in its shape."
        raise DataError(examples.source, why, hint=hint) from None


def _options(flags: dict[str, Any], file: Path | None, *, no_store: bool) -> EstimateConfig:
    """As of estimate, but in this process unless asked otherwise."""
    from lipray.config import read_config

    written = {} if file is None else read_config(file)
    if flags["executor"] is None and flags["address"] is None and not {"executor", "address"} & set(written):
        flags["executor"] = "serial"
    options = configure(flags, file)
    if no_store:
        return options.model_copy(update={"store": None})
    if options.store is None:
        from lipray.run.record.folder import RUNS

        return options.model_copy(update={"store": RUNS})
    return options


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers separated by commas.

    Raises:
        UsageError: it is something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        from lipray.errors import UsageError

        raise UsageError(option, f"{text!r} is no list of numbers", hint="Write it like 0.49,0.48,0.45.") from None


def _attacked(
    options: EstimateConfig, restarts: int, steps: int, device: str | None, box: tuple[float, ...] | None
) -> AttackOptions:
    from lipray.errors import UsageError
    from lipray.robust.attack import AttackOptions

    if box is not None and len(box) != 2:
        raise UsageError("--clip", f"{len(box)} numbers are given", hint="Give two: --clip 0,1.")
    if device not in {None, "cpu", "cuda"}:
        raise UsageError("--attack-device", f"{device!r} is no device", hint="Give cpu or cuda.")
    ends = None if box is None else (box[0], box[1])
    place = options.device if device is None else device
    return AttackOptions(restarts=restarts, steps=steps, seed=options.seed, box=ends, device=place)

"""``lipray plan``: what an estimate would solve, and what it is expected to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lipray.cli.options import configure, load, plan_options


@click.command("plan")
@plan_options
def plan_command(
    model: str, *, config: Path | None, as_json: bool, trust_model: bool, debug: bool, **flags: Any
) -> None:
    """Show the blocks and tiles that an estimate of MODEL would solve, and their estimated cost.

    MODEL is module:factory, path/to/file.py:factory, a built-in architecture such as resnet18, or an .onnx file.
    """
    del debug  # read by the group
    options = configure(flags, config)
    loaded = load(model, options, trust=trust_model)

    from lipray.run.driver import make_plan
    from lipray.run.record.plan_record import describe_plan
    from lipray.run.session import select_outputs
    from lipray.run.summary import describe_model

    network = select_outputs(loaded.network, options)
    record = describe_plan(
        make_plan(network, options), describe_model(network, loaded.name, loaded.notes, loaded.weights_hash)
    )
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(record))
    else:
        from lipray.cli.console import print_result
        from lipray.report.table import plan_table

        print_result(plan_table(record))

"""``lipray estimate``: a certified upper bound, a lower bound beside it, and a run folder."""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from lipray.cli.options import configure, estimate_options, load
from lipray.run import THREAD_VARIABLES


@click.command("estimate")
@estimate_options
def estimate_command(
    model: str, *, config: Path | None, as_json: bool, trust_model: bool, quiet: bool, debug: bool, **flags: Any
) -> None:
    """Bound the l2 Lipschitz constant of MODEL and print the bracket.

    MODEL is module:factory, path/to/file.py:factory, a built-in architecture such as resnet18, or an .onnx file.
    The result goes to stdout, progress to stderr.
    """
    del debug  # read by the group
    began = time.monotonic()
    options = configure(flags, config)
    if options.threads is not None:
        # The libraries behind numpy and torch read these when they are loaded, which is now.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    loaded = load(model, options, trust=trust_model)

    from lipray.cli.console import end_cleanly, print_result
    from lipray.cli.progress import show_progress
    from lipray.run.budget import Clock
    from lipray.run.session import run_estimate

    # Ray prints some of its errors to stdout, which is the result's alone.
    with end_cleanly() as watch, redirect_stdout(sys.stderr), show_progress(quiet=quiet) as notify:
        finished = run_estimate(
            loaded.network,
            loaded.name,
            options,
            notes=loaded.notes,
            file_hash=loaded.weights_hash,
            notify=watch(notify),
            arguments=tuple(sys.argv[1:]),
            clock=Clock(options.budget, began),
        )
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(finished.result, str(finished.folder)))
    else:
        from lipray.report.table import result_table

        print_result(result_table(finished.result, finished.folder))

"""``lipray estimate``: a certified upper bound, a lower bound beside it, and a run folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipray.cli.options import configure, estimate_options, load
from lipray.run import THREAD_VARIABLES

if TYPE_CHECKING:
    from lipray.config import EstimateConfig


@click.command("estimate")
@estimate_options
def estimate_command(
    model: str,
    *,
    config: Path | None,
    as_json: bool,
    trust_model: bool,
    no_store: bool,
    quiet: bool,
    debug: bool,
    **flags: Any,
) -> int:
    """Bound the l2 Lipschitz constant of MODEL and print the bracket.

    MODEL is module:factory, path/to/file.py:factory, a built-in architecture such as resnet18, or an .onnx file.
    The result goes to stdout, progress to stderr. Exit code 10: the bound is valid, but some sub-problems failed.
    """
    del debug  # read by the group
    began = time.monotonic()
    options = configure(flags, config)
    if no_store:
        options = options.model_copy(update={"store": None})
    elif options.store is None:
        from lipray.run.record.folder import RUNS

        options = options.model_copy(update={"store": RUNS})
    set_threads(options)
    loaded = load(model, options, trust=trust_model)

    from lipray.cli.drive import code_of, drive, show
    from lipray.run.budget import Clock
    from lipray.run.record.folder import RUNS, read_result, run_folder
    from lipray.run.record.records import RequestRecord
    from lipray.run.resume import find_run, same_run
    from lipray.run.session import select_outputs

    earlier = None if options.run_id is None else find_run(run_folder(options.store or RUNS, options.run_id))
    if earlier is not None:
        same_run(earlier, options, select_outputs(loaded.network, options).content_hash())
        if earlier.manifest.state == "finished":
            show(read_result(earlier.folder, earlier.manifest), earlier.folder.place, as_json=as_json)
            click.echo("this run was finished already", err=True)
            return code_of("finished")
    request = RequestRecord(model=model, trust_model=trust_model, folder=str(Path.cwd()))
    clock = Clock(options.budget, began)
    return drive(loaded, options, request, clock, earlier=earlier, quiet=quiet, as_json=as_json)


def set_threads(options: EstimateConfig) -> None:
    """Limit the threads of the libraries behind numpy and torch, which read these when they are loaded."""
    if options.threads is not None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))

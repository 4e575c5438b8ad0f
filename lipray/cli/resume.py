"""``lipray resume``: go on with a run that was ended, by its folder alone."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from lipray.cli.estimate import set_threads
from lipray.cli.options import load, resume_options

if TYPE_CHECKING:
    from lipray.config import EstimateConfig
    from lipray.run.record.folder import RunFolder
    from lipray.run.record.records import ManifestRecord


FROM_PYTHON = "It was made from Python: call lipray.estimate again with the same store."


@click.command("resume")
@click.argument("run", metavar="RUN")
@resume_options
def resume_command(run: str, *, as_json: bool, quiet: bool, debug: bool, **flags: Any) -> int:
    """Go on with RUN, the folder (or URL) of a run or a sweep that was stopped, failed, or lost its driver.

    Model and options are those of its manifest; what the store has is proven again instead of solved. Only where the
    work is done may be given anew. Of a run that is finished the result is printed.
    """
    del debug  # read by the group
    began = time.monotonic()
    from lipray.cli.drive import code_of, drive, show
    from lipray.errors import StoreError
    from lipray.run.record.folder import open_run, read_manifest, read_result
    from lipray.run.resume import configuration_of, find_run, same_run

    folder = open_run(run)
    manifest = read_manifest(folder)
    if manifest.sweep is not None:
        return _sweep(folder, manifest, flags, began, as_json=as_json, quiet=quiet)
    if manifest.state == "finished":
        show(read_result(folder, manifest), folder.place, as_json=as_json)
        click.echo("this run was finished already", err=True)
        return code_of("finished")
    if manifest.request is None:
        raise StoreError(folder.place, "does not say which model it was made from", hint=FROM_PYTHON)
    options = _elsewhere(configuration_of(manifest, folder.place), flags)
    set_threads(options)
    loaded = load(_model(manifest), options, trust=manifest.request.trust_model)

    from lipray.run.budget import Clock
    from lipray.run.session import select_outputs

    earlier = find_run(folder)
    assert earlier is not None  # noqa: S101 (its manifest was read)
    same_run(earlier, options, select_outputs(loaded.network, options).content_hash())
    clock = Clock(options.budget, began)
    return drive(loaded, options, manifest.request, clock, earlier=earlier, quiet=quiet, as_json=as_json)


def _sweep(
    folder: RunFolder, manifest: ManifestRecord, flags: dict[str, Any], began: float, *, as_json: bool, quiet: bool
) -> int:
    """Go on with a sweep: points that are finished are left as they are."""
    from lipray.cli.sweep import Networks, drive_sweep, show
    from lipray.errors import StoreError
    from lipray.run.budget import Clock
    from lipray.run.record.sweep_folder import read_sweep
    from lipray.run.resume import find_run, same_sweep, sweep_configurations

    known = read_sweep(folder) if manifest.state == "finished" else None
    if known is not None:
        show(known, folder.place, as_json=as_json)
        click.echo("this sweep was finished already", err=True)
        return 0
    part, request = manifest.sweep, manifest.request
    if part is None or request is None:
        raise StoreError(folder.place, "does not say which model it was made from", hint=FROM_PYTHON)
    configs = {
        name: _elsewhere(options, flags) for name, options in sweep_configurations(manifest, folder.place).items()
    }
    first = next(iter(configs.values()))
    set_threads(first)
    networks = Networks(_model(manifest), trust=request.trust_model)
    earlier = find_run(folder)
    assert earlier is not None  # noqa: S101 (its manifest was read)
    same_sweep(earlier, part, first, networks(first)[1].hash)
    clock = Clock(first.budget, began)
    return drive_sweep(part, configs, networks, request, clock, earlier=earlier, quiet=quiet, as_json=as_json)


def _elsewhere(options: EstimateConfig, flags: dict[str, Any]) -> EstimateConfig:
    """The options of the run, with another place to do it where one is given."""
    from lipray.config import make_config

    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("executor") == "serial" and "address" not in given:
        given["address"] = None
    elif "address" in given:
        given.setdefault("executor", "ray")
    return make_config({**options.model_dump(exclude_none=True), **given})


def _model(manifest: ManifestRecord) -> str:
    """The model's name, where it is a file the file's path from where the run was begun."""
    assert manifest.request is not None  # noqa: S101 (looked at before)
    name, base = manifest.request.model, manifest.request.folder
    path = name.rpartition(":")[0] if ".py:" in name else name
    there = os.path.join(base, path)  # noqa: PTH118 - a name may be no path at all
    return os.path.join(base, name) if os.path.exists(there) else name  # noqa: PTH110, PTH118

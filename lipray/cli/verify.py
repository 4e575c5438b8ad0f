"""``lipray verify``: a certificate checked against its model, without an optimiser, a solver or, unless asked, Ray."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from lipray.cli.options import configure, verify_options


@click.command("verify")
@click.argument("certificate", metavar="CERTIFICATE_OR_RUN_FOLDER")
@verify_options
def verify_command(
    certificate: str, model: str, *, as_json: bool, trust_model: bool, quiet: bool, debug: bool, **flags: Any
) -> None:
    """Recompute the bound of a certificate from its multipliers and the weights of MODEL.

    The first argument is a run folder, by path or URL, or its certificate.json (with certificate.npz beside it). MODEL
    is the model as it was given to estimate, with --weights where it had them. Exit code 9: the certificate proves
    something else.
    """
    del debug  # read by the group
    from lipray.run.verification import fetch

    record, arrays = fetch(certificate)
    flags["executor"] = flags["executor"] or ("ray" if flags["address"] else "serial")
    options = configure({**flags, "input_shape": tuple(record.model.input_shape)}, None)

    from lipray.model.load import load_network
    from lipray.run.start import start_executor
    from lipray.run.verification import select, verify_certificate

    loaded = load_network(model, options.input_shape, weights=options.weights, trust_model=trust_model)
    network = select(loaded.network, record.selection)

    from lipray.cli.console import end_cleanly, print_result

    def show(done: int, count: int, label: str) -> None:
        if not quiet:
            click.echo(f"{done}/{count} proven: {label}", err=True)

    with end_cleanly(), redirect_stdout(sys.stderr):
        executor = start_executor(options)
        try:
            verdict = verify_certificate(record, arrays, network, executor, memory=options.memory, notify=show)
        finally:
            executor.close()
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(verdict))
    else:
        from lipray.report.table import verdict_table

        print_result(verdict_table(verdict))

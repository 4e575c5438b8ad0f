"""``lipray doctor``: versions, the machine, the store, Ray and the token, and what to do where something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lipray.run.checks.findings import Finding

DEFAULT_STORE = "runs"


@click.command("doctor")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="A running cluster: auto, HOST:PORT of its GCS, or http(s)://… of its dashboard. Default: an embedded Ray.",
)
@click.option("--store", metavar="PLACE", default=DEFAULT_STORE, help="Where runs are kept: a path or URL (runs).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def doctor_command(*, address: str | None, store: str, as_json: bool, quiet: bool, debug: bool) -> int:
    """Look at everything an estimate needs, and say what is wrong and what to do.

    A file is written to the store and removed again; Ray is started, or joined, and left. The exit code is 0, or that
    of the first fault: 1 versions, 2 options, 7 store, 8 cluster.
    """
    del debug  # read by the group
    from lipray.cli.console import end_cleanly, print_result
    from lipray.run.checks.findings import diagnosis, gather

    found: list[Finding] = []
    # Ray prints some of its errors to stdout, which is the result's alone.
    with end_cleanly(), redirect_stdout(sys.stderr):
        for name, check in _checks(address, store):
            if not quiet:
                click.echo(f"looking at {name}", err=True)
            found.extend(gather(name, check))
    record = diagnosis(found)
    if as_json:
        from lipray.report.json import to_json

        click.echo(to_json(record))
    else:
        from lipray.report.doctor import diagnosis_table

        print_result(diagnosis_table(record))
    return record.exit_code


def _checks(address: str | None, place: str) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """The checks by name, in the order in which they are made."""
    from lipray.jobs import doctor as jobs
    from lipray.run.checks import fit, machine
    from lipray.run.checks import place as places
    from lipray.run.ray import doctor as ray_doctor
    from lipray.run.serial import machine_memory

    yield "versions", machine.versions
    yield "cores", machine.cores
    yield "memory", machine.memory
    yield "threads", machine.threads
    yield "store", lambda: places.store(place)
    yield "token", jobs.token
    largest: list[int] = []
    if address is None:
        yield "Ray", ray_doctor.embedded
        largest.append(machine_memory())
    elif "://" in address:
        yield "dashboard", lambda: jobs.dashboard(address)
    else:
        yield "Ray", lambda: ray_doctor.joined(address, largest)
    if largest:
        where = "here" if address is None else "on the largest node"
        yield "what fits", lambda: [fit.fit(largest[0], where)]

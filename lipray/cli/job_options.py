"""Options that the commands about jobs share, and how they reach a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lipray.jobs.address import Address
    from lipray.jobs.client import Jobs

Command = Callable[..., Any]

ADDRESS = click.option(
    "--address",
    metavar="URL",
    help="Of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265.",
)
INSECURE = click.option(
    "--insecure", is_flag=True, help="Speak to another machine although neither a token nor TLS protects it."
)

_SHARED = (
    ADDRESS,
    INSECURE,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def job_options(command: Command) -> Command:
    """Options of every command about jobs."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def admitted(address: str | None, *, insecure: bool) -> tuple[Address, str | None]:
    """The address that is meant, and the token for it; a remark about its protection goes to stderr.

    Raises:
        UsageError: the address is no Jobs API, or is another machine's without protection.
    """
    from lipray.jobs.address import admit, resolve
    from lipray.jobs.token import find_token

    place, token = resolve(address), find_token()
    remark = admit(place, token=token is not None, insecure=insecure)
    if remark is not None:
        click.echo(f"note: {remark}", err=True)
    return place, token


@contextmanager
def reach(place: Address, token: str | None) -> Iterator[Jobs]:
    """The jobs of a cluster; while inside, stdout is the result's alone and what Ray prints goes to stderr.

    Raises:
        ClusterError: it does not answer, or refuses the token.
    """
    from lipray.jobs.greeting import greet

    greet(place, token)
    from lipray.jobs.client import Jobs

    with redirect_stdout(sys.stderr):
        yield Jobs(place, token)

"""What ``lipray doctor`` looks at before it trusts a cluster with jobs: its dashboard, and the token."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from lipray.errors import ClusterError
from lipray.jobs.address import Address, resolve
from lipray.jobs.greeting import WANTS_TOKEN, Head, greet
from lipray.jobs.token import FILE, MODE, VALUE, find_token
from lipray.run.checks.findings import Finding, fault, fault_of, good, warning
from lipray.run.ray.doctor import unprotected


def token() -> Iterator[Finding]:
    """Where the cluster's token comes from, and who can read it; never the token.

    Raises:
        UsageError: there should be one, and it cannot be read or used.
    """
    name = "token"
    found = find_token()
    if os.environ.get(MODE, "").lower() == "disabled":
        yield warning(name, f"{MODE}=disabled: it is not used", f"Unset {MODE}, so that clusters ask for a token.")
        return
    if found is None:
        yield good(name, "none here; an embedded Ray makes its own")
        return
    if os.environ.get(VALUE):
        yield good(name, f"in {VALUE}")
        return
    path = Path(os.environ.get(FILE) or Path.home() / ".ray" / "auth_token")
    mode = path.stat().st_mode & 0o777
    text = f"in {path}, mode {mode:04o}"
    if mode & 0o077:
        yield warning(name, f"{text}: others may read it, and run code with it", f"chmod 600 {path}")
    else:
        yield good(name, text)


def dashboard(text: str) -> Iterator[Finding]:
    """The Jobs API at an http or https address: whether it answers, whom it answers, and its versions.

    Raises:
        UsageError: the address or the token cannot be used.
    """
    address, secret = resolve(text), find_token()
    name = "dashboard"
    yield _way(address, with_token=secret is not None)
    closed = None
    try:
        head: Head | None = greet(address, None)
    except ClusterError as error:
        closed, head = error, None
        if error.args[-1] != WANTS_TOKEN:
            yield fault_of(name, error)
            return
    if closed is None:
        yield unprotected("authentication", loopback=address.loopback)
    else:
        yield good("authentication", "the cluster wants a token")
        if secret is None:
            yield fault_of(name, closed)
            return
        try:
            head = greet(address, secret)
        except ClusterError as error:
            yield fault_of(name, error)
            return
    assert head is not None  # noqa: S101 (narrows the type)
    yield _versions(head)


def _way(address: Address, *, with_token: bool) -> Finding:
    name, text = "address", address.url
    if address.loopback:
        return good(name, f"{text}, on loopback")
    if address.tls:
        return good(name, f"{text}, over TLS")
    what = "the token and all that is sent" if with_token else "all that is sent"
    return warning(
        name,
        f"{text} is another machine, without TLS: {what} can be read on the way",
        "Use https, or an SSH tunnel to 127.0.0.1.",
    )


def _versions(head: Head) -> Finding:
    here = {"Ray": metadata.version("ray"), "Python": platform.python_version()}
    there = {"Ray": head.ray, "Python": head.python}
    text = ", ".join(f"{name} {version}" for name, version in there.items() if version is not None)
    wrong = [
        f"{name} {here[name]}"
        for name, version in there.items()
        if version is not None and version.split(".")[:2] != here[name].split(".")[:2]
    ]
    if wrong:
        remedy = f"Use the same on both sides: here it is {', '.join(wrong)}."
        return fault("dashboard", f"answers with {text}", remedy, code=ClusterError.exit_code)
    return good("dashboard", f"answers with {text}")

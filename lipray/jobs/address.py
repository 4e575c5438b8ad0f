"""Where a cluster's Jobs API listens, and whether what is sent there is protected."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from lipray.errors import UsageError

VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT = "http://127.0.0.1:8265"

_EXAMPLE = f"Write it like {DEFAULT}, the address of the cluster's dashboard."


@dataclass(frozen=True, slots=True)
class Address:
    """The Jobs API of a cluster: its URL, and whether it is reached by loopback or over TLS."""

    url: str
    host: str
    port: int
    loopback: bool
    tls: bool


def resolve(given: str | None) -> Address:
    """The address that was given, else the one in ``RAY_API_SERVER_ADDRESS``, else the dashboard of this machine.

    Raises:
        UsageError: it is no http or https URL, or holds a password.
    """
    text, source = given, "--address"
    if text is None:
        text, source = os.environ.get(VARIABLE) or DEFAULT, VARIABLE
    if "://" not in text:
        if text == "auto" or not text:
            raise UsageError(source, f"{text!r} names no Jobs API", hint=_EXAMPLE)
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise UsageError(source, f"{text!r} is no URL", hint=_EXAMPLE) from None
    if parts.username is not None or parts.password is not None:
        hint = "Leave the password out: the cluster's token is RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH."
        raise UsageError(source, "the URL holds a user's name or password, which would end in logs", hint=hint)
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
        raise UsageError(source, f"{text!r} is no address of a Jobs API", hint=_EXAMPLE)
    return Address(
        url=text.rstrip("/"),
        host=host,
        port=port or (443 if parts.scheme == "https" else 80),
        loopback=_is_loopback(host),
        tls=parts.scheme == "https",
    )


def admit(address: Address, *, token: bool, insecure: bool) -> str | None:
    """Refuse to speak with another machine where neither a token nor TLS protects the cluster.

    Returns:
        A remark for the user, where what is sent can be read on the way.

    Raises:
        UsageError: the address is not this machine's, and has no token and no TLS.
    """
    if address.loopback or address.tls:
        return None
    if token:
        return f"{address.url} is not encrypted: the token can be read on the way. Prefer https, or an SSH tunnel."
    if insecure:
        return f"{address.url} has no token and no TLS: who reaches it can run what he likes on the cluster."
    raise UsageError(
        "--address",
        f"{address.url} is another machine, and neither a token nor TLS protects it",
        hint="Set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token, use https or an SSH tunnel to "
        "127.0.0.1; or pass --insecure in a network where everybody may run code on the cluster.",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The first word with a cluster: is it there, is it Ray, is the token right, do versions agree.

It needs no Ray, so that what is wrong is said at once and in few words.
"""

from __future__ import annotations

import json
import os
import platform
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from lipray.errors import ClusterError
from lipray.jobs.address import Address
from lipray.jobs.token import headers

SECONDS = 10.0
"""How long an answer may take."""

WANTS_TOKEN = "the cluster wants a token, and there is none here"  # noqa: S105 - says that there is none

NO_RAY = "pip install 'ray[default]'"

_UNLOCK_HINT = (
    "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, to the token that the cluster was started with."
)
_GONE_HINT = "Is the cluster running, and this the address of its dashboard? Through a tunnel: is the tunnel open?"


@dataclass(frozen=True, slots=True)
class Head:
    """What a cluster's head says of itself; Python's version where it tells."""

    ray: str
    python: str | None


def greet(address: Address, token: str | None) -> Head:
    """Ask the cluster who it is.

    Raises:
        ClusterError: nothing answers, what answers is not Ray, or the token is missing or wrong.
    """
    said = _get(address, token, "/api/version")
    version = said.get("ray_version")
    if not isinstance(version, str):
        raise _not_ray(address)
    return Head(version, _python(address, token))


def check_versions(address: Address, head: Head) -> None:
    """Refuse a cluster with another Ray or Python, up to the last part of the version.

    Raises:
        ClusterError: they differ, or Ray is not installed here.
    """
    try:
        ray = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ClusterError(address.url, "Ray is not installed here", hint=f"Run: {NO_RAY}") from None
    for name, here, there in (("Ray", ray, head.ray), ("Python", platform.python_version(), head.python)):
        if there is not None and here.split(".")[:2] != there.split(".")[:2]:
            hint = f"Use the same {name} on both sides, or pass --any-version if you know that they get along."
            raise ClusterError(address.url, f"the cluster has {name} {there}, and this is {here}", hint=hint)


def _python(address: Address, token: str | None) -> str | None:
    """The head's Python; not part of the documented interface, hence left out where it does not answer."""
    try:
        said = _get(address, token, "/api/v0/cluster_metadata")
    except ClusterError:
        return None
    data = said.get("data")
    found = data.get("pythonVersion", data.get("python_version")) if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


def _get(address: Address, token: str | None, path: str) -> dict[str, Any]:
    request = urllib.request.Request(address.url + path)  # noqa: S310 - http or https, see address.py
    for name, value in headers(token).items():
        request.add_unredirected_header(name, value)  # not to where a redirect points
    handlers: list[urllib.request.BaseHandler] = []
    if address.loopback:
        handlers.append(urllib.request.ProxyHandler({}))
    if address.tls:
        context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=SECONDS) as answer:
            said = json.loads(answer.read(2**20))
    except urllib.error.HTTPError as fault:
        raise _refusal(address, fault.code, given=token is not None) from None
    except (OSError, urllib.error.URLError) as fault:
        raise ClusterError(address.url, f"no cluster answers ({_why(fault)})", hint=_GONE_HINT) from None
    except Exception:  # noqa: BLE001 - whatever listens there may answer what it likes
        raise _not_ray(address) from None
    if not isinstance(said, dict):
        raise _not_ray(address)
    return said


def _refusal(address: Address, code: int, *, given: bool) -> ClusterError:
    if code in {401, 403}:
        why = "the cluster refuses the token" if given else WANTS_TOKEN
        return ClusterError(address.url, why, hint=_UNLOCK_HINT)
    if code in {502, 503, 504}:
        return ClusterError(address.url, f"the cluster does not answer now (HTTP {code})", hint=_GONE_HINT)
    return _not_ray(address)


def _not_ray(address: Address) -> ClusterError:
    return ClusterError(address.url, "what answers there is no Ray dashboard", hint=_GONE_HINT)


def _why(fault: Exception) -> str:
    reason = getattr(fault, "reason", fault)
    if isinstance(reason, ssl.SSLError):
        return f"TLS: {reason.reason or reason}"
    if isinstance(reason, TimeoutError):
        return f"nothing within {SECONDS:.0f} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__

"""What a job's driver does first: see that it is the lipray that the job was made for, and say what it runs on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from lipray import __version__
from lipray.errors import ClusterError

EXPECTED = "LIPRAY_EXPECTED_VERSION"
"""Environment variable of a job: the version of lipray that submitted it."""

ANNOUNCEMENT = "driver: lipray "
"""How the line begins that says that lipray has started on the cluster."""


THE_CLUSTER = "the cluster"


def announce() -> str | None:
    """The line that a job's log begins with; none where this is no job of lipray.

    Raises:
        ClusterError: the job was submitted by another version.
    """
    expected = os.environ.get(EXPECTED)
    if expected is None:
        return None
    if expected != __version__:
        hint = f"Install lipray {expected} on the cluster, or submit with --ship-lipray."
        raise ClusterError(THE_CLUSTER, f"it has lipray {__version__}, and {expected} submitted this job", hint=hint)
    try:
        ray = metadata.version("ray")
    except metadata.PackageNotFoundError:
        ray = "?"
    return f"{ANNOUNCEMENT}{__version__}, Ray {ray}, Python {platform.python_version()}"

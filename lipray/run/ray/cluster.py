"""A connection to Ray: an embedded one that ends with the command, or a running cluster.

The embedded Ray listens on loopback only. Ray 2.60 on Linux replaces 127.0.0.1 by the machine's routable
address and binds some ports to all addresses; with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, read when ray is
imported, it keeps to 127.0.0.1 on every port (checked by a test). Its token lives in the environment of
this process and its children, so that Ray does not leave one, world-readable, in the home folder. For both
to hold, Ray must not be imported before ``connect`` is called.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lipray import __version__
from lipray.errors import ClusterError, UsageError
from lipray.run import THREAD_VARIABLES
from lipray.run.serial import machine_memory

PROBE_SECONDS = 5.0
CONNECT_SECONDS = 60.0
HANDSHAKE_SECONDS = 120.0

_OPTIONS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""By which Ray hands a job's driver the runtime environment of the job."""
_IN_A_JOB = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
"""Where a job's runtime environment sets a thread variable too, ours counts; without this Ray refuses both."""
_EARLY_OPTIONS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # One token for the life of this process, because Ray reads it once.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""What Ray reads when it is imported; without effect, or worse, if it is imported already."""

_JOIN_HINT = "Is the cluster running, and this its GCS address (HOST:6379)? Is RAY_AUTH_TOKEN the cluster's?"


@dataclass(slots=True)
class Cluster:
    """A live connection; ``close`` ends it, and with it an embedded Ray."""

    address: str
    embedded: bool
    owned: bool = True
    folder: Path | None = None
    environment: dict[str, str | None] = field(default_factory=dict)

    def close(self) -> None:
        """Disconnect; processes and files of an embedded Ray go. Never touches another Ray on the machine."""
        import ray

        if self.owned and ray.is_initialized():
            with _keep_sigterm():
                ray.shutdown()
        self.owned = False
        _restore(self.environment)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def connect(address: str | None, *, workers: int | None, threads: int, gpus: int = 0) -> Cluster:
    """Start an embedded Ray, which is told of ``gpus`` GPUs, or connect to the cluster at ``address``.

    If this process is connected to Ray already and no address is given, that connection is used and left open.

    Raises:
        ClusterError: Ray cannot be started or reached, or its workers have another version of lipray.
        UsageError: the address cannot be understood.
    """
    if address is None:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            return Cluster("this process", embedded=False, owned=False)
        return _embed(workers, threads, gpus)
    return _join(address, threads)


def _embed(workers: int | None, threads: int, gpus: int) -> Cluster:
    """Start Ray for this process alone."""
    # Workers inherit the thread variables; a runtime environment would start each of them anew.
    environment = _set(_OPTIONS | _early_options() | dict.fromkeys(THREAD_VARIABLES, str(threads)))
    # Ray makes its folder readable by all; this one around it is not. Unix sockets need a short path.
    base = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108 - a private folder inside it
    folder = Path(tempfile.mkdtemp(prefix="lipray-", dir=base))
    cluster = Cluster("embedded", embedded=True, folder=folder, environment=environment)
    try:
        import ray

        with _keep_sigterm():
            ray.init(
                address="local",  # not the cluster that RAY_ADDRESS may name
                num_cpus=workers,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes(),
                log_to_driver=False,
                logging_level="ERROR",
                namespace="lipray",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "ray"),
            )
    except BaseException as fault:
        cluster.close()
        if isinstance(fault, Exception):
            hint = "Use --executor serial to do without Ray."
            raise ClusterError("embedded", f"Ray did not start ({_line(fault)})", hint=hint) from None
        raise
    return cluster


def object_store_bytes() -> int:
    """Shared memory that an embedded Ray may use for its objects."""
    return max(100 * 2**20, min(2 * 2**30, machine_memory() // 10))


def _join(address: str, threads: int) -> Cluster:
    """Connect to a running cluster, after seeing that something answers there."""
    _probe(address)
    environment = _set(_OPTIONS | _IN_A_JOB)
    cluster = Cluster(address, embedded=False, environment=environment)
    try:
        if _JOB_VARIABLE not in os.environ:  # the driver of a job was started by the cluster that it joins
            _answers(address)
        import ray

        with _keep_sigterm():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                namespace="lipray",
                runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(threads))},
            )
        _handshake(address)
    except BaseException as fault:
        cluster.close()
        if isinstance(fault, Exception) and not isinstance(fault, ClusterError):
            raise ClusterError(address, f"cannot be joined ({_line(fault)})", hint=_JOIN_HINT) from None
        raise
    return cluster


def _probe(address: str) -> None:
    """Refuse an address that nothing answers at; ``ray.init`` would try for a minute."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")  # which Ray looks at first
        if address in {"", "auto", "local"}:
            return
    if "://" in address:
        raise UsageError(
            "--address",
            f"{address} is not a GCS address",
            hint="Run lipray on a node of the cluster with --address auto, or as a Ray job; or give HOST:6379.",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError("--address", f"{address!r} is neither auto nor HOST:PORT", hint="For example 10.0.0.5:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as fault:
        why = fault.strerror or str(fault)
        raise ClusterError(address, f"nothing answers there ({why})", hint="Check host and port.") from None


def _answers(address: str) -> None:
    """See that a Ray answers, in a process of its own: inside this one Ray would wait in C++, deaf to signals.

    Raises:
        ClusterError: after ``CONNECT_SECONDS``, or as soon as Ray knows better.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        command += ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS, check=False)  # noqa: S603 - no shell
    except subprocess.TimeoutExpired:
        why = f"no Ray cluster answered within {CONNECT_SECONDS:.0f} s"
    else:
        if done.returncode == 0:
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1].split(": ", 1)[-1][:300] if lines else "no Ray cluster answered"
    raise ClusterError(address, why, hint=_JOIN_HINT)


def _handshake(address: str) -> None:
    """See that a worker can import this version of lipray."""
    import ray

    version = ray.remote(num_cpus=0, max_retries=0)(_worker_version)
    try:
        found = ray.get(version.remote(), timeout=HANDSHAKE_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(address, f"no worker answered within {HANDSHAKE_SECONDS:.0f} s") from None
    except ray.exceptions.RayError as fault:
        hint = f"Install lipray {__version__} on every node."
        raise ClusterError(address, f"its workers cannot run lipray ({_line(fault)})", hint=hint) from None
    if found != __version__:
        hint = "Install the same version on every node."
        raise ClusterError(address, f"its workers have lipray {found}, this is {__version__}", hint=hint)


def _worker_version() -> str:
    import lipray

    return lipray.__version__


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; put ours back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _early_options() -> dict[str, str]:
    """Loopback and token, unless Ray was imported without them: then Ray's own defaults hold."""
    global _imported_here  # noqa: PLW0603 - a fact about the process, not about a connection
    if "ray" in sys.modules and not _imported_here:
        return {}
    _imported_here = True
    return _EARLY_OPTIONS


_imported_here = False


def _set(values: dict[str, str]) -> dict[str, str | None]:
    """Set environment variables and return what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    return before


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(fault).__name__

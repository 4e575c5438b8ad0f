"""Ray as ``lipray doctor`` sees it: an embedded one started and ended, or a running cluster, node by node."""

from __future__ import annotations

import ipaddress
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipray import __version__
from lipray.errors import ClusterError
from lipray.run import THREAD_VARIABLES
from lipray.run.checks.findings import Finding, fault, good, warning
from lipray.run.ray.cluster import connect, object_store_bytes

ANSWER_SECONDS = 120.0
"""How long the nodes may take to start a worker and answer."""
OPEN_SECONDS = 30.0
OOM_RETRIES = "RAY_task_oom_retries"

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects on Linux


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster; ``said`` is what a worker there told, or ``why`` there was no answer."""

    address: str
    resources: Mapping[str, float]
    said: Mapping[str, str] | None
    why: str = ""

    @property
    def memory(self) -> float:
        """Bytes that tasks may reserve."""
        return self.resources.get("memory", 0.0)


def embedded() -> Iterator[Finding]:
    """Start an embedded Ray with one CPU, have a worker import lipray, and end it.

    Raises:
        ClusterError: it does not start.
    """
    began = time.monotonic()
    cluster = connect(None, workers=1, threads=1)
    try:
        started = time.monotonic() - began
        nodes = _nodes()
        answered = time.monotonic() - began - started
    finally:
        cluster.close()
    if cluster.embedded and not all(_is_loopback(node.address) for node in nodes):
        places = ", ".join(node.address for node in nodes)
        yield fault("Ray", f"an embedded Ray listens at {places}, not on loopback", code=ClusterError.exit_code)
    text = f"an embedded one starts in {started:.1f} s, and a worker answers {answered:.1f} s later"
    yield good("Ray", text)
    yield from _judge(nodes, name="worker")
    yield from _shared_memory(_SHARED_MEMORY)


def joined(address: str, memory: list[int]) -> Iterator[Finding]:
    """Join a running cluster, look at every node, and leave it.

    Args:
        address: ``auto``, or HOST:PORT of its GCS.
        memory: takes what the largest node offers to tasks, in bytes.

    Raises:
        ClusterError: it cannot be joined, or its workers cannot run this version of lipray.
        UsageError: the address cannot be understood.
    """
    began = time.monotonic()
    cluster = connect(address, workers=None, threads=1)
    try:
        took = time.monotonic() - began
        nodes = _nodes()
        gcs = _gcs_address()
    finally:
        cluster.close()
    total = {kind: sum(node.resources.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU", "memory")}
    text = f"{address} joined in {took:.1f} s: {len(nodes)} node(s), {_resources(total)}"
    if total["CPU"] < 1:
        yield fault("Ray", text, "Add nodes with CPUs: no task could run.", code=ClusterError.exit_code)
    else:
        yield good("Ray", text)
    memory.append(int(max((node.memory for node in nodes), default=0.0)))
    yield from _judge(nodes, name="node")
    yield authentication(gcs)


def _nodes() -> list[Node]:
    """All living nodes, each asked by a task that is pinned to it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pin

    alive = [node for node in ray.nodes() if node["Alive"]]
    remote = ray.remote(num_cpus=0, max_retries=0)(_report())
    asked = [remote.options(scheduling_strategy=Pin(node["NodeID"], soft=False)).remote() for node in alive]
    ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = []
    for node, answer in zip(alive, asked, strict=True):
        said, why = None, ""
        try:
            said = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            why = f"no worker answered within {ANSWER_SECONDS:.0f} s"
            ray.cancel(answer, force=True)
        except ray.exceptions.RayError as error:
            why = f"a worker failed ({str(error).strip().splitlines()[-1][:200]})"
        found.append(Node(str(node["NodeManagerAddress"]), dict(node["Resources"]), said, why))
    return found


def _report() -> Callable[[], dict[str, str]]:
    """What a worker tells of itself: a function without a module, so that it runs where lipray is another version."""

    def report() -> dict[str, str]:
        import importlib.metadata
        import os
        import platform

        def version(name: str) -> str:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return "none"

        try:
            import lipray

            mine = lipray.__version__
        except ImportError:
            mine = "none"
        said = {"lipray": mine, "Python": platform.python_version(), "Ray": version("ray"), "torch": version("torch")}
        return said | {name: os.environ.get(name, "") for name in variables}

    variables = (*THREAD_VARIABLES, OOM_RETRIES)
    return report


def _judge(nodes: Sequence[Node], *, name: str) -> Iterator[Finding]:
    """Each node's resources and versions against this process, then what holds for all."""
    for node in nodes:
        yield _judge_node(node, f"{name} {node.address}")
    said = [node.said for node in nodes if node.said is not None]
    if not said:
        return
    unset = sorted({variable for one in said for variable in THREAD_VARIABLES if one[variable] != "1"})
    if unset:
        text = f"{', '.join(unset)} of the workers are not 1"
        yield warning("threads of workers", text, "Tasks would get in each other's way: unset them on the nodes.")
    else:
        yield good("threads of workers", "one per task")
    retries = sorted({one[OOM_RETRIES] or "not set" for one in said})
    yield good("out of memory", f"{OOM_RETRIES} is {', '.join(retries)}; lipray's own tasks ask Ray for no retries")


def _judge_node(node: Node, name: str) -> Finding:
    code = ClusterError.exit_code
    if node.said is None:
        return fault(name, node.why, "See the node's logs; take it out of the cluster or repair it.", code=code)
    told = {key: node.said[key] for key in ("lipray", "Python", "Ray", "torch")}
    text = f"{_resources(node.resources)}; {', '.join(f'{key} {value}' for key, value in told.items())}"
    here = {"lipray": __version__, "Python": _minor(platform.python_version())}
    there = {"lipray": told["lipray"], "Python": _minor(told["Python"])}
    wrong = [key for key, value in here.items() if value != there[key]]
    if wrong:
        lines = ", ".join(f"{key} {here[key]}" for key in wrong)
        return fault(name, text, f"Install what is here on the node: {lines}.", code=code)
    return good(name, text)


def authentication(address: str) -> Finding:
    """Whether the cluster at ``address`` (HOST:PORT) answers one who has no token, which a new process is."""
    name, secret = "authentication", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    bare = {key: value for key, value in os.environ.items() if key not in secret} | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OPEN_SECONDS, env=bare, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return good(name, "without a token nothing answers")
    if "InvalidAuthToken" in done.stderr:
        return good(name, "the cluster wants a token")
    if done.returncode:
        return good(name, "without a token nothing answers")
    return unprotected(name, loopback=_is_loopback(address.rpartition(":")[0].strip("[]")))


def unprotected(name: str, *, loopback: bool) -> Finding:
    """The finding for a cluster that asks for no token."""
    remedy = "Start it with RAY_AUTH_MODE=token and a token: ray get-auth-token --generate."
    if loopback:
        return warning(name, "off: every user of this machine can run code on the cluster", remedy)
    text = "off: whoever reaches the cluster can run code on it"
    return fault(name, text, remedy, code=ClusterError.exit_code)


def _shared_memory(folder: Path) -> Iterator[Finding]:
    """Room for the embedded Ray's objects; a container's default of 64 MiB sends them to the disk."""
    if not folder.is_dir():
        return
    free, wanted = shutil.disk_usage(folder).free, object_store_bytes()
    text = f"{free / 2**20:.0f} MiB of {folder} free, {wanted / 2**20:.0f} MiB wanted by an embedded Ray"
    if free >= wanted:
        yield good("shared memory", text)
    else:
        yield warning("shared memory", text, "Objects would go to the disk: give the container more, as by --shm-size.")


def _gcs_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _resources(amounts: Mapping[str, Any]) -> str:
    parts = [f"{amounts.get('CPU', 0):g} CPUs", f"{amounts.get('memory', 0) / 2**30:.1f} GiB"]
    if amounts.get("GPU"):
        parts.append(f"{amounts['GPU']:g} GPUs")
    return ", ".join(parts)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

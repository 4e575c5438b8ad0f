"""The nodes of the cluster that this process is connected to."""

from __future__ import annotations

import contextlib
import socket

import ray

PROBE = 2.0
"""Seconds that the cluster's head may take to accept a connection."""


def alive() -> list[dict[str, float]]:
    """Resources of the living nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def head_answers() -> bool:
    """Whether something accepts connections where the cluster's head is.

    Ray ends this process where the head is gone for a minute; calls that ask the head wait that long.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE).close()
        return True
    return False


def largest_memory() -> int:
    """Bytes of the node that offers most of them to tasks."""
    return int(max((node.get("memory", 0) for node in alive()), default=0))

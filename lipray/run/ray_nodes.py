"""The nodes of the cluster that this process is connected to."""

from __future__ import annotations

import ray


def alive() -> list[dict[str, float]]:
    """Resources of the living nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def largest_memory() -> int:
    """Bytes of the node that offers most of them to tasks."""
    return int(max((node.get("memory", 0) for node in alive()), default=0))

"""How tasks travel to other processes: in batches, with the arrays that a group shares sent once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipray.model.network import Network, array_keys
from lipray.run.executor import Task

SMALL = 0.1
"""Seconds below which a task is too short to travel alone: a trip costs about a millisecond."""
BATCH_SECONDS = 0.3
BATCH_LENGTH = 64
KNOWN_NETWORKS = 16
"""Networks a worker keeps put together."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A task on its way: its network carries only the arrays that its block's other tasks do not share.

    ``token`` names the whole network where many tasks have the same one: a worker that has met it puts it together
    only once, and what is derived from it stays derived.
    """

    task: Task
    arrays: tuple[str, ...]
    token: str | None = None


def pack(task: Task, shared: Mapping[str, np.ndarray], token: str | None = None) -> Parcel:
    """Leave out the arrays that travel once for the whole group; an array of the same name but other content stays.

    ``token`` is unique to the task's network, nodes and arrays, if given.
    """
    network = task.work.network
    keys = array_keys(network)
    own = {key: network.weights[key] for key in keys if shared.get(key) is not network.weights[key]}
    return Parcel(_with_network(task, Network(network.nodes, own)), tuple(key for key in keys if key not in own), token)


def unpack(parcel: Parcel, shared: Mapping[str, np.ndarray], known: dict[str, Network] | None = None) -> Task:
    """The task with its network whole again; ``known`` networks by token are used, and extended."""
    network = parcel.task.work.network
    if known is not None and parcel.token is not None:
        if parcel.token not in known:
            while len(known) >= KNOWN_NETWORKS:
                del known[next(iter(known))]
            weights = {**network.weights, **{key: shared[key] for key in parcel.arrays}}
            known[parcel.token] = Network(network.nodes, weights)
        return _with_network(parcel.task, known[parcel.token])
    weights = {**network.weights, **{key: shared[key] for key in parcel.arrays}}
    return _with_network(parcel.task, Network(network.nodes, weights))


def _with_network(task: Task, network: Network) -> Task:
    return replace(task, work=replace(task.work, network=network))


def share(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """The arrays of a group: of each name the one that is met first."""
    shared: dict[str, np.ndarray] = {}
    for task in tasks:
        network = task.work.network
        for key in array_keys(network):
            shared.setdefault(key, network.weights[key])
    return shared


def batches(tasks: Sequence[Task], cpus: int) -> list[tuple[Task, ...]]:
    """Tasks as they travel: long ones alone, short ones of a group together, but not so few that CPUs stand idle."""
    short = Counter(task.group for task in tasks if task.seconds < SMALL)
    made: list[list[Task]] = []
    open_batch: dict[str, list[Task]] = {}
    for task in tasks:
        limit = min(BATCH_LENGTH, -(-short[task.group] // (2 * cpus)))
        batch = open_batch.get(task.group)
        if task.seconds >= SMALL:
            made.append([task])
        elif batch is None or len(batch) >= limit or sum(item.seconds for item in batch) >= BATCH_SECONDS:
            open_batch[task.group] = [task]
            made.append(open_batch[task.group])
        else:
            batch.append(task)
    return [tuple(batch) for batch in made]

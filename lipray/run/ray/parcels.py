"""How tasks travel to other processes: in batches, with the arrays that a group shares sent once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipray.model.network import Network, array_keys
from lipray.run.executor import Task

SMALL = 0.5
"""Seconds below which a task is too short to travel alone: a trip costs some ten milliseconds (measured)."""
BATCH_SECONDS = 1.0
BATCH_LENGTH = 64
LIGHT = 2**16
"""Bytes of arrays up to which a group of short tasks travels with others."""
HEAVY = 2**20
"""Bytes of arrays that such groups have between them at most."""
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


def carriers(tasks: Sequence[Task]) -> dict[str, str]:
    """What every group's arrays travel with: themselves, or of light groups one after the other all together.

    A network of many small blocks is many groups, each hardly worth a trip.
    """
    members: dict[str, list[Task]] = {}
    for task in tasks:
        members.setdefault(task.group, []).append(task)
    found: dict[str, str] = {}
    carrier, weight, count = "", 0, 0
    for group, own in members.items():
        size = sum(array.nbytes for array in share(own).values())
        if size > LIGHT or sum(task.seconds for task in own) >= BATCH_SECONDS:
            found[group] = group
            continue
        if not carrier or weight + size > HEAVY or count + len(own) > 2 * BATCH_LENGTH:
            carrier, weight, count = group, 0, 0
        found[group] = carrier
        weight, count = weight + size, count + len(own)
    return found


def batches(tasks: Sequence[Task], cpus: int, carried: Mapping[str, str] | None = None) -> list[tuple[Task, ...]]:
    """Tasks as they travel: long ones alone, short ones together, but not so few that CPUs stand idle.

    Args:
        tasks: all of them.
        cpus: how many tasks run at one time.
        carried: what every group's arrays travel with; by default themselves.
    """
    place = {task.group: task.group for task in tasks} if carried is None else carried
    short = Counter(place[task.group] for task in tasks if task.seconds < SMALL)
    made: list[list[Task]] = []
    open_batch: dict[str, list[Task]] = {}
    for task in tasks:
        carrier = place[task.group]
        limit = min(BATCH_LENGTH, -(-short[carrier] // (2 * cpus)))
        batch = open_batch.get(carrier)
        if task.seconds >= SMALL:
            made.append([task])
        elif batch is None or len(batch) >= limit or sum(item.seconds for item in batch) >= BATCH_SECONDS:
            open_batch[carrier] = [task]
            made.append(open_batch[carrier])
        else:
            batch.append(task)
    return [tuple(batch) for batch in made]

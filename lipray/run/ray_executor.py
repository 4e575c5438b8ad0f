"""The executor that runs tasks on Ray. Import it after ``ray_cluster.connect``, which prepares the import of Ray."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray
import ray.exceptions

from lipray.errors import ClusterError, InfeasibleResourcesError, PlanError
from lipray.model.network import Network
from lipray.run.executor import Done, Failure, Outcome, Task, attempt, late
from lipray.run.parcels import Parcel, batches, pack, share, unpack
from lipray.run.ray_cluster import Cluster

if TYPE_CHECKING:
    from lipray.run.executor import Value

WORKER_MEMORY = 300 * 2**20
"""Bytes a worker takes before it solves anything, reserved with the task's own where there is room."""
ATTEMPTS = 3
"""How often a task is tried whose worker, node or memory was lost; a solver's own error is final."""
PATIENCE = 120.0
"""Seconds without any node that could run what is left, before the cluster is given up."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a parcel: a value, or the kind of fault and why."""

    key: str
    value: Value | None
    seconds: float
    kind: str = ""
    why: str = ""


@ray.remote  # type: ignore[untyped-decorator]  # Ray's own annotations are not followed
def solve_parcels(shared: Mapping[str, np.ndarray], parcels: tuple[Parcel, ...], threads: int) -> list[Reply]:
    """Unpack and solve some tasks in one worker; their errors are replies, so that one does not cost the others."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    return [_reply(unpack(parcel, shared, _known)) for parcel in parcels]


_known: dict[str, Network] = {}
"""Networks this worker has put together; they only save time, so that a task still depends on its arguments alone."""


def _reply(task: Task) -> Reply:
    outcome = attempt(task)
    if isinstance(outcome, Done):
        return Reply(task.key, outcome.value, outcome.seconds)
    return Reply(task.key, None, 0.0, outcome.kind, outcome.why)


class RayExecutor:
    """Tasks on Ray, over a connection made before; ``threads`` are the threads and CPUs of one task."""

    name = "ray"

    def __init__(self, cluster: Cluster, *, threads: int = 1) -> None:
        self._cluster = cluster
        self._threads = threads
        self._kept: dict[str, _Kept] = {}

    @property
    def description(self) -> str:
        """Where the tasks run."""
        nodes = _alive()
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        place = "embedded Ray" if self._cluster.embedded else f"Ray at {self._cluster.address}"
        return f"{place} ({cpus} CPUs{f', {len(nodes)} nodes' if len(nodes) > 1 else ''})"

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that no node can run; Ray itself would let them wait for ever.

        Raises:
            InfeasibleResourcesError: naming the first task that needs more memory than any node has.
            PlanError: a task needs more CPUs than any node has.
        """
        nodes = _alive()
        cpus = int(max((node.get("CPU", 0) for node in nodes), default=0))
        if cpus < self._threads:
            raise PlanError(
                "--threads",
                f"{self._threads} threads per sub-problem were asked for, and the largest node has {cpus} CPUs",
                hint=f"Give --threads {cpus} or fewer." if cpus else "Add worker nodes to the cluster.",
            )
        gpus = max((node.get("GPU", 0) for node in nodes), default=0)
        if gpus < 1 and any(task.device != "cpu" for task in tasks):
            raise PlanError(
                "--device",
                "cuda was asked for, and no node of the cluster offers a GPU",
                hint="Add nodes with GPUs (ray start --num-gpus), or leave the option out.",
            )
        available = _largest_memory()
        for task in tasks:
            if task.memory > available:
                raise InfeasibleResourcesError(task.label, task.memory, available)

    def width(self, device: str) -> int:
        """How many tasks on a device the cluster runs at one time."""
        resources = ray.cluster_resources()
        cpus = int(resources.get("CPU", 1)) // self._threads
        return max(1, cpus if device == "cpu" else min(cpus, int(resources.get("GPU", 0))))

    def run(self, tasks: Sequence[Task], *, keep: bool = False, deadline: float | None = None) -> Iterator[Outcome]:
        """One outcome per task, as they complete, with a bounded number of them submitted at any time.

        With ``keep`` the groups' arrays stay in the object store until ``release``. What is under way at the
        ``deadline`` is cancelled, and fails.

        Raises:
            ClusterError: the connection is lost, or for minutes no node is left that could run the rest.
        """
        flight = _Flight(tasks, self._threads, self._kept if keep else None)
        try:
            yield from flight.fly(deadline)
        except (ray.exceptions.RaySystemError, ConnectionError) as fault:
            raise ClusterError(self._cluster.address, f"the connection was lost ({_first_line(fault)})") from None
        finally:
            flight.cancel()

    def release(self) -> None:
        """Let the object store free what was kept."""
        self._kept.clear()

    def close(self) -> None:
        """Shut the embedded Ray down, or leave the cluster as it was found."""
        self._kept.clear()
        self._cluster.close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """The arrays of a group in the object store, for as long as its tasks' network stays the same object."""

    network: Network
    shared: dict[str, np.ndarray]
    ref: ray.ObjectRef
    token: str


@dataclass(slots=True)
class _Trip:
    """A batch under way or waiting: its tasks, the memory to reserve, and how often it was tried before."""

    tasks: tuple[Task, ...]
    memory: int
    tries: int = 0


class _Flight:
    """The tasks of one run: waiting, under way, and what to do with those whose worker was lost."""

    def __init__(self, tasks: Sequence[Task], threads: int, kept: dict[str, _Kept] | None = None) -> None:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._threads = threads
        self._waiting = deque(
            _Trip(batch, max(task.memory for task in batch)) for batch in batches(tasks, max(1, cpus // threads))
        )
        self._pending: dict[ray.ObjectRef, _Trip] = {}
        groups: dict[str, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.group, []).append(task)
        self._refs: dict[str, ray.ObjectRef] = {}
        self._tokens: dict[str, str] = {}
        self._shared: dict[str, dict[str, np.ndarray]] = {}
        self._left = Counter(task.group for task in tasks)
        for group, members in groups.items():
            network = members[0].work.network
            if kept is None or any(task.work.network is not network for task in members):
                self._shared[group] = share(members)
                continue
            if group not in kept or kept[group].network is not network:
                shared = share(members[:1])
                kept[group] = _Kept(network, shared, ray.put(shared), uuid.uuid4().hex)
            held = kept[group]
            self._shared[group], self._refs[group], self._tokens[group] = held.shared, held.ref, held.token

    def fly(self, deadline: float | None = None) -> Iterator[Outcome]:
        """Submit, wait, and yield outcomes until nothing is left, or there is no time left."""
        stalled = time.monotonic()
        while self._waiting or self._pending:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0.0:
                yield from self._give_up()
                return
            self._fill()
            refs = list(self._pending)
            ready, _ = ray.wait(refs, num_returns=1, timeout=min(10.0, left))
            if ready:
                ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
                stalled = time.monotonic()
            elif self._can_run():
                stalled = time.monotonic()
            elif time.monotonic() - stalled > PATIENCE:
                raise ClusterError("ray", f"no node is left that could run {self._waiting_label()}")
            for ref in ready:
                for outcome in self._land(ref, self._pending.pop(ref)):
                    self._forget(outcome.task)
                    yield outcome

    def _give_up(self) -> list[Outcome]:
        """Cancel everything; all of it is late."""
        tasks = [task for trip in (*self._pending.values(), *self._waiting) for task in trip.tasks]
        self.cancel()
        return [late(task) for task in tasks]

    def cancel(self) -> None:
        """Stop what is still under way; without force a task inside a numerical library would not notice."""
        for ref in self._pending:
            with contextlib.suppress(Exception):
                ray.cancel(ref, force=True)
        self._pending.clear()
        self._waiting.clear()
        self._refs.clear()

    def _fill(self) -> None:
        # Ray's resources limit what runs at one time; the window only keeps the queue short.
        cpus = int(ray.cluster_resources().get("CPU", 1))
        window = max(4, 3 * cpus)
        while self._waiting and len(self._pending) < window:
            trip = self._waiting.popleft()
            self._pending[self._submit(trip)] = trip

    def _submit(self, trip: _Trip) -> ray.ObjectRef:
        group = trip.tasks[0].group
        if group not in self._refs:
            self._refs[group] = ray.put(self._shared[group])
        label = trip.tasks[0].label
        others = len(trip.tasks) - 1
        remote = solve_parcels.options(
            name=f"{label} and {others} more" if others else label,
            num_cpus=self._threads,
            num_gpus=int(any(task.device != "cpu" for task in trip.tasks)),
            memory=max(trip.memory, min(trip.memory + WORKER_MEMORY, _largest_memory())),
            max_retries=0,  # retries are the driver's: it can reserve more memory, and it counts them
        )
        parcels = tuple(pack(task, self._shared[group], self._tokens.get(group)) for task in trip.tasks)
        return remote.remote(self._refs[group], parcels, self._threads)

    def _land(self, ref: ray.ObjectRef, trip: _Trip) -> list[Outcome]:
        try:
            replies: list[Reply] = ray.get(ref)
        except ray.exceptions.OutOfMemoryError as fault:
            return self._again(trip, "OutOfMemory", _first_line(fault), memory=2 * trip.memory)
        except ray.exceptions.RayTaskError as fault:
            cause = fault.cause if isinstance(fault.cause, Exception) else fault
            return [Failure(task, type(cause).__name__, _first_line(cause), trip.tries + 1) for task in trip.tasks]
        except ray.exceptions.RayError as fault:  # a worker, a node or an object was lost
            return self._again(trip, type(fault).__name__, _first_line(fault), memory=trip.memory)
        outcomes: list[Outcome] = []
        for task, reply in zip(trip.tasks, replies, strict=True):
            if reply.value is None:
                outcomes.append(Failure(task, reply.kind, reply.why, trip.tries + 1))
            else:
                outcomes.append(Done(task, reply.value, reply.seconds))
        return outcomes

    def _again(self, trip: _Trip, kind: str, why: str, *, memory: int) -> list[Outcome]:
        """Submit a lost batch again, its tasks one by one so that the culprit is found, or give its task up."""
        if len(trip.tasks) > 1:
            self._waiting.extend(_Trip((task,), task.memory, trip.tries + 1) for task in trip.tasks)
            return []
        if trip.tries + 1 >= ATTEMPTS:
            return [Failure(trip.tasks[0], kind, why, trip.tries + 1)]
        self._waiting.append(_Trip(trip.tasks, min(memory, max(_largest_memory(), trip.memory)), trip.tries + 1))
        return []

    def _forget(self, task: Task) -> None:
        """Free a group's arrays in the object store when its last task has ended."""
        self._left[task.group] -= 1
        if not self._left[task.group]:
            self._refs.pop(task.group, None)
            self._shared.pop(task.group, None)

    def _can_run(self) -> bool:
        """Whether some living node could run the smallest thing under way."""
        least = min(trip.memory for trip in self._pending.values())
        gpus = int(all(any(task.device != "cpu" for task in trip.tasks) for trip in self._pending.values()))
        return any(
            node.get("CPU", 0) >= self._threads and node.get("memory", 0) >= least and node.get("GPU", 0) >= gpus
            for node in _alive()
        )

    def _waiting_label(self) -> str:
        return next(iter(self._pending.values())).tasks[0].label


def _alive() -> list[dict[str, float]]:
    """Resources of the living nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _largest_memory() -> int:
    return int(max((node.get("memory", 0) for node in _alive()), default=0))


def _first_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(fault).__name__

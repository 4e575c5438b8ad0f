"""The tasks of one run on Ray: waiting, under way, and what becomes of those that are lost, stuck or slow.

Retries are the driver's own: it can reserve more memory, leave a stuck worker, and counts them. What is under way is
bounded by a window that follows the cluster, which is also what announces demand to an autoscaler.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import ray.exceptions

from lipray.errors import ClusterError
from lipray.model.network import Network
from lipray.partition.subproblem import Subproblem
from lipray.run.events import Listener, TaskRetried
from lipray.run.executor import Done, Failure, Outcome, Task, late, owned
from lipray.run.ray.nodes import alive, head_answers, largest_memory
from lipray.run.ray.parcels import batches, carriers, pack, share
from lipray.run.ray.worker import Reply, Started, solve_parcels
from lipray.run.stop import whole

WORKER_MEMORY = 300 * 2**20
"""Bytes a worker takes before it solves anything, reserved with the task's own where there is room."""
ATTEMPTS = 3
"""How often a task is tried whose worker, node or memory was lost; a solver's own error is final."""
PATIENCE = 120.0
"""Seconds without any node that could run what is left, before the cluster is given up."""
POLL = 0.25
"""Seconds that a run waits at a time; a signal is heeded in between."""
TICK = 1.0
"""Seconds between two looks at what is slow."""
GONE = 20.0
"""Seconds without an answer of the cluster's head after which the cluster is lost."""
STUCK = 600.0
"""Seconds that any batch may take; beyond them it is stuck if it also takes many times what it should."""
STUCK_TIMES = 20.0
"""How many times its expected seconds, or its time limit twice and ``STUCK`` on top, a batch may take."""
SLOW, SLOW_TIMES = 30.0, 3.0
"""A batch is copied to an idle CPU after so many seconds and times what such batches took."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The arrays of a group in the object store, for as long as its tasks' network stays the same object."""

    network: Network
    shared: dict[str, np.ndarray]
    ref: ray.ObjectRef
    token: str


@dataclass(slots=True)
class Trip:
    """A batch under way or waiting: its tasks, the memory to reserve, and how often it was tried before.

    ``since`` is when a worker took it up, or should have; ``copied``: another trip does the same tasks.
    """

    tasks: tuple[Task, ...]
    memory: int
    tries: int = 0
    since: float | None = None
    where: str = ""
    copied: bool = False

    @property
    def seconds(self) -> float:
        """What it is expected to take."""
        return sum(task.seconds for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Means:
    """How a flight is flown: threads of a task, arrays to keep for later flights, and whether nodes may still come.

    ``stuck_after``: seconds after which any batch is stuck, instead of the rule.
    """

    threads: int
    kept: dict[str, Kept] | None = None
    elastic: bool = False
    stuck_after: float | None = None
    notify: Listener | None = field(default=None, repr=False)


class Flight:
    """The tasks of one run."""

    def __init__(self, tasks: Sequence[Task], means: Means) -> None:
        self._cpus, self._largest = _cpus(), largest_memory()
        self._means, kept = means, means.kept
        at_once = max(1, self._cpus // means.threads)
        # Arrays that are kept for further flights stay with their own group.
        self._carriers = carriers(tasks) if kept is None else {task.group: task.group for task in tasks}
        made = batches(tasks, at_once, self._carriers)
        self._waiting = deque(Trip(batch, max(task.memory for task in batch)) for batch in made)
        self._pending: dict[Any, Trip] = {}
        self._done: set[str] = set()
        self._paces: list[float] = []
        self._count = len(tasks)
        self._stalled = self._looked = self._answered = time.monotonic()
        groups: dict[str, list[Task]] = {}
        for task in tasks:
            groups.setdefault(self._carriers[task.group], []).append(task)
        self._refs: dict[str, ray.ObjectRef] = {}
        self._tokens: dict[str, str] = {}
        self._shared: dict[str, dict[str, np.ndarray]] = {}
        self._left = Counter(self._carriers[task.group] for task in tasks)
        for group, members in groups.items():
            network = members[0].work.network
            if kept is None or any(task.work.network is not network for task in members):
                self._shared[group] = share(members)
                continue
            if group not in kept or kept[group].network is not network:
                shared = share(members[:1])
                kept[group] = Kept(network, shared, ray.put(shared), uuid.uuid4().hex)
            held = kept[group]
            self._shared[group], self._refs[group], self._tokens[group] = held.shared, held.ref, held.token

    def fly(self, deadline: float | None = None) -> Iterator[Outcome]:
        """Submit, wait, and yield outcomes until nothing is left, or there is no time left for what is."""
        self._stalled = self._looked = self._answered = time.monotonic()
        while len(self._done) < self._count:
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0.0:
                deadline = None
                with whole():
                    spared = list(self._settle(self._spare()))
                yield from spared
                continue
            with whole():
                outcomes = self._turn(min(POLL, left))
            yield from outcomes

    def _turn(self, patience: float) -> list[Outcome]:
        """Submit what there is room for, and take what has come."""
        self._fill()
        outcomes: list[Outcome] = []
        flying = list(self._pending)
        ready, _ = ray.wait(flying, num_returns=1, timeout=patience)
        if ready:
            ready, _ = ray.wait(flying, num_returns=len(flying), timeout=0)
            self._stalled = time.monotonic()
        for ref in ready:
            outcomes.extend(self._settle(self._hear(ref)))
        now = time.monotonic()
        if now - self._looked >= TICK:
            self._looked = now
            if not head_answers():
                if now - self._answered > GONE:
                    raise ClusterError("ray", f"its head has not answered for {now - self._answered:.0f} s")
                return outcomes
            self._answered = now
            outcomes.extend(self._settle(self._look(now)))
            if self._can_run():
                self._stalled = now
            elif now - self._stalled > PATIENCE and not self._means.elastic:
                raise ClusterError("ray", f"no node is left that could run {self._waiting_label()}")
        return outcomes

    def cancel(self) -> None:
        """Stop what is still under way; without force a task inside a numerical library would not notice."""
        for ref in self._pending:
            _cancel(ref)
        self._pending.clear()
        self._waiting.clear()
        self._refs.clear()

    def _settle(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Each task's first outcome; that of a copy comes too late."""
        for outcome in outcomes:
            task = outcome.task
            if task.key in self._done:
                continue
            self._done.add(task.key)
            carrier = self._carriers[task.group]
            self._left[carrier] -= 1
            if not self._left[carrier]:
                # Its arrays are not needed in the object store any more.
                self._refs.pop(carrier, None)
                self._shared.pop(carrier, None)
            yield outcome

    def _spare(self) -> list[Outcome]:
        """Cancel everything that is not needed; it is late. What is needed and flew with such sets out anew."""
        tasks = {task.key: task for trip in (*self._pending.values(), *self._waiting) for task in trip.tasks}
        trips = list(self._waiting)
        for ref, trip in list(self._pending.items()):
            if all(task.needed for task in trip.tasks):
                continue
            del self._pending[ref]
            _cancel(ref)
            trips.append(trip)
        flying = {task.key for trip in self._pending.values() for task in trip.tasks} | self._done
        self._waiting.clear()
        for trip in trips:
            left = tuple(task for task in trip.tasks if task.needed and task.key not in flying)
            flying.update(task.key for task in left)
            if left:
                self._waiting.append(Trip(left, max(task.memory for task in left), trip.tries))
        return [late(task) for key, task in tasks.items() if key not in self._done and not task.needed]

    def _fill(self) -> None:
        # Ray's resources limit what runs at one time; the window only keeps the queue short.
        window = max(4, 3 * self._cpus)
        while self._waiting and len(self._pending) < window:
            trip = self._waiting.popleft()
            self._pending[self._submit(trip)] = trip

    def _submit(self, trip: Trip) -> Any:
        group = self._carriers[trip.tasks[0].group]
        if group not in self._refs:
            self._refs[group] = ray.put(self._shared[group])
        label = trip.tasks[0].label
        others = len(trip.tasks) - 1
        remote = solve_parcels.options(
            name=f"{label} and {others} more" if others else label,
            num_returns="streaming",
            num_cpus=self._means.threads,
            num_gpus=int(any(task.device != "cpu" for task in trip.tasks)),
            memory=max(trip.memory, min(trip.memory + WORKER_MEMORY, self._largest)),
            max_retries=0,  # retries are the driver's
        )
        parcels = tuple(pack(task, self._shared[group], self._tokens.get(group)) for task in trip.tasks)
        return remote.remote(self._refs[group], parcels, self._means.threads)

    def _hear(self, ref: Any) -> list[Outcome]:
        """Take the next message of a trip; that of a copy just cancelled is nobody's."""
        trip = self._pending.get(ref)
        if trip is None:
            return []
        try:
            message: Started | list[Reply] = ray.get(next(ref))
        except StopIteration:
            return self._lost(ref, "Incomplete", "not all of a batch came back", memory=trip.memory)
        except ray.exceptions.TaskCancelledError:
            self._pending.pop(ref, None)
            return []
        except ray.exceptions.OutOfMemoryError as fault:
            return self._lost(ref, "OutOfMemory", first_line(fault), memory=2 * trip.memory)
        except ray.exceptions.RayTaskError as fault:
            del self._pending[ref]
            cause = fault.cause if isinstance(fault.cause, Exception) else fault
            kind, why = type(cause).__name__, first_line(cause)
            return [Failure(task, kind, why, trip.tries + 1) for task in trip.tasks]
        except (ray.exceptions.RaySystemError, ConnectionError):
            raise
        except ray.exceptions.RayError as fault:  # a worker, a node or an object was lost
            return self._lost(ref, type(fault).__name__, first_line(fault), memory=trip.memory)
        if isinstance(message, Started):
            trip.since, trip.where = time.monotonic(), message.where
            return []
        return self._landed(ref, trip, message)

    def _landed(self, ref: Any, trip: Trip, replies: list[Reply]) -> list[Outcome]:
        tasks = {task.key: task for task in trip.tasks}
        outcomes: list[Outcome] = []
        for reply in replies:
            task = tasks.pop(reply.key)
            if reply.value is None:
                outcomes.append(Failure(task, reply.kind, reply.why, trip.tries + 1))
            else:
                outcomes.append(Done(task, owned(reply.value), reply.seconds, reply.began, trip.where))
                self._paces.append(reply.seconds / max(task.seconds, 1e-3))
        trip.tasks, trip.since = tuple(tasks.values()), time.monotonic()
        if not trip.tasks:
            # The end of its stream says nothing new.
            self._pending.pop(ref, None)
            if trip.copied:
                self._drop_copies(replies)
        return outcomes

    def _drop_copies(self, replies: list[Reply]) -> None:
        keys = {reply.key for reply in replies} | self._done
        for ref in [ref for ref, trip in self._pending.items() if all(task.key in keys for task in trip.tasks)]:
            del self._pending[ref]
            _cancel(ref)

    def _lost(self, ref: Any, kind: str, why: str, *, memory: int) -> list[Outcome]:
        trip = self._pending.pop(ref)
        elsewhere = {task.key for other in self._pending.values() for task in other.tasks}
        tasks = tuple(task for task in trip.tasks if task.key not in self._done and task.key not in elsewhere)
        return self._again(replace(trip, tasks=tasks, memory=memory), kind, why) if tasks else []

    def _again(self, trip: Trip, kind: str, why: str) -> list[Outcome]:
        """Submit a lost batch again, its tasks one by one so that the culprit is found, or give its task up."""
        tries = trip.tries + 1
        if len(trip.tasks) == 1 and tries >= ATTEMPTS:
            return [Failure(trip.tasks[0], kind, why, tries)]
        alone = len(trip.tasks) == 1
        for task in trip.tasks:
            memory = min(trip.memory, max(self._largest, task.memory)) if alone else task.memory
            self._waiting.append(Trip((task,), memory, tries))
            if self._means.notify is not None:
                self._means.notify(TaskRetried(task.label, kind, why, tries + 1))
        return []

    def _look(self, now: float) -> list[Outcome]:
        """Leave what is stuck; copy what is slow where there is room."""
        self._cpus, self._largest = _cpus(), largest_memory()
        outcomes: list[Outcome] = []
        room = self._room()
        for ref, trip in list(self._pending.items()):
            if trip.since is None:
                if room > 0:
                    trip.since, room = now, room - 1  # a worker should have taken it up by now
                continue
            took = now - trip.since
            if took > self._allowed(trip):
                _cancel(ref)
                why = f"nothing came back for {took:.0f} s, where about {trip.seconds:.0f} s were expected"
                outcomes.extend(self._lost(ref, "Stuck", why, memory=trip.memory))
        if not self._waiting and room > 0:
            self._copy(now, room)
        return outcomes

    def _copy(self, now: float, room: int) -> None:
        if len(self._done) < self._count / 2 or not self._paces:
            return
        pace = statistics.median(self._paces)
        slow = [
            (now - trip.since, trip)
            for trip in self._pending.values()
            if trip.since is not None and trip.where and not trip.copied
        ]
        for took, trip in sorted(slow, key=lambda pair: -pair[0])[:room]:
            if took > max(SLOW, SLOW_TIMES * pace * trip.seconds):
                copy = Trip(trip.tasks, trip.memory, trip.tries, copied=True)
                trip.copied = True
                self._pending[self._submit(copy)] = copy

    def _allowed(self, trip: Trip) -> float:
        """Seconds without a message after which a trip is stuck; a worker that starts is not solving yet."""
        if not trip.where:
            return STUCK
        if self._means.stuck_after is not None:
            return self._means.stuck_after
        limits = [
            task.work.settings.time_limit
            for task in trip.tasks
            if isinstance(task.work, Subproblem) and task.work.settings.time_limit is not None
        ]
        longest = 2.0 * max(limits) + STUCK if len(limits) == len(trip.tasks) else math.inf
        return max(STUCK, min(STUCK_TIMES * trip.seconds, longest))

    def _room(self) -> int:
        """How many more trips could be at work."""
        return self._cpus // self._means.threads - sum(trip.since is not None for trip in self._pending.values())

    def _can_run(self) -> bool:
        """Whether some living node could run the smallest thing under way."""
        if not self._pending:
            return True
        least = min(trip.memory for trip in self._pending.values())
        gpus = int(all(any(task.device != "cpu" for task in trip.tasks) for trip in self._pending.values()))
        return any(
            node.get("CPU", 0) >= self._means.threads and node.get("memory", 0) >= least and node.get("GPU", 0) >= gpus
            for node in alive()
        )

    def _waiting_label(self) -> str:
        return next(iter(self._pending.values())).tasks[0].label


def _cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def first_line(fault: BaseException) -> str:
    """The reason of a fault in one line."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(fault).__name__


def _cancel(ref: Any) -> None:
    with contextlib.suppress(Exception):
        ray.cancel(ref, force=True)

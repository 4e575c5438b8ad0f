"""Estimates driven together: what they share is done once, and every one of them makes progress.

A task that several estimates ask for becomes one, and its outcome is given to all of them, each with its own task in
it. Of one estimate nothing is changed.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lipray.certify.certificate import Certificate
from lipray.config import EstimateConfig
from lipray.model.network import Network
from lipray.partition.plan import Plan, RoundWork
from lipray.partition.subproblem import Subproblem
from lipray.partition.worklist import FALLBACK_METHOD, Worklist
from lipray.run.bracket import Bracket
from lipray.run.budget import SPENT
from lipray.run.events import Listener, RoundDone, TaskDone, UpperBoundImproved, ignore
from lipray.run.executor import Failure, Outcome, Task
from lipray.run.lower_bound import Ascent
from lipray.run.tasks import Schedule


@dataclass(frozen=True, slots=True)
class Point:
    """One estimate among several: the network with its outputs selected, what to do, and who listens.

    ``name`` goes before its tasks' labels; without one they are as they are.
    """

    network: Network
    config: EstimateConfig
    notify: Listener = ignore
    name: str = ""


@dataclass(slots=True)
class Pursuit:
    """One estimate under way: its plan, its tasks, and what is known so far.

    ``open`` are the keys of tasks that have not come back, ``stored`` those whose answer a store had.
    """

    point: Point
    plan: Plan
    work: Worklist
    planned: Schedule
    state: Bracket
    open: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)

    @property
    def done(self) -> bool:
        """Whether all its tasks have come back and none of its sub-problems has to be tried another way."""
        lost = (item for item in self.state.failures if isinstance(item.task.work, Subproblem))
        return not self.open and all(item.kind in SPENT for item in lost)


class Together:
    """Estimates, the tasks they have between them, and to whom each outcome goes.

    Args:
        pursuits: the estimates.
        listen: told of every task of all of them, once; the bracket it is told is the best of any point, where they
            all bound the same network.
    """

    def __init__(self, pursuits: Sequence[Pursuit], listen: Listener | None = None) -> None:
        self.pursuits = tuple(pursuits)
        self._listen = listen
        self._owners: dict[str, list[tuple[Pursuit, Task]]] = {}
        self._alike = len({id(pursuit.point.network) for pursuit in pursuits}) == 1
        names, several = _Names(), len(pursuits) > 1 or any(pursuit.point.name for pursuit in pursuits)
        layouts: dict[str, tuple[Task, RoundWork]] = {}
        queues: list[list[Task]] = []
        for pursuit in pursuits:
            pursuit.open.update(task.key for task in pursuit.planned.everything)
            layout = {task.key: work for task, work in pursuit.planned.coordinated}
            queue = []
            for own in pursuit.planned.everything:
                task = names.common(own, pursuit.point) if several else own
                if task.key not in self._owners:
                    self._owners[task.key] = []
                self._owners[task.key].append((pursuit, own))
                if own.key in layout:
                    layouts.setdefault(task.key, (task, layout[own.key]))
                else:
                    queue.append(task)
            queues.append(queue)
        tasks = queues[0] if len(queues) == 1 else list(interleave(queues))
        self.planned = Schedule(tuple(tasks), tuple(layouts.values()))
        self._expected = sum(task.seconds for task in self.planned.everything)
        self._spent, self._done = 0.0, 0

    @property
    def work(self) -> Worklist:
        """The sub-problems of all plans by key; of one estimate its own list."""
        if len(self.pursuits) == 1:
            return self.pursuits[0].work
        by_key: dict[str, Subproblem] = {}
        for pursuit in reversed(self.pursuits):
            by_key.update(pursuit.work.by_key)
        return Worklist(by_key, {}, ())

    def add(self, outcome: Outcome, *, stored: bool = False) -> list[Pursuit]:
        """Give an outcome to all who asked for it; those that are done by it."""
        finished = []
        for pursuit, own in self._owners[outcome.task.key]:
            pursuit.state.add(replace(outcome, task=own), stored=stored)
            pursuit.open.discard(own.key)
            if stored:
                pursuit.stored.add(own.key)
            if pursuit.done:
                finished.append(pursuit)
        self._done += 1
        self._spent += outcome.task.seconds
        self._tell(outcome, stored=stored)
        return finished

    def improve(self, task: Task, certificate: Certificate, way: str) -> None:
        """Give all who asked for it a better certificate of a problem that is still worked on."""
        for pursuit, own in self._owners[task.key]:
            pursuit.state.improve(own, certificate, way)
        if self._listen is not None:
            self._listen(UpperBoundImproved(task.label, way, *self._bracket()))

    def beat(self, task: Task, rounds: int, seconds: float, limit: float | None) -> None:
        """Tell the listeners that a coordinated problem goes on."""
        for pursuit, own in self._owners[task.key]:
            pursuit.state.beat(own, rounds, seconds, limit)
        if self._listen is not None:
            part = min(1.0, seconds / (limit or max(task.seconds, seconds, 1.0)))
            share = min(1.0, (self._spent + part * task.seconds) / self._expected)
            self._listen(RoundDone(task.label, rounds, seconds, limit, share, *self._bracket()))

    def lose(self, task: Task, lost: Sequence[Failure]) -> None:
        """Bundles of a coordinated problem were lost on the way."""
        for pursuit, _ in self._owners[task.key]:
            pursuit.state.failures.extend(lost)

    def _bracket(self) -> tuple[float | None, float]:
        if not self._alike:
            return None, 0.0
        uppers = [upper for pursuit in self.pursuits if (upper := pursuit.state.upper) is not None]
        return min(uppers, default=None), max(pursuit.state.lower for pursuit in self.pursuits)

    def _tell(self, outcome: Outcome, *, stored: bool) -> None:
        if self._listen is None:
            return
        tasks = len(self._owners)
        upper, lower = self._bracket()
        failed = isinstance(outcome, Failure)
        self._listen(
            TaskDone(
                label=outcome.task.label,
                seconds=0.0 if isinstance(outcome, Failure) else outcome.seconds,
                done=self._done,
                tasks=tasks,
                share=1.0 if self._done == tasks else self._spent / self._expected,
                upper=upper,
                lower=lower,
                failure=f"{outcome.kind}: {outcome.why}" if isinstance(outcome, Failure) else None,
                stored=stored,
                began=0.0 if failed else getattr(outcome, "began", 0.0),
                where="" if failed else getattr(outcome, "where", ""),
            )
        )


def interleave(queues: Sequence[Sequence[Task]]) -> Iterator[Task]:
    """Every task once: product bounds first, then always the next of the queue that has been given least so far.

    A task that stands in several queues counts for all of them, and comes as soon as it is first in one.
    """
    given: set[str] = set()
    rest: list[list[Task]] = []
    for queue in queues:
        for task in queue:
            if _is_product(task) and task.key not in given:
                given.add(task.key)
                yield task
        rest.append([task for task in queue if not _is_product(task)])
    holders: dict[str, list[int]] = {}
    for index, queue in enumerate(rest):
        for task in queue:
            holders.setdefault(task.key, []).append(index)
    credit, place = [0.0] * len(rest), [0] * len(rest)
    heap = [(0.0, index) for index in range(len(rest))]
    while heap:
        known, index = heapq.heappop(heap)
        while place[index] < len(rest[index]) and rest[index][place[index]].key in given:
            place[index] += 1
        if place[index] == len(rest[index]):
            continue
        if known < credit[index]:
            heapq.heappush(heap, (credit[index], index))
            continue
        task = rest[index][place[index]]
        given.add(task.key)
        for holder in holders[task.key]:
            credit[holder] += task.seconds
        heapq.heappush(heap, (credit[index], index))
        yield task


class _Names:
    """Keys, labels and groups that are unique among all points, and the same for what is the same."""

    def __init__(self) -> None:
        self._networks: dict[int, str] = {}

    def common(self, task: Task, point: Point) -> Task:
        network = self._network(point.network)
        key = task.key
        if isinstance(task.work, Ascent):
            work = task.work
            key = f"{network} {work.first} {work.starts} {work.steps} {work.seed} {_digest(work.points)}"
        # A group's arrays travel together: those of the same layers of the same network.
        return replace(task, key=key, label=f"{point.name} {task.label}".strip(), group=f"{network[:12]} {task.group}")

    def _network(self, network: Network) -> str:
        if id(network) not in self._networks:
            self._networks[id(network)] = network.content_hash()
        return self._networks[id(network)]


def _digest(points: np.ndarray | None) -> str:
    return "" if points is None else hashlib.sha256(np.ascontiguousarray(points).tobytes()).hexdigest()


def _is_product(task: Task) -> bool:
    return isinstance(task.work, Subproblem) and task.work.method == FALLBACK_METHOD

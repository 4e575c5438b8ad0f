"""The executor that runs tasks on Ray. Import it after ``cluster.connect``, which prepares the import of Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
import ray.exceptions

from lipray.errors import ClusterError, InfeasibleResourcesError, PlanError
from lipray.run.events import Listener
from lipray.run.executor import Outcome, Task
from lipray.run.ray.cluster import Cluster
from lipray.run.ray.flight import Flight, Kept, Means, first_line
from lipray.run.ray.nodes import alive, largest_memory
from lipray.run.stop import whole


class RayExecutor:
    """Tasks on Ray, over a connection made before.

    Args:
        cluster: the connection.
        threads: threads and CPUs of one task.
        elastic: nodes may still come, so that nothing is refused for want of one.
        stuck_after: seconds without a word after which a task is taken for stuck, instead of a rule.
    """

    name = "ray"

    def __init__(
        self, cluster: Cluster, *, threads: int = 1, elastic: bool = False, stuck_after: float | None = None
    ) -> None:
        self._cluster = cluster
        self._threads, self._elastic, self._stuck_after = threads, elastic, stuck_after
        self._kept: dict[str, Kept] = {}
        self._notify: Listener | None = None

    def listen(self, notify: Listener) -> None:
        """Tell a listener of what is tried again."""
        self._notify = notify

    @property
    def description(self) -> str:
        """Where the tasks run."""
        nodes = alive()
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        place = "embedded Ray" if self._cluster.embedded else f"Ray at {self._cluster.address}"
        return f"{place} ({cpus} CPUs{f', {len(nodes)} nodes' if len(nodes) > 1 else ''})"

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that no node can run; Ray itself would let them wait for ever. An elastic cluster may grow.

        Raises:
            InfeasibleResourcesError: naming the first task that needs more memory than any node has.
            PlanError: a task needs more CPUs than any node has.
        """
        if self._elastic:
            return
        nodes = alive()
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
        available = largest_memory()
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
        ``deadline`` is cancelled, and fails, unless it is needed.

        Raises:
            ClusterError: the connection is lost, or for minutes no node is left that could run the rest.
        """
        kept = self._kept if keep else None
        flight = Flight(tasks, Means(self._threads, kept, self._elastic, self._stuck_after, self._notify))
        try:
            yield from flight.fly(deadline)
        except (ray.exceptions.RaySystemError, ConnectionError) as fault:
            raise ClusterError(self._cluster.address, f"the connection was lost ({first_line(fault)})") from None
        finally:
            with whole():
                flight.cancel()

    def release(self) -> None:
        """Let the object store free what was kept."""
        self._kept.clear()

    def close(self) -> None:
        """Shut the embedded Ray down, or leave the cluster as it was found."""
        self._kept.clear()
        with whole():
            self._cluster.close()

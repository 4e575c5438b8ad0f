"""The executor that runs tasks one after the other in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lipray.errors import InfeasibleResourcesError
from lipray.run.events import Listener
from lipray.run.executor import Outcome, Task, attempt, late


class SerialExecutor:
    """Tasks in the given order, in this process. ``threads`` limits torch's threads, ``None`` leaves them.

    The BLAS behind numpy reads its thread count when it is loaded: set OMP_NUM_THREADS before starting.
    """

    name = "serial"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    @property
    def description(self) -> str:
        """Where the tasks run."""
        return "this process"

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that need more memory than this machine has.

        Raises:
            InfeasibleResourcesError: naming the first such task and both figures.
        """
        available = machine_memory()
        for task in tasks:
            if task.memory > available:
                raise InfeasibleResourcesError(task.label, task.memory, available)

    def width(self, device: str) -> int:
        """One: this process."""
        del device
        return 1

    def run(self, tasks: Sequence[Task], *, keep: bool = False, deadline: float | None = None) -> Iterator[Outcome]:
        """One outcome per task, in order; those not begun at the ``deadline`` fail, unless they are needed."""
        del keep  # nothing travels
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        for task in tasks:
            on_time = deadline is None or time.monotonic() < deadline
            yield attempt(task) if on_time or task.needed else late(task)

    def listen(self, notify: Listener) -> None:
        """Nothing is tried twice here."""

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


def machine_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit if smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total

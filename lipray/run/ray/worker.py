"""What runs in a worker of Ray: parcels are unpacked and solved, and the replies leave as they come."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray

from lipray.model.network import Network
from lipray.run.executor import Done, Task, attempt
from lipray.run.ray.parcels import Parcel, unpack

if TYPE_CHECKING:
    from lipray.run.executor import Value

TOGETHER = 0.2
"""Seconds for which replies wait for each other: every message costs a fraction of a millisecond."""


@dataclass(frozen=True, slots=True)
class Started:
    """A batch has reached a worker; ``where`` names its node and process."""

    where: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a parcel: a value, or the kind of fault and why; and when the work began (since 1970)."""

    key: str
    value: Value | None
    seconds: float
    began: float
    kind: str = ""
    why: str = ""


@ray.remote  # type: ignore[untyped-decorator]  # Ray's own annotations are not followed
def solve_parcels(
    shared: Mapping[str, np.ndarray], parcels: tuple[Parcel, ...], threads: int
) -> Iterator[Started | list[Reply]]:
    """Unpack and solve some tasks in one worker; their errors are replies, so that one does not cost the others.

    A generator: what is solved has left the worker before the next task can take it down.
    """
    yield Started(f"{ray.util.get_node_ip_address()}:{os.getpid()}")
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    replies: list[Reply] = []
    waiting = time.monotonic()
    for parcel in parcels:
        replies.append(_reply(unpack(parcel, shared, _known)))
        if time.monotonic() - waiting >= TOGETHER:
            yield replies
            replies, waiting = [], time.monotonic()
    if replies:
        yield replies


_known: dict[str, Network] = {}
"""Networks this worker has put together; they only save time, so that a task still depends on its arguments alone."""


def _reply(task: Task) -> Reply:
    began = time.time()
    outcome = attempt(task)
    if isinstance(outcome, Done):
        return Reply(task.key, outcome.value, outcome.seconds, outcome.began)
    return Reply(task.key, None, 0.0, began, outcome.kind, outcome.why)

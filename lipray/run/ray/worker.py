"""What runs in a worker of Ray: parcels are unpacked and solved, and the replies leave as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray

from lipray.model.network import Network
from lipray.partition.worklist import FALLBACK_METHOD
from lipray.run.executor import Done, attempt, explain
from lipray.run.ray.parcels import Parcel, unpack

if TYPE_CHECKING:
    from lipray.run.executor import Value

TOGETHER = 0.2
"""Seconds for which replies wait for each other: every message costs a fraction of a millisecond."""


@dataclass(frozen=True, slots=True)
class Started:
    """A batch has reached a worker that is ready to solve; ``where`` names its node and process."""

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
    # A new worker takes seconds to import these, and nobody is to think that a task takes them.
    import torch

    import lipray.certify.ellipsoid  # noqa: F401

    torch.set_num_threads(threads)
    yield Started(f"{ray.util.get_node_ip_address()}:{os.getpid()}")
    replies: list[Reply] = []
    waiting = time.monotonic()
    for parcel, following in zip(parcels, (*parcels[1:], None), strict=True):
        replies.append(_reply(parcel, shared))
        # Product bounds make a run's bound valid: what comes after them must not hold them up.
        last_product = _is_product(parcel) and not _is_product(following)
        if last_product or time.monotonic() - waiting >= TOGETHER:
            yield replies
            replies, waiting = [], time.monotonic()
    if replies:
        yield replies


def _is_product(parcel: Parcel | None) -> bool:
    return parcel is not None and getattr(parcel.task.work, "method", None) == FALLBACK_METHOD


_known: dict[str, Network] = {}
"""Networks this worker has put together; they only save time, so that a task still depends on its arguments alone."""


def _reply(parcel: Parcel, shared: Mapping[str, np.ndarray]) -> Reply:
    began = time.time()
    try:
        task = unpack(parcel, shared, _known)
    except Exception as fault:  # noqa: BLE001 - what arrived damaged must not take finished replies along
        return Reply(parcel.task.key, None, 0.0, began, type(fault).__name__, explain(fault))
    outcome = attempt(task)
    if isinstance(outcome, Done):
        return Reply(task.key, outcome.value, outcome.seconds, outcome.began)
    return Reply(task.key, None, 0.0, began, outcome.kind, outcome.why)

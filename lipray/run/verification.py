"""A certificate verified: its model's network in, the recomputed bound out, here or over an executor.

What proves is ``lipray.verify``; this only brings its sub-problems to where they are worked on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lipray.errors import CertificateError, ClusterError, VerificationError
from lipray.model.network import Network
from lipray.partition.cost import estimate_cost, tiles_together
from lipray.partition.plan import RoundWork, TorusWork
from lipray.partition.subproblem import Settings
from lipray.partition.torus_cost import torus_cost
from lipray.run.executor import Done, Executor, Failure, Task
from lipray.run.record.records import BlockVerdict, ProblemVerdict, VerdictRecord
from lipray.run.rounds import Rounds
from lipray.run.tasks import LONG_ROUND
from lipray.verify.cover import covering_tiles
from lipray.verify.torus.layout import lay_out

if TYPE_CHECKING:
    from lipray.verify.prove import Figure, Problem
    from lipray.verify.record import CertificateRecord, SelectionPart

Notify = Callable[[int, int, str], None]
"""Told how many sub-problems are done, of how many, and the one that came last."""

METHODS = {"product": "product", "dense": "ellipsoid"}
"""Whose cost estimate holds for a kind of proof."""


@dataclass(frozen=True, slots=True)
class _Cost:
    memory: int
    seconds: float
    rounds: RoundWork | None = None


def fetch(place: str) -> tuple[CertificateRecord, dict[str, np.ndarray]]:
    """A certificate and its multipliers, from a run folder or a ``certificate.json``, by path or URL.

    Raises:
        CertificateError: a file is missing, damaged, too large, or of another version.
        StoreError: the place cannot be read.
        UsageError: the URL's protocol is not known.
    """
    from lipray.run.record.folder import open_run
    from lipray.verify.record import ARRAYS, LARGEST_RECORD, NAME, decode, expected_arrays, read, unpack

    if "://" not in place:
        return read(Path(place))
    folder = open_run(place.removesuffix(f"/{NAME}"))
    content, packed = folder.read(NAME), folder.read(ARRAYS)
    for name, found in ((NAME, content), (ARRAYS, packed)):
        if found is None:
            raise CertificateError(f"{folder.place}/{name}", "is not there")
    assert content is not None  # noqa: S101 (seen to just now)
    assert packed is not None  # noqa: S101
    if len(content) > LARGEST_RECORD:
        raise CertificateError(f"{folder.place}/{NAME}", f"is larger than the {LARGEST_RECORD} bytes it may have")
    record = decode(f"{folder.place}/{NAME}", content)
    if hashlib.sha256(packed).hexdigest() != record.arrays:
        raise CertificateError(f"{folder.place}/{ARRAYS}", "its SHA-256 is not the one the certificate names")
    return record, unpack(f"{folder.place}/{ARRAYS}", packed, expected_arrays(record))


def select(network: Network, selection: SelectionPart) -> Network:
    """The network with the outputs that a certificate speaks of.

    Raises:
        VerificationError: the model has no such outputs.
    """
    from lipray.errors import UsageError
    from lipray.model.select import select_pairs, select_rows

    try:
        if selection.rows is not None:
            return select_rows(network, selection.rows)
        if selection.pairs is not None:
            return select_pairs(network, selection.pairs)
    except UsageError as fault:
        why = f"the certificate is for outputs that it does not have ({fault.describe()})"
        raise VerificationError("the model", why) from None
    return network


def verify_certificate(
    record: CertificateRecord,
    arrays: Mapping[str, np.ndarray],
    network: Network,
    executor: Executor,
    *,
    memory: int,
    notify: Notify = lambda _done, _all, _label: None,
) -> VerdictRecord:
    """Verify a certificate against its network, spread over an executor.

    Args:
        record: the certificate.
        arrays: its multipliers.
        network: the whole network, its outputs selected.
        executor: where sub-problems are proven; the caller closes it.
        memory: bytes that one sub-problem may use.
        notify: told of every sub-problem that is proven.

    Raises:
        VerificationError: naming the part that fails.
        ClusterError: a sub-problem could not be looked at.
    """
    from lipray.verify.check import verify

    start = time.monotonic()
    labels: list[tuple[str, float]] = []

    def proven(problems: Sequence[Problem]) -> list[float]:
        labels.extend((problem.label, problem.claim) for problem in problems)
        return _spread(problems, executor, memory, notify)

    verdict = verify(record, arrays, network, proven)
    blocks = zip(record.blocks, verdict.blocks, strict=True)
    return VerdictRecord(
        bound=verdict.bound,
        claim=record.claim,
        blocks=tuple(
            BlockVerdict(
                label=f"block{number} [{network.nodes[part.first].name}, {network.nodes[part.last].name}]",
                composition=part.composition,
                tiles=len(part.tiles),
                claim=part.claim,
                bound=bound,
            )
            for number, (part, bound) in enumerate(blocks, start=1)
        ),
        problems=tuple(
            ProblemVerdict(label=label, claim=claim, bound=bound)
            for (label, claim), bound in zip(labels, verdict.problems, strict=True)
        ),
        executor=executor.name,
        seconds=time.monotonic() - start,
    )


def _spread(problems: Sequence[Problem], executor: Executor, memory: int, notify: Notify) -> list[float]:
    bounds: dict[int, float] = {}
    tasks: list[Task] = []
    long: list[tuple[int, Task, RoundWork]] = []
    for number, problem in enumerate(problems):
        cost = _cost(problem, memory)
        task = Task(str(number), problem.label, _group(problem), problem, cost.memory, cost.seconds)
        if cost.rounds is not None and cost.rounds.pass_seconds >= LONG_ROUND:
            long.append((number, task, cost.rounds))
        else:
            tasks.append(task)
    executor.check([*tasks, *(task for _, task, _ in long)])

    def take(number: int, figure: Figure) -> None:
        bounds[number] = figure.bound
        notify(len(bounds), len(problems), problems[number].label)

    for outcome in executor.run(sorted(tasks, key=lambda task: -task.seconds)):
        if isinstance(outcome, Failure):
            raise _fault(outcome)
        take(int(outcome.task.key), _figure(outcome))
    for number, task, work in long:
        take(number, in_rounds(problems[number], task, work, executor, memory))
    return [bounds[number] for number in range(len(problems))]


def in_rounds(problem: Problem, task: Task, layout: RoundWork, executor: Executor, memory: int) -> Figure:
    """A large proof on tori, or of tiles together: its bundles are the executor's tasks.

    Raises:
        VerificationError: it does not hold.
        ClusterError: bundles were lost.
    """
    from lipray.verify.prove import prove
    from lipray.verify.torus.proof import LostBundleError, Means

    rounds = Rounds(task, layout, executor, memory=memory)
    try:
        return prove(problem, Means(rounds.spread, memory, executor.width("cpu")))
    except LostBundleError:
        raise _fault(rounds.lost[0]) from None
    finally:
        executor.release()


def _cost(problem: Problem, memory: int) -> _Cost:
    from lipray.errors import PlanError

    if problem.proof.kind in METHODS:
        cost = estimate_cost(problem.network, METHODS[problem.proof.kind], Settings(iterations=0))
        return _Cost(cost.memory_bytes, cost.seconds)
    if problem.proof.kind == "metric":
        try:
            covering_tiles(problem.label, problem.network, problem.proof.windows)
        except VerificationError:
            return _Cost(0, 0.0)  # the proof will say what is wrong
        cost, tiles = tiles_together(problem.network, problem.proof.windows, Settings(iterations=0))
        return _Cost(cost.memory_bytes, cost.seconds, tiles)

    try:
        torus = lay_out(problem.network, problem.proof.cut)
    except (PlanError, IndexError):
        return _Cost(0, 0.0)  # the proof will say what is wrong
    carried = torus_cost(problem.network, torus)
    work = TorusWork(
        sides=torus.tori,
        switch=None,
        groups=carried.groups,
        group_memory=carried.sweep_memory,
        tail_memory=0,
        pass_seconds=carried.pass_seconds,
        round_seconds=carried.round_seconds,
        closed_form_seconds=carried.pass_seconds,
    )
    return _Cost(min(memory, carried.groups * carried.sweep_memory), carried.pass_seconds, work)


def _group(problem: Problem) -> str:
    """Sub-problems of one network's arrays travel together."""
    return f"{id(problem.network.weights)}"


def _figure(outcome: Done) -> Figure:
    from lipray.verify.prove import Figure

    assert isinstance(outcome.value, Figure)  # noqa: S101 (what such a task returns)
    return outcome.value


def _fault(failure: Failure) -> VerificationError | ClusterError:
    if failure.kind == VerificationError.__name__:
        part, _, why = failure.why.partition(": ")
        return VerificationError(part, why)
    hint = "Nothing is said of the certificate. Verify it again, with more --memory or another --executor."
    return ClusterError(failure.task.label, f"could not be checked ({failure.kind}: {failure.why})", hint=hint)

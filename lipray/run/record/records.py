"""A finished run as plain records: what stands in ``result.json``, ``subproblems.csv`` and ``manifest.json``."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number, or null where it is infinite: JSON knows no infinity."""


State = Literal["running", "finished", "incomplete", "stopped", "failed"]
"""How a run stands: under way (or its driver was lost); done; done, with product bounds in the place of what failed;
ended by a signal with the bound it had; ended by an error."""


class Record(BaseModel):
    """Frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(Record):
    """The network that was bounded: its name, content hash and sizes, and remarks of the importer.

    ``file_hash`` is the SHA-256 of the file its weights came from, where they came from one.
    """

    name: str
    hash: str
    file_hash: str | None = None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    neurons: int
    notes: tuple[str, ...] = ()


class StageRecord(Record):
    """A bound of a block's map from its input up to a layer."""

    after: str
    upper: Figure


class BlockRecord(Record):
    """One block: its bound, where it comes from, what other ways give, and its share of the solver time.

    ``method`` is the one the planner gave it, ``source`` the way its bound comes from.
    """

    label: str
    upper: Figure
    method: str = ""
    source: str
    alternatives: dict[str, Figure]
    closed_forms: dict[str, Figure]
    subproblems: int
    distinct: int
    fallbacks: tuple[str, ...]
    seconds: float
    share: float
    stages: tuple[StageRecord, ...] = ()


class SubproblemRecord(Record):
    """One distinct sub-problem: its certificate in numbers. ``copies`` tiles of the block share it.

    ``bound`` is the verified one, ``solver`` the value that the optimiser believed (no bound), and ``excess`` how far
    the bound is above what the same multipliers give without what covers rounding, relatively, where that was measured.
    ``stored``: its multipliers came from a store, and were proven again. ``seconds`` are this run's, by the clock,
    ``core_seconds`` those of one core that solving it took, whenever that was.
    """

    block: str
    label: str
    copies: int
    key: str
    method: str
    status: str
    bound: Figure
    product: Figure
    neurons: int
    memory: int
    seconds: float
    iterations: int
    solver: Figure = None
    excess: Figure = None
    stored: bool = False
    core_seconds: float = 0.0
    advice: str = ""
    failure: str = ""


class FailureRecord(Record):
    """A task that gave no value: what failed, how, why, and how often it was tried."""

    label: str
    kind: str
    why: str
    attempts: int


class ResultRecord(Record):
    """The outcome of an estimate; ``upper`` is certified, ``lower`` attained, ``null`` means infinite.

    ``threads`` are those of one sub-problem, ``null`` where the libraries chose.
    """

    schema_version: Literal[1] = 1
    model: ModelRecord
    upper: Figure
    lower: float
    gap: Figure
    method: str
    composition: str
    executor: str
    threads: int | None
    seconds: float
    blocks: tuple[BlockRecord, ...]
    figures: dict[str, Figure]
    subproblems: tuple[SubproblemRecord, ...]
    failures: tuple[FailureRecord, ...]
    store_faults: tuple[str, ...] = ()
    state: State = "finished"


class ProblemVerdict(Record):
    """One sub-problem: the bound claimed, and the one recomputed from its multipliers."""

    label: str
    claim: float
    bound: float


class BlockVerdict(Record):
    """One block: the bound claimed, and the one composed of what was recomputed."""

    label: str
    composition: str
    tiles: int
    claim: float
    bound: float


class VerdictRecord(Record):
    """A certificate that holds: ``bound`` is recomputed, from nothing but the multipliers and the weights."""

    schema_version: Literal[1] = 1
    verified: Literal[True] = True
    bound: float
    claim: float
    blocks: tuple[BlockVerdict, ...]
    problems: tuple[ProblemVerdict, ...]
    executor: str
    seconds: float


class RequestRecord(Record):
    """What a run was asked, in the words it was asked with: ``folder`` is where relative names begin."""

    model: str
    trust_model: bool = False
    folder: str


Swept = int | float | str
"""A value that an option takes at a point of a sweep, as a reader writes it."""


class PointRecord(Record):
    """A point of a sweep as it was asked for.

    ``options`` are those in which the points differ, beside the manifest's ``config``; ``refused`` says why there are
    none: options that exclude each other.
    """

    point: str
    swept: dict[str, Swept]
    options: dict[str, object] = {}
    refused: str = ""


class SweepPart(Record):
    """What makes a run a sweep: the values that options take, and the points, each a run folder of its own."""

    axes: dict[str, tuple[Swept, ...]]
    points: tuple[PointRecord, ...]


class ManifestRecord(Record):
    """What a run depends on, so that it can be repeated or gone on with; times are UTC in ISO 8601.

    ``files`` are the SHA-256 of what was written at its end, ``attempt`` counts the processes that drove it. Of a
    ``sweep`` the ``config`` is what its points have in common.
    """

    schema_version: Literal[1] = 1
    run: str
    state: State = "finished"
    attempt: int = 1
    started: str
    finished: str | None = None
    why: str = ""
    model: ModelRecord
    config: dict[str, object]
    request: RequestRecord | None = None
    store: str | None = None
    algorithm: int = 1
    seed: int
    versions: dict[str, str]
    thread_variables: dict[str, str]
    machine: dict[str, str | int]
    git: str | None
    arguments: tuple[str, ...]
    files: dict[str, str] = {}
    sweep: SweepPart | None = None


class ProgressRecord(Record):
    """How far a run under way is.

    ``time`` (seconds since 1970) is when this was written, ``seconds`` what the run took so far, earlier attempts
    included.
    """

    time: float
    attempt: int
    seconds: float
    tasks: int
    done: int = 0
    stored: int = 0
    failed: int = 0
    share: float = 0.0
    upper: Figure = None
    lower: float = 0.0

"""What solving a sub-problem returns: a bound, and what it is proven from."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lipray.verify.prove import Proof


class Status(enum.Enum):
    """How a solve ended. Every status but ``FALLBACK`` comes with the method's own certified bound."""

    CLOSED_FORM = "closed_form"
    CONVERGED = "converged"
    ITERATION_LIMIT = "iteration_limit"
    TIME_LIMIT = "time_limit"
    STALLED = "stalled"
    FALLBACK = "fallback"

    @property
    def advice(self) -> str:
        """What the reader may do about it, or an empty string."""
        return _ADVICE[self]


_ADVICE = {
    Status.CLOSED_FORM: "",
    Status.CONVERGED: "",
    Status.ITERATION_LIMIT: "raise --iterations for a tighter bound",
    Status.TIME_LIMIT: "give it more time (--time-limit, --budget) for a tighter bound",
    Status.STALLED: "the optimiser stopped before its tolerance; the bound is valid but may be loose",
    Status.FALLBACK: "the solver gave no certificate; the product bound stands in its place",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certified upper bound on one sub-problem's l2 Lipschitz constant.

    ``bound`` is what ``lipray.verify`` makes of ``proof``, rounded outward. ``gram`` is the output
    shape matrix Q_out (K x K), where there is one: Δy Δyᵀ ⪯ gram for unit inputs. ``figures`` holds
    other bounds on the same map (product, LipLT, ECLipsE-Fast, the solver's own value), for the report. ``stages``
    are certified bounds of the map from the input up to a node, by its name, in order: how the bound grows with depth.
    ``seconds`` of one core are what it took, 0 where nobody looked.
    """

    key: str
    method: str
    bound: float
    status: Status
    proof: Proof | None = None
    gram: np.ndarray | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    iterations: int = 0
    seconds: float = 0.0
    stages: tuple[tuple[str, float], ...] = ()

    @property
    def multipliers(self) -> tuple[np.ndarray, ...]:
        """One positive vector per activation layer, from which the bound was recomputed; none for a product."""
        return () if self.proof is None else self.proof.multipliers

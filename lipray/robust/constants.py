"""Constants of margins: K_ij >= Lip(f_i - f_j) for all pairs of classes, from certified bounds only.

Three bounds of the same number, each proven, so that the least of them is one too:

- **Head.** Where f = W g + b with rows w_i, |Δf_i - Δf_j| = |⟨w_i - w_j, Δg⟩| <= ‖w_i - w_j‖ ‖Δg‖ (Cauchy-Schwarz)
  <= L(g) ‖w_i - w_j‖ ‖Δx‖, with the certified bound of g, the network cut before its last dense layer.
- **Shape matrix.** Δf Δfᵀ ⪯ Γ for unit inputs of the last block gives (e_i - e_j)ᵀ Γ (e_i - e_j) for the square
  (``Bound.pairwise``).
- **Whole.** |Δf_i - Δf_j| = |⟨e_i - e_j, Δf⟩| <= √2 ‖Δf‖ <= √2 L(f) ‖Δx‖.

Tempting and wrong: K_ij = L(g) because "the head's rows are normalised". Two unit rows may differ by a vector of length
2, and Lip(f_i - f_j) is then 2 L(g) where g can move along it; tests/robust has the network and the broken sample.

Nothing is added up, halved or averaged between pairs; K_ii = 0.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field

import numpy as np

from lipray.config import EstimateConfig
from lipray.model.network import Network
from lipray.robust.classifier import head_of
from lipray.robust.rounding import distances_up, product_up
from lipray.run.budget import Clock
from lipray.run.events import Listener, ignore
from lipray.run.executor import Executor
from lipray.run.session import Finished, run_estimate
from lipray.run.start import start_executor
from lipray.run.stop import Stopped
from lipray.verify.outward import mul_up, up

SOURCES = ("whole", "shape matrix", "head")
"""What a constant may come from, in the order of ``Constants.source``; what gives the least, the first of equals."""
_SIGNALS = {"SIGINT": int(signal.SIGINT), "SIGTERM": int(signal.SIGTERM)}


@dataclass(frozen=True, slots=True)
class Constants:
    """``pairwise`` (K, K) bounds Lip(f_i - f_j) from above; ``source`` (K, K) says by which of ``SOURCES``.

    ``upper`` and ``lower`` bracket the whole network's constant, ``before`` bounds that of what comes before the last
    dense layer, where there is one. ``complete`` unless product bounds stand in for what failed. ``method`` is that of
    the estimates.
    """

    pairwise: np.ndarray = field(repr=False)
    source: np.ndarray = field(repr=False)
    upper: float
    lower: float
    before: float | None
    method: str
    complete: bool = True

    @property
    def shares(self) -> dict[str, float]:
        """The share of the pairs of different classes that each source gives."""
        pairs = self.source[np.triu_indices(len(self.source), 1)]
        return {name: float((pairs == number).mean()) for number, name in enumerate(SOURCES)}


def head_constants(weight: np.ndarray, before: float) -> np.ndarray:
    """L ‖w_i - w_j‖ rounded up for all pairs of rows of ``weight`` (K, n), with L the bound of what comes before."""
    rows = np.asarray(weight, dtype=np.float64)
    apart = np.stack([distances_up(row[None], rows) for row in rows])
    return product_up(before, np.maximum(apart, apart.T))


def least_constants(upper: float, shaped: np.ndarray | None, headed: np.ndarray | None, classes: int) -> np.ndarray:
    """The least bound of each pair stacked with the number of its source, (2, K, K); see the module."""
    best = np.full((classes, classes), mul_up(up(math.sqrt(2.0)), upper))
    source = np.zeros((classes, classes))
    for number, table in enumerate((shaped, headed), start=1):
        if table is not None:
            source = np.where(table < best, float(number), source)
            best = np.minimum(best, table)
    np.fill_diagonal(best, 0.0)
    return np.stack([best, source])


def margin_constants(
    network: Network,
    name: str,
    config: EstimateConfig,
    *,
    notify: Listener = ignore,
    executor: Executor | None = None,
) -> Constants:
    """Estimate the network, and what comes before its head, and take the least bound of every pair.

    Args:
        network: a map from data to at least two logits, see ``as_classifier``.
        name: of the model.
        config: of both estimates; a budget is shared by them. Nothing is written but what its store keeps.
        notify: called with the events of both.
        executor: where to run; by default one is started and closed.

    Raises:
        LiprayError: as ``run_estimate``.
        Stopped: told to stop.
    """
    head = head_of(network)
    apart = head is not None and head.before is not None
    budget = config.budget / 2 if apart and config.budget is not None else config.budget
    plain = {"out": None, "run_id": None, "data": None, "output_rows": None, "pairs": None, "budget": budget}
    options = config.model_copy(update=plain)
    place = executor or start_executor(options)

    def estimate(part: Network, called: str, chosen: EstimateConfig) -> Finished:
        clock = Clock.begin(chosen.budget)
        done = run_estimate(part, called, chosen, write=False, notify=notify, executor=place, clock=clock)
        if done.stopped in _SIGNALS:
            raise Stopped(_SIGNALS[done.stopped])
        return done

    try:
        whole = estimate(network, name, options)
        ends = [whole]
        before = None
        if head is not None:
            before = 1.0
            if head.before is not None:
                cut = estimate(head.before, f"{name} before its head", options.model_copy(update={"lower_starts": 0}))
                before = cut.bound.upper
                ends.append(cut)
    finally:
        if executor is None:
            place.close()
    headed = None if head is None or before is None else head_constants(head.weight, before)
    found = least_constants(whole.bound.upper, whole.bound.pairwise, headed, network.output_shape[0])
    return Constants(
        pairwise=found[0],
        source=found[1].astype(np.int8),
        upper=whole.bound.upper,
        lower=whole.bound.lower,
        before=before,
        method=whole.bound.method,
        complete=all(end.state == "finished" for end in ends),
    )

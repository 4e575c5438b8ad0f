"""Constants of margins: K_ij >= Lip(f_i - f_j) for all pairs of classes, from certified bounds only.

Bounds of the same number, each proven, so that the least of them is one too:

- **Head.** Where f = W g + b with rows w_i, |Δf_i - Δf_j| = |⟨w_i - w_j, Δg⟩| <= ‖w_i - w_j‖ ‖Δg‖ (Cauchy-Schwarz)
  <= L(g) ‖w_i - w_j‖ ‖Δx‖, with the certified bound of g, the network cut before its last dense layer.
- **Shape matrix.** Δf Δfᵀ ⪯ Γ for unit inputs of the last block gives (e_i - e_j)ᵀ Γ (e_i - e_j) for the square
  (``Bound.pairwise``).
- **Pair.** An estimate of the network f_i - f_j itself, if asked for: K (K - 1) / 2 of them. The others stem from
  multipliers that are best for all outputs together; those of a pair are its own.
- **Whole.** |Δf_i - Δf_j| = |⟨e_i - e_j, Δf⟩| <= √2 ‖Δf‖ <= √2 L(f) ‖Δx‖.

Tempting and wrong: K_ij = L(g) because "the head's rows are normalised". Two unit rows may differ by a vector of length
2, and Lip(f_i - f_j) is then 2 L(g) where g can move along it; tests/robust has the network and the broken sample.

Nothing is added up, halved or averaged between pairs; K_ii = 0.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lipray.config import EstimateConfig
from lipray.errors import LiprayError
from lipray.model.network import Network
from lipray.model.select import select_pairs
from lipray.robust.classifier import head_of
from lipray.robust.rounding import distances_up, product_up
from lipray.run.budget import Clock
from lipray.run.driver import RunOutcome, estimate_together
from lipray.run.events import Listener, ignore
from lipray.run.executor import Executor
from lipray.run.joint import Point
from lipray.run.session import measured
from lipray.run.start import start_executor
from lipray.run.stop import Stopped
from lipray.run.store.solved import open_store
from lipray.verify.outward import mul_up, up

SOURCES = ("whole", "shape matrix", "head", "pair")
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


def least_constants(upper: float, classes: int, *tables: np.ndarray | None) -> np.ndarray:
    """The least bound of each pair stacked with the number of its source, (2, K, K); see the module.

    Args:
        upper: of the whole network.
        classes: K.
        tables: by the other sources, in their order; ``None`` where there is none.
    """
    best = np.full((classes, classes), mul_up(up(math.sqrt(2.0)), upper))
    source = np.zeros((classes, classes))
    for number, table in enumerate(tables, start=1):
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
    each_pair: bool = False,
    notify: Listener = ignore,
    executor: Executor | None = None,
) -> Constants:
    """Estimate the network, and what comes before its head, and take the least bound of every pair.

    Args:
        network: a map from data to at least two logits, see ``as_classifier``.
        name: of the model.
        config: of the estimates, which share its budget. Nothing is written but what its store keeps.
        each_pair: estimate every difference of two logits too.
        notify: called with the events of all.
        executor: where to run; by default one is started and closed.

    Raises:
        LiprayError: as ``estimate_network``.
        Stopped: told to stop.
    """
    plain = {"out": None, "run_id": None, "data": None, "output_rows": None, "pairs": None}
    options = config.model_copy(update=plain)
    bare = options.model_copy(update={"lower_starts": 0})
    classes = network.output_shape[0]
    head = head_of(network)
    points = [Point(network, options, name=name)]
    if head is not None and head.before is not None:
        points.append(Point(head.before, bare, name=f"{name} before its head"))
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)] if each_pair else []
    points.extend(Point(select_pairs(network, [pair]), bare, name=f"{pair[0]},{pair[1]}") for pair in pairs)
    found = _estimates(points, name, options, notify, executor)
    whole, others = found[0].bound, [outcome.bound.upper for outcome in found[1:]]
    before = headed = None
    if head is not None:
        before = 1.0 if head.before is None else others.pop(0)
        headed = head_constants(head.weight, before)
    table = least_constants(whole.upper, classes, whole.pairwise, headed, _paired(pairs, others, classes))
    return Constants(
        pairwise=table[0],
        source=table[1].astype(np.int8),
        upper=whole.upper,
        lower=whole.lower,
        before=before,
        method=whole.method,
        complete=all(outcome.complete for outcome in found),
    )


def _estimates(
    points: Sequence[Point], name: str, config: EstimateConfig, notify: Listener, executor: Executor | None
) -> list[RunOutcome]:
    """Outcomes of the estimates, in order; they are driven together, so that workers are shared.

    Raises:
        LiprayError: that of the first without a bound.
        Stopped: told to stop.
    """
    store = None if config.store is None else open_store(config.store)
    clock = Clock.begin(config.budget)
    place = executor or start_executor(config)
    try:
        endings = estimate_together(points, place, clock=clock, store=store, notify=measured(place, notify, name))
    finally:
        if executor is None:
            place.close()
    found = []
    for ending in endings:
        if isinstance(ending, LiprayError | Stopped):
            raise ending
        if ending.stopped in _SIGNALS:
            raise Stopped(_SIGNALS[ending.stopped])
        found.append(ending)
    return found


def _paired(pairs: Sequence[tuple[int, int]], bounds: Sequence[float], classes: int) -> np.ndarray | None:
    """The bounds of differences as a symmetric table."""
    if not pairs:
        return None
    table = np.zeros((classes, classes))
    for (i, j), bound in zip(pairs, bounds, strict=True):
        table[i, j] = table[j, i] = bound
    return table

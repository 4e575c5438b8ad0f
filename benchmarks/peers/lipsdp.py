"""LipSDP-Neuron posed once, and handed to cvxpy's solvers as it is.

The inequality, its scaling (the closed form is λ = 1, ρ = 1) and the proof of what comes back are lipray's own, so that
the solvers are compared at nothing but solving.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from lipray.certify.closed_form import closed_form
from lipray.certify.ellipsoid import certify_blend
from lipray.certify.inequality import assemble, reduced_order
from lipray.certify.sdp import pose
from lipray.model.network import Network
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.sector import lower
from peers.answer import VALUE, Answer, NotHereError


@dataclass(frozen=True, slots=True)
class Way:
    """A solver of cvxpy's with its options; ``largest`` is the order of the inequality it is tried up to."""

    solver: str
    options: dict[str, object]
    largest: int
    limit: str | None = None
    """Name of the option that takes a limit in seconds."""


WAYS = {
    "Clarabel": Way("CLARABEL", {"max_threads": 1}, 700, "time_limit"),
    "SCS": Way("SCS", {}, 1000, "time_limit_secs"),
    "SCS, tight": Way("SCS", {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 10**7}, 1000, "time_limit_secs"),
    "SDPA": Way("SDPA", {"numThreads": 1}, 1300),
}
"""``SCS`` is its default settings, ``SCS, tight`` a thousandth of its tolerance (1e-4 becomes 1e-8)."""


def lipsdp(way: str, network: Network, seconds: float) -> Answer:
    """LipSDP-Neuron by a solver: its value, and what is proven from its multipliers.

    Args:
        way: a name of ``WAYS``.
        network: what to bound.
        seconds: limit of the solver, where it knows one.

    Raises:
        NotHereError: the solver is not installed, or the inequality is too large for it.
    """
    import cvxpy as cp

    chosen = WAYS[way]
    if chosen.solver not in cp.installed_solvers():
        raise NotHereError("does not install here")
    form = lower(network)
    blocks = prepare(form)
    order = reduced_order(blocks)
    if order > chosen.largest:
        raise NotHereError(f"not tried: order {order:,}, above {chosen.largest:,}")
    base = closed_form(blocks)
    start = evaluate(blocks, base)
    if start is None or blocks.depth == 0 or start.bound == 0.0:
        raise NotHereError("no inequality to solve")
    flat, value = np.concatenate(list(base)), (start.bound / blocks.factor) ** 2
    task, lam, rho = pose(assemble(blocks), flat, value)
    options = dict(chosen.options)
    if chosen.limit is not None:
        options[chosen.limit] = seconds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an answer is inaccurate is in its status
            task.solve(solver=chosen.solver, **options)
    except cp.error.SolverError as fault:
        return Answer(None, VALUE, ended="failed: " + " ".join(str(fault).split())[:80])
    if lam.value is None or rho.value is None or not float(rho.value) > 0.0:
        return Answer(None, VALUE, ended=str(task.status))
    answer = flat * np.maximum(np.asarray(lam.value), 1e-12) / float(rho.value)
    proven = certify_blend(blocks, np.split(answer, np.cumsum(blocks.widths)[:-1]), base)
    bound = float(np.sqrt(float(rho.value) * value)) * blocks.factor
    return Answer(bound, VALUE, None if proven is None else proven.bound, str(task.status))

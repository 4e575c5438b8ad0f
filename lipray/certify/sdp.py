"""LipSDP-Neuron by cvxpy with Clarabel: the reference the other methods are measured against.

Diagonal multipliers only: the couplings of LipSDP-Network are unsound (Pauli et al. 2021). The problem is
scaled so that the closed form is λ = 1, ρ = 1, solved, and the bound recomputed from the multipliers; what the
solver reports as its optimum is kept only as a figure.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

import numpy as np

from lipray.certify.certificate import Certificate, Status
from lipray.certify.closed_form import closed_form
from lipray.certify.ellipsoid import certify_blend
from lipray.certify.excess import unrounded_dense
from lipray.certify.inequality import Inequality, assemble
from lipray.partition.subproblem import Settings, Subproblem
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.prove import Proof
from lipray.verify.sector import lower

if TYPE_CHECKING:
    import cvxpy as cp


def solve_sdp(problem: Subproblem) -> Certificate | None:
    """Certify by the SDP; the closed form stands in (status FALLBACK) where the solver gives nothing usable."""
    start = time.monotonic()
    form = lower(problem.network)
    blocks = prepare(form)
    base = closed_form(blocks)
    best = evaluate(blocks, base)
    if best is None:
        return None
    figures = {"eclipse_fast": best.bound}
    status = Status.CONVERGED
    iterations = 0
    if blocks.depth > 0 and best.bound > 0.0 and problem.settings.iterations != 0:
        flat = np.concatenate(list(base))
        root = best.bound / blocks.factor
        answer, value, status, iterations = _solve(assemble(blocks), flat, root**2, problem.settings)
        if answer is not None:
            figures["solver"] = value * blocks.factor
            found = tuple(np.split(answer, np.cumsum(blocks.widths)[:-1]))
            improved = certify_blend(blocks, found, base)
            if improved is not None and improved.bound < best.bound:
                best = improved
    elif problem.settings.iterations == 0:
        status = Status.CLOSED_FORM
    figures["unrounded"] = unrounded_dense(blocks, best.multipliers)
    seconds = time.monotonic() - start
    proof = Proof("dense", best.multipliers, form.neurons)
    return Certificate(problem.key(), "sdp", best.bound, status, proof, best.gram, figures, iterations, seconds)


def pose(inequality: Inequality, start: np.ndarray, value: float) -> tuple[cp.Problem, cp.Variable, cp.Variable]:
    """The inequality as a program, scaled by multipliers ``start`` and their λmax(P) ``value``; λ and ρ, its variables.

    It minimises ρ. At its optimum start · λ / ρ are multipliers, and ρ · value is their λmax(P).
    """
    import cvxpy as cp

    d, n, m = inequality.inputs, inequality.B.shape[1], inequality.order
    root = 1.0 / np.sqrt(start)
    columns = np.concatenate([np.ones(d), root])
    B = inequality.B[0].numpy() * columns / root[:, None]
    C = inequality.C[0].numpy() * columns / np.sqrt(value)
    select = np.zeros((m, n))
    select[d:] = np.eye(n)
    V = select - B.T
    E = np.diag(np.concatenate([np.ones(d), np.zeros(n)]))
    lam, rho = cp.Variable(n, nonneg=True), cp.Variable()
    half = cp.multiply(V, cp.reshape(lam, (1, n), order="C")) @ select.T
    task = cp.Problem(cp.Minimize(rho), [half + half.T + rho * E - C.T @ C >> 0])
    return task, lam, rho


def _solve(
    inequality: Inequality, start: np.ndarray, value: float, settings: Settings
) -> tuple[np.ndarray | None, float, Status, int]:
    """Multipliers at ρ = 1 (``None`` if unusable), the solver's sqrt(ρ), status, iterations."""
    import cvxpy as cp

    task, lam, rho = pose(inequality, start, value)
    options: dict[str, object] = {"max_threads": 1}
    if settings.iterations is not None:
        options["max_iter"] = settings.iterations
    if settings.time_limit is not None:
        options["time_limit"] = settings.time_limit
    try:
        with warnings.catch_warnings():
            # An inaccurate answer is no worse: the bound is recomputed from it either way.
            warnings.simplefilter("ignore")
            task.solve(solver=cp.CLARABEL, **options)
    except cp.error.SolverError:
        return None, np.inf, Status.FALLBACK, 0
    iterations = int(getattr(task.solver_stats, "num_iters", None) or 0)
    if lam.value is None or rho.value is None or not float(rho.value) > 0.0 or not np.isfinite(lam.value).all():
        return None, np.inf, Status.FALLBACK, iterations
    status = {
        cp.OPTIMAL: Status.CONVERGED,
        cp.OPTIMAL_INACCURATE: Status.STALLED,
        cp.USER_LIMIT: Status.TIME_LIMIT if settings.time_limit is not None else Status.ITERATION_LIMIT,
    }.get(task.status, Status.STALLED)
    answer = start * np.maximum(np.asarray(lam.value), 1e-12) / float(rho.value)
    return answer, float(np.sqrt(float(rho.value) * value)), status, iterations

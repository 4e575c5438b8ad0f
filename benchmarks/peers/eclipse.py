"""ECLipsE: one small semidefinite program per layer (Xu and Sivaranjani 2024), written down from the paper.

With K_i = W_i X_{i-1}⁻¹ W_iᵀ / 4 and X_0 = I, layer i chooses the diagonal Λ_i that

    maximises s  such that  [ Λ - s W_{i+1}ᵀ W_{i+1}   Λ K^(1/2) ]
                            [ K^(1/2) Λ                I         ]  ⪰ 0,

then X_i = Λ - Λ K Λ, and L² is the largest eigenvalue of W_l X_{l-1}⁻¹ W_lᵀ. ECLipsE-Fast takes Λ = I / (2 λmax(K)) in
its place. Divided by Λ from both sides and with t = 1/s the program is

    minimise t  such that  [ D - K       D W_{i+1}ᵀ ]
                           [ W_{i+1} D   t I        ]  ⪰ 0,   D = Λ⁻¹,

which needs no root of K and no 1e-10 I added to it, and is what is handed to the solver, scaled to ECLipsE-Fast's
values. Multipliers of LipSDP are λ = Λ / 2, so lipray's verifier proves what they are worth. Chains of maps only,
as in the paper; a convolution counts as its matrix.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg as la

from lipray.certify.ellipsoid import certify_blend
from lipray.model.network import Network
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.sector import SectorForm, lower
from peers.answer import FLOATING, Answer, NotHereError

SOLVERS = ("SDPA", "CLARABEL", "SCS")
"""The first that is installed takes the layers' programs; SDPA is by far the fastest of them on this form."""
LARGEST = 1200
"""Rows of a layer's program, beyond which it is not tried."""

Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A layer's Λ from K and from the next matrix."""


def chain(form: SectorForm) -> list[np.ndarray]:
    """The matrices of a chain.

    Raises:
        NotHereError: a layer reads more than the one before it.
    """
    rows = (*(layer.terms for layer in form.layers), form.output)
    for place, terms in enumerate(rows):
        if [term.source for term in terms] != [place]:
            raise NotHereError("chains only: the network has skips")
    return [terms[0].matrix.toarray() for terms in rows]


def recursion(weights: Sequence[np.ndarray], choose: Choice) -> tuple[float, list[np.ndarray]]:
    """The bound, and the Λ of every layer."""
    inverse, chosen = np.eye(weights[0].shape[1]), []
    for weight, following in itertools.pairwise(weights):
        K = weight @ inverse @ weight.T / 4.0
        K = (K + K.T) / 2.0
        Lam = choose(K, following)
        chosen.append(Lam)
        X = np.diag(Lam) - Lam[:, None] * K * Lam
        inverse = la.cho_solve(la.cho_factor((X + X.T) / 2.0), np.eye(len(X)))
    last = weights[-1] @ inverse @ weights[-1].T
    return float(np.sqrt(la.eigvalsh((last + last.T) / 2.0)[-1])), chosen


def fast(K: np.ndarray, following: np.ndarray) -> np.ndarray:
    """ECLipsE-Fast's Λ."""
    del following
    return np.full(len(K), 0.5 / la.eigvalsh(K)[-1])


def greedy(solver: str, deadline: float) -> Choice:
    """ECLipsE's Λ, by a semidefinite program of cvxpy's ``solver``."""
    import cvxpy as cp

    options: dict[str, object] = {"SDPA": {"numThreads": 1}, "CLARABEL": {"max_threads": 1}}.get(solver, {})

    def choose(K: np.ndarray, following: np.ndarray) -> np.ndarray:
        if time.monotonic() > deadline:
            raise TimeoutError
        n, k = len(K), len(following)
        scale = 2.0 * la.eigvalsh(K)[-1]  # the fast choice is D = scale, so that d = 1 below
        W = following / np.linalg.norm(following, 2)
        d, t = cp.Variable(n), cp.Variable()
        corner = cp.multiply(W, cp.reshape(d, (1, n), order="C"))
        matrix = cp.bmat([[cp.diag(d) - K / scale, corner.T], [corner, t * np.eye(k)]])
        task = cp.Problem(cp.Minimize(t), [(matrix + matrix.T) / 2.0 >> 0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task.solve(solver=solver, **options)
        if d.value is None:
            raise NotHereError(f"a layer's program ended {task.status}")
        return feasible(1.0 / (scale * np.maximum(d.value, 1e-9)), K)

    return choose


def feasible(Lam: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Λ, made smaller where Λ - Λ K Λ is not positive definite by the tolerance of a solver."""
    root = np.sqrt(Lam)
    peak = la.eigvalsh(root[:, None] * K * root)[-1]
    return Lam if peak < 1.0 - 1e-9 else Lam * ((1.0 - 1e-9) / peak)


def eclipse(network: Network, seconds: float) -> Answer:
    """ECLipsE with its programs: the recursion's own value, and what is proven from its multipliers.

    Raises:
        NotHereError: no chain, too wide, or a program without an answer.
    """
    import cvxpy as cp

    form = lower(network)
    weights = chain(form)
    if len(weights) < 2:
        raise NotHereError("no activation layer")
    order = max(len(W) + len(V) for W, V in itertools.pairwise(weights))
    if order > LARGEST:
        raise NotHereError(f"not tried: a layer's program has order {order:,}, above {LARGEST:,}")
    solver = next(name for name in SOLVERS if name in cp.installed_solvers())
    try:
        bound, chosen = recursion(weights, greedy(solver, time.monotonic() + seconds))
    except TimeoutError:
        return Answer(None, FLOATING, ended=f"out of time ({seconds:.0f} s)")
    return judged(network, bound * form.factor, chosen, note=f"programs by {solver}")


def eclipse_fast(network: Network) -> Answer:
    """ECLipsE-Fast by the paper's recursion, and what is proven from its multipliers.

    Raises:
        NotHereError: no chain.
    """
    form = lower(network)
    weights = chain(form)
    bound, chosen = recursion(weights, fast)
    return judged(network, bound * form.factor, chosen)


def judged(network: Network, bound: float, chosen: Sequence[np.ndarray], note: str = "") -> Answer:
    """The answer with what lipray's verifier makes of λ = Λ / 2."""
    from lipray.certify.closed_form import closed_form

    blocks = prepare(lower(network))
    multipliers = [Lam / 2.0 for Lam in chosen]
    proven = evaluate(blocks, multipliers) or certify_blend(blocks, multipliers, closed_form(blocks))
    return Answer(bound, FLOATING, None if proven is None else proven.bound, "done", note)

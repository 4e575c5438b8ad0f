"""The product bound as a method, and beside it LipLT and ECLipsE-Fast.

The product is that of ``lipray.verify.product``. LipLT is Fazlyab, Entesari, Roy & Chellappa 2023 ("Certified
robustness via dynamic margin maximization and improved Lipschitz regularization"), in the sector form: with
u = (v + w) / 2 and |Δw| <= |Δv|, v_j = D_j0 x + Σ_i D_ji w_i gives L_j <= ‖D_j0‖ + Σ_i ‖D_ji‖ L_i.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.sparse as sp

from lipray.certify.certificate import Certificate, Status
from lipray.certify.closed_form import closed_form
from lipray.partition.subproblem import Subproblem
from lipray.verify import linear_maps as lm
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.product import product_bound, sector_form, times_up, widened
from lipray.verify.prove import Proof
from lipray.verify.sector import SectorForm
from lipray.verify.spectral import spectral_norm_bound

CLOSED_FORMS_BELOW = 3000
"""Largest signal for which LipLT, and most neurons for which ECLipsE-Fast, are worked out beside the product."""


def solve_product(problem: Subproblem) -> Certificate:
    """Certify by the product of layer norms; ``figures`` has LipLT and ECLipsE-Fast where they are cheap."""
    start = time.monotonic()
    form = sector_form(problem.network)
    bound = product_bound(problem.network, form)
    figures: dict[str, float] = {}
    if form is not None:
        if max((form.input_size, *form.widths, form.output_size)) <= CLOSED_FORMS_BELOW:
            figures["liplt"] = liplt(form)
        if sum(form.widths) <= CLOSED_FORMS_BELOW:
            blocks = prepare(form)
            certified = evaluate(blocks, closed_form(blocks))
            if certified is not None:
                figures["eclipse_fast"] = certified.bound
    figures["product"] = bound
    seconds = time.monotonic() - start
    return Certificate(
        problem.key(), "product", bound, Status.CLOSED_FORM, Proof("product"), figures=figures, seconds=seconds
    )


def liplt(form: SectorForm) -> float:
    """LipLT over the sector form, norms from above and the rounding of the products included."""
    rows: list[dict[int, tuple[np.ndarray, float]]] = []
    constants = [1.0]
    for terms in (*(layer.terms for layer in form.layers), form.output):
        row: dict[int, tuple[np.ndarray, float]] = {}
        for term in terms:
            error = 0.0 if term.error is None else lm.norm_bound(term.error)
            norm = lm.norm_bound(term.matrix)
            if term.source == 0:
                _accumulate(row, 0, term.matrix.toarray(), error)
                continue
            _accumulate(row, term.source, term.matrix.toarray() / 2.0, error / 2.0)
            half = sp.csr_array(term.matrix / 2.0)
            gamma = 2.0 * (term.matrix.shape[1] + 2) * lm.UNIT
            for source, (matrix, doubt) in rows[term.source - 1].items():
                other = lm.norm_bound(matrix)
                rounding = (gamma * norm * other + (norm + error) * doubt + error * other) / 2.0
                _accumulate(row, source, half @ matrix, rounding)
        rows.append(row)
        total = 0.0
        for source, (matrix, doubt) in row.items():
            total += times_up(spectral_norm_bound(matrix, doubt), constants[source])
        constants.append(widened(total, len(row)))
    return constants[-1] if form.factor == 1.0 else times_up(constants[-1], form.factor)


def _accumulate(row: dict[int, tuple[np.ndarray, float]], source: int, matrix: np.ndarray, doubt: float) -> None:
    if source in row:
        old, old_doubt = row[source]
        joined = old + matrix
        row[source] = (joined, (old_doubt + doubt + 2.0 * lm.UNIT * lm.norm_bound(joined)) * (1.0 + 1e-12))
    else:
        row[source] = (matrix, doubt)

"""Largest eigenvalues and spectral norms from above: estimate, then prove by Cholesky."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch

from lipray.verify.linear_maps import UNIT, norm_bound
from lipray.verify.underflow import power_of_two, times_power

EXACT_BELOW = 400
"""Order up to which the estimate comes from a full eigenvalue decomposition."""

LANCZOS_STEPS = 400
LANCZOS_RESIDUAL = 1e-7
"""Relative residual at which Lanczos stops; the eigenvalue itself is then far closer."""


def largest_eigenvalue_bound(matrix: torch.Tensor) -> float:
    """Upper bound of λmax of a symmetric (or Hermitian) positive semidefinite matrix, proven by Cholesky.

    An eigenvalue solver (Lanczos for large matrices) gives an estimate t; ``tI - Q`` is then factored with
    the shift of Rump (2006, "Verification of positive definiteness"): if floating-point Cholesky of A - cI
    completes with c >= γ_{n+1} / (1 - γ_{n+1}) tr(A), A is positive semidefinite. t grows until it does.

    Returns:
        A number at least λmax; 0 for the zero matrix; infinity if the matrix is not finite.
    """
    n = matrix.shape[0]
    if n == 0:
        return 0.0
    magnitude = float(matrix.abs().max())
    if not math.isfinite(magnitude):
        return math.inf
    if magnitude == 0.0:
        return 0.0
    if n == 1:
        return max(0.0, float(matrix[0, 0].real))
    # A power of two brings the entries near 1, exactly, so that nothing under- or overflows.
    scale = power_of_two(magnitude)
    scaled = matrix / scale
    top = max(_estimate(scaled), float(scaled.diagonal().real.max()))
    # Terms: the factorisation (4x for blocked kernels), and the rounding of the matrix's Hermitian part.
    rounding = 4.0 * (n + 2) * UNIT
    excess = 2.0 * rounding * n
    while excess < 2.0:
        t = top * (1.0 + excess)
        shifted = -scaled
        shifted.diagonal().add_(t)
        trace = float(shifted.diagonal().real.abs().sum())
        shifted.diagonal().sub_(rounding * trace + 8.0 * UNIT * (t + 1.0))
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return math.nextafter(t * scale, math.inf)
        excess *= 4.0
    return times_power(float(scaled.abs().sum(dim=1).max()) * (1.0 + 2.0 * n * UNIT), scale)


def largest_eigenvalues_bound(grams: torch.Tensor, known: float = 0.0) -> float:
    """A number at least ``known`` and at least λmax of every matrix of the batch, proven by Cholesky.

    Power iteration points at the largest; one batched factorisation of tI - Q proves the others smaller. Those it
    does not prove are bounded one by one.
    """
    n = grams.shape[-1]
    if not bool(torch.isfinite(grams.real).all() and torch.isfinite(grams.imag if grams.is_complex() else grams).all()):
        return math.inf
    if n == 1:
        return max(known, float(grams[:, 0, 0].real.max()))
    generator = torch.Generator("cpu").manual_seed(0)
    vector = torch.randn(1, n, 1, dtype=torch.float64, generator=generator, device="cpu").to(grams)
    vector = vector.expand(grams.shape[0], -1, -1)
    for _ in range(24):
        vector = grams @ vector
        vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp(min=1e-300)
    estimate = (vector.mH @ grams @ vector).real.reshape(-1)
    candidates = torch.topk(estimate, min(2, estimate.numel())).indices
    top = max([known, *(largest_eigenvalue_bound(grams[i]) for i in candidates)])
    if top == 0.0:
        return float(grams.abs().sum(dim=-1).max()) * (1.0 + 8.0 * (n + 4) * UNIT)
    rounding = 4.0 * (n + 2) * UNIT
    eye = torch.eye(n, dtype=grams.dtype, device=grams.device)
    left = torch.arange(grams.shape[0], device=grams.device)
    t = top * (1.0 + 16.0 * rounding * n)
    while left.numel():
        lowered = t - rounding * 2.0 * n * t - 8.0 * UNIT * t
        _, info = torch.linalg.cholesky_ex(lowered * eye - grams[left])
        left = left[info != 0]
        if left.numel() > 0:
            worst = left[torch.argmax(estimate[left])]
            t = max(t, largest_eigenvalue_bound(grams[worst]) * (1.0 + 16.0 * rounding * n))
            left = left[left != worst]
    return t


def spectral_norm_bound(matrix: sp.csr_array | np.ndarray, error: float = 0.0) -> float:
    """Upper bound of the spectral norm, from the smaller Gram matrix; ``error`` bounds ‖matrix - exact‖.

    The Gram matrix's rounding is covered by γ_k ‖|A|‖² with ‖|A|‖ <= sqrt(norm_1 norm_inf).
    """
    sparse = sp.csr_array(matrix)
    largest = float(np.abs(sparse.data).max(initial=0.0))
    if largest == 0.0:
        return error
    if not np.isfinite(sparse.data).all():
        return math.inf
    # Scaled by a power of two, exactly, so that squares neither under- nor overflow.
    scale = power_of_two(largest)
    # SciPy's own division multiplies by the reciprocal, which overflows for the smallest numbers.
    sparse = sparse.copy()
    sparse.data = sparse.data / scale
    rows, columns = sparse.shape
    if sparse.nnz > 0.1 * rows * columns:
        dense = torch.from_numpy(sparse.toarray())
        gram = dense @ dense.T if rows <= columns else dense.T @ dense
    else:
        gram = torch.from_numpy((sparse @ sparse.T if rows <= columns else sparse.T @ sparse).toarray())
    absolute = norm_bound(sparse)
    value = largest_eigenvalue_bound(gram) + 4.0 * (max(rows, columns) + 4) * UNIT * absolute**2
    # Hölder's bound is free, and exact where the matrix is an average or a selection.
    root = min(math.nextafter(math.sqrt(value), math.inf) * (1.0 + 2.0 * UNIT), absolute)
    return (times_power(root, scale) + error) * (1.0 + 4.0 * UNIT)


def _estimate(matrix: torch.Tensor) -> float:
    """λmax, nearly always to many digits; a lower bound for large matrices.

    Lanczos with full reorthogonalisation. A Ritz value is off by at most the square of its residual over
    the gap to the next eigenvalue (Parlett 1998, theorem 11.7.1), and by its residual at worst.
    """
    n = matrix.shape[0]
    if n <= EXACT_BELOW:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    generator = torch.Generator("cpu").manual_seed(0)
    q = torch.randn(n, dtype=torch.float64, generator=generator, device="cpu").to(matrix)
    steps = min(n, LANCZOS_STEPS)
    basis = torch.zeros(n, steps, dtype=matrix.dtype)
    alphas: list[float] = []
    betas: list[float] = []
    q = q / torch.linalg.vector_norm(q)
    value = 0.0
    for step in range(steps):
        basis[:, step] = q
        w = matrix @ q
        alphas.append(float(torch.vdot(q, w).real))
        for _ in range(2):
            w = w - basis[:, : step + 1] @ (basis[:, : step + 1].mH @ w)
        beta = float(torch.linalg.vector_norm(w))
        betas.append(beta)
        if step % 20 == 19 or step == steps - 1 or beta < 1e-14 * abs(alphas[0]):
            T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
            values, vectors = np.linalg.eigh(T)
            value = float(values[-1])
            if beta * abs(float(vectors[-1, -1])) <= LANCZOS_RESIDUAL * abs(value):
                break
        q = w / beta
    return value

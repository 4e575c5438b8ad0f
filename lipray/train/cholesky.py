"""Cholesky orthogonalisation: rows made nearly orthonormal, with singular values below 1, and its derivative.

For X (m, n), m <= n:  S = X Xᵀ + ε I with ε = τ · mean diag(X Xᵀ),  S = C Cᵀ,  W = C⁻¹ X (Hu, Leino, Wang & Fredrikson
2024, section 4.2). Then W Wᵀ = C⁻¹ (S - ε I) C⁻ᵀ = I - ε (CᵀC)⁻¹, and as CᵀC and S share their eigenvalues s² + ε, the
singular values of W are s / √(s² + ε) < 1 in exact arithmetic. In float32 they may exceed 1 by rounding: what is
deployed is certified by its own norm.
"""

from __future__ import annotations

from typing import Any

import torch

SHARE = 1e-3
"""τ: ε over the mean of the squared row norms."""


def orthogonal_rows(x: torch.Tensor) -> torch.Tensor:
    """W (m, n) of X (m, n); X with more rows than columns is transposed on the way, so that columns are orthogonal.

    Where gradients are wanted they come from ``Orthogonalise``, which needs two triangular solves.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal_rows(x.T).T
    if torch.is_grad_enabled() and x.requires_grad:
        result: torch.Tensor = Orthogonalise.apply(x)  # type: ignore[no-untyped-call]
        return result
    return _solve(x)[0]


def _solve(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gram = x @ x.T
    epsilon = SHARE * gram.diagonal().mean()
    factor = torch.linalg.cholesky(gram + epsilon * torch.eye(x.shape[0], dtype=x.dtype, device=x.device))
    return torch.linalg.solve_triangular(factor, x, upper=False), factor


class Orthogonalise(torch.autograd.Function):
    """W = C⁻¹ X with the derivative worked out by hand.

    dW = C⁻¹ dX - Φ(P) W with P = C⁻¹ dS C⁻ᵀ, Φ the lower triangle with half the diagonal, and
    dS = dX Xᵀ + X dXᵀ + dε I. For a gradient G in W, with N = C⁻ᵀ sym(Φ(G Wᵀ)) C⁻¹, that in X is

        C⁻ᵀ G - 2 N X - (2 τ / m) tr(N) X.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """W of X."""
        result, factor = _solve(x)
        ctx.save_for_backward(x, result, factor)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Gradient in X."""
        x, result, factor = ctx.saved_tensors
        (gradient,) = gradients
        lower = torch.tril(gradient @ result.T)
        lower.diagonal().mul_(0.5)
        half = torch.linalg.solve_triangular(factor.T, (lower + lower.T) / 2.0, upper=True)
        middle = torch.linalg.solve_triangular(factor.T, half.T, upper=True)
        pulled = torch.linalg.solve_triangular(factor.T, gradient, upper=True)
        result_gradient: torch.Tensor = pulled - 2.0 * middle @ x - (2.0 * SHARE / len(x)) * middle.trace() * x
        return result_gradient

"""Losses that train for a certified radius: EMMA, GloRo in both forms, and a margin penalty.

All take logits f (B, C), labels y (B,), and K (C, C) with K_ij an upper bound of Lip(f_i - f_j), symmetric with zeros
on the diagonal. Where K carries a gradient the losses shrink it. A radius ε is in the units of the input.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

LEAST, MOST = 0.01, 1.0
"""Shares of ε between which EMMA's radii lie."""


def emma(logits: torch.Tensor, labels: torch.Tensor, constants: torch.Tensor, radius: float) -> torch.Tensor:
    """EMMA (Hu, Zou, Wang, Leino & Fredrikson 2023, section 4.2): every class pushed as far as it can be defended.

    Cross-entropy of f_i + ε_i K_yi against y, with ε_i = clip((f_y - f_i) / (ε K_yi), 0.01, 1) ε per class, a constant
    for the gradient.

    Args:
        logits: (B, C).
        labels: (B,).
        constants: (C, C).
        radius: ε > 0.
    """
    reach = constants[labels]  # K_yi, (B, C), zero for the label itself
    with torch.no_grad():
        margins = logits.gather(1, labels[:, None]) - logits
        share = (margins / (radius * reach).clamp(min=1e-12)).clamp(LEAST, MOST)
    return F.cross_entropy(logits + radius * share * reach, labels)


def bottom(logits: torch.Tensor, constants: torch.Tensor, radius: float) -> torch.Tensor:
    """GloRo's logit f_⊥ = max over i ≠ j of f_i + ε K_ij, j the prediction, (B,): Leino, Wang & Fredrikson 2021, eq. 3.

    f_j > f_⊥ exactly where the prediction is certified at ε.
    """
    predicted = logits.argmax(dim=1)
    raised = logits + radius * constants[predicted]
    raised = raised.scatter(1, predicted[:, None], -torch.inf)
    return raised.amax(dim=1)


def gloro(logits: torch.Tensor, labels: torch.Tensor, constants: torch.Tensor, radius: float) -> torch.Tensor:
    """Cross-entropy of the logits with GloRo's ⊥ among them: what cannot be certified counts as wrong."""
    augmented = torch.cat([logits, bottom(logits, constants, radius)[:, None]], dim=1)
    return F.cross_entropy(augmented, labels)


def trades(
    logits: torch.Tensor, labels: torch.Tensor, constants: torch.Tensor, radius: float, *, weight: float = 1.5
) -> torch.Tensor:
    """GloRo's TRADES form: cross-entropy, and ``weight`` times KL(without ⊥ ‖ with it) (Leino et al. 2021, section 5).

    The clean distribution, ⊥ given no probability, is compared with the one that has ⊥: the divergence is
    -log(1 - p_⊥).
    """
    augmented = torch.cat([logits, bottom(logits, constants, radius)[:, None]], dim=1)
    kept = torch.logsumexp(logits, dim=1) - torch.logsumexp(augmented, dim=1)
    return F.cross_entropy(logits, labels) - weight * kept.mean()


def margin(
    logits: torch.Tensor, labels: torch.Tensor, constants: torch.Tensor, radius: float, *, weight: float = 1.0
) -> torch.Tensor:
    """Cross-entropy, and ``weight`` times the mean of what certified margins lack, max_i (ε K_yi - f_y + f_i)₊."""
    reach = radius * constants[labels]
    lacking = (reach - logits.gather(1, labels[:, None]) + logits).scatter(1, labels[:, None], 0.0)
    return F.cross_entropy(logits, labels) + weight * lacking.amax(dim=1).clamp(min=0.0).mean()


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, constants: torch.Tensor | None = None, radius: float = 0.0
) -> torch.Tensor:
    """Plain cross-entropy, beside which the others are shown."""
    del constants, radius
    return F.cross_entropy(logits, labels)


LOSSES = {
    "emma": emma,
    "gloro": gloro,
    "trades": trades,
    "margin": margin,
    "cross-entropy": cross_entropy,
}
"""By the name that a configuration gives."""


def certified(logits: torch.Tensor, constants: torch.Tensor, radius: float) -> torch.Tensor:
    """Which predictions have f_j - f_i > ε K_ji for all i ≠ j, (B,): rounded, for progress, not a certificate."""
    return logits.amax(dim=1) > bottom(logits, constants, radius)


def row_distances(weight: torch.Tensor) -> torch.Tensor:
    """‖w_i - w_j‖₂ of a head's rows, (C, C), with a gradient of zero where rows coincide."""
    difference = weight[:, None] - weight[None]
    squared = difference.square().sum(dim=2)
    apart = squared > 0.0
    return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))

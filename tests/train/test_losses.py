"""Losses against their formulas, worked out by hand, and their gradients."""

import math

import pytest
import torch

from lipray.train import losses

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.5, 0.4]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
K = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]], dtype=torch.float64)


def entropy(row, label):
    return -math.log(math.exp(row[label]) / sum(math.exp(v) for v in row))


def test_emma_raises_every_class_as_far_as_it_can_be_defended():
    # First: margins 1 and 3 over ε K = 0.5 and 1: both defended in full. Second: margins 0.4 and -0.1: 0.4 of ε K = 1
    # is a share of 0.4; a negative one gets the least share, 0.01.
    first = entropy([2.0, 1.0 + 0.5, -1.0 + 1.0], 0)
    second = entropy([0.0 + 0.4 * 1.0, 0.5 + 0.01 * 2.0, 0.4], 2)
    assert losses.emma(LOGITS, LABELS, K, 0.5).item() == pytest.approx((first + second) / 2.0, rel=1e-12)


def test_the_bottom_logit_tells_what_is_certified():
    bottom = losses.bottom(LOGITS, K, 0.5)
    torch.testing.assert_close(bottom, torch.tensor([1.5, 2.4], dtype=torch.float64))
    assert losses.certified(LOGITS, K, 0.5).tolist() == [True, False]
    assert losses.certified(LOGITS, K, 1.0).tolist() == [False, False]  # equality is not certified: 2 against 1 + 1
    tie = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    assert losses.certified(tie, K, 1e-9).tolist() == [False]


def test_gloro_and_trades():
    first, second = [2.0, 1.0, -1.0, 1.5], [0.0, 0.5, 0.4, 2.4]
    expected = (entropy(first, 0) + entropy(second, 2)) / 2.0
    assert losses.gloro(LOGITS, LABELS, K, 0.5).item() == pytest.approx(expected, rel=1e-12)
    clean = (entropy(first[:3], 0) + entropy(second[:3], 2)) / 2.0
    share = [math.exp(row[3]) / sum(map(math.exp, row)) for row in (first, second)]
    divergence = -sum(math.log(1.0 - p) for p in share) / 2.0
    assert losses.trades(LOGITS, LABELS, K, 0.5, weight=2.0).item() == pytest.approx(
        clean + 2.0 * divergence, rel=1e-12
    )


def test_margin_counts_what_is_missing():
    clean = (entropy([2.0, 1.0, -1.0], 0) + entropy([0.0, 0.5, 0.4], 2)) / 2.0
    missing = (max(0.0, 0.5 - 1.0, 1.0 - 3.0) + max(0.0, 1.0 - 0.4, 2.0 + 0.1)) / 2.0
    assert losses.margin(LOGITS, LABELS, K, 0.5, weight=3.0).item() == pytest.approx(clean + 3.0 * missing, rel=1e-12)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_in_logits_and_constants(name):
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    K = torch.rand(4, 4, dtype=torch.float64)
    K = (K + K.T).fill_diagonal_(0.0).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = losses.LOSSES[name]
    if name == "emma":  # its radii are constants for the gradient
        with torch.no_grad():
            margins = logits.gather(1, labels[:, None]) - logits
            share = (margins / (0.3 * K[labels]).clamp(min=1e-12)).clamp(0.01, 1.0)

        def loss(logits, labels, K, radius):
            return torch.nn.functional.cross_entropy(logits + radius * share * K[labels], labels)

        own = torch.autograd.grad(losses.emma(logits, labels, K, 0.3), [logits, K])
        other = torch.autograd.grad(loss(logits, labels, K, 0.3), [logits, K])
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda f, k: loss(f, labels, k, 0.3), (logits, K))


def test_a_smaller_constant_is_a_smaller_loss():
    for name in ("emma", "gloro", "trades", "margin"):
        assert losses.LOSSES[name](LOGITS, LABELS, 0.1 * K, 0.5) < losses.LOSSES[name](LOGITS, LABELS, K, 0.5)


def test_distances_of_rows():
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    distances = losses.row_distances(weight)
    root = math.sqrt(2.0)
    expected = torch.tensor([[0.0, root, 0.0], [root, 0.0, root], [0.0, root, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(distances, expected)
    distances.sum().backward()
    assert weight.grad.isfinite().all()  # equal rows have no slope, and no NaN

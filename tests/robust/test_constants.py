"""Constants of margins: never below what pairs attain, and never the tempting wrong ones."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.config import EstimateConfig
from lipray.errors import ModelError, UsageError
from lipray.model.evaluate import evaluate
from lipray.model.network import Node, Softmax
from lipray.robust.classifier import as_classifier, head_of, normalised
from lipray.robust.constants import SOURCES, head_constants, least_constants, margin_constants
from tests.maps import Maps

SERIAL = EstimateConfig(executor="serial", lower_starts=0)


def small(seed=0, classes=4, *, dense=True):
    maps = Maps(1, 5, 5, seed=seed)
    maps.conv(2, padding=1)
    maps.act()
    maps.conv(2, padding=1, stride=2)
    maps.act()
    maps.flatten()
    maps.dense(classes)
    if not dense:
        maps.act()
    return maps


def linear(weight):
    maps = Maps(1, 2, 2)
    maps.flatten()
    maps.dense(np.asarray(weight, dtype=np.float64))
    return maps.network()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 9), st.sampled_from([1.0, 1e-30, 3.7, 1e20]))
def test_head_constants_are_above_exact_arithmetic(seed, classes, width, before):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, width)).astype(np.float32) * 10.0 ** rng.integers(-3, 4)
    weight[1] = weight[0] if seed % 3 == 0 else weight[1]
    table = head_constants(weight, before)
    assert (table == table.T).all()
    for i in range(classes):
        for j in range(classes):
            square = sum(
                (Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(weight[i], weight[j], strict=True)
            )
            assert Fraction(float(table[i, j])) ** 2 >= square * Fraction(before) ** 2
            assert (table[i, j] == 0.0) == (square == 0)
            assert table[i, j] <= before * math.sqrt(square) * (1 + 1e-12)


@pytest.mark.parametrize("method", ["ellipsoid", "product", "frequency"])
@pytest.mark.parametrize("seed", [0, 1])
def test_constants_are_above_what_pairs_of_inputs_attain(method, seed):
    import torch

    network = small(seed).network()
    options = SERIAL.model_copy(update={"method": method, "iterations": None if method == "product" else 1})
    constants = margin_constants(network, "small", options)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, *network.input_shape, dtype=torch.float64, generator=generator)
    y = x + torch.randn(x.shape, dtype=torch.float64, generator=generator) * 0.1
    apart = (evaluate(network, x) - evaluate(network, y)).numpy()
    steps = np.linalg.norm((x - y).numpy().reshape(len(x), -1), axis=1)
    for i in range(4):
        for j in range(4):
            attained = (np.abs(apart[:, i] - apart[:, j]) / steps).max()
            assert attained <= constants.pairwise[i, j]
    assert (np.diagonal(constants.pairwise) == 0.0).all()
    assert (constants.pairwise <= math.sqrt(2) * constants.upper * (1 + 1e-12)).all()
    assert sum(constants.shares.values()) == pytest.approx(1.0)
    assert set(constants.shares) == set(SOURCES)


def test_the_least_of_every_pair_is_taken():
    shaped = np.array([[0.0, 1.0, 9.0], [1.0, 0.0, 2.0], [9.0, 2.0, 0.0]])
    headed = np.array([[0.0, 3.0, 2.0], [3.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
    table, source = least_constants(1.9, 3, shaped, headed, None)
    assert table[0].tolist() == [0.0, 1.0, 2.0]
    assert table[1, 2] == 2.0
    assert source[0, 1:].tolist() == [1.0, 2.0]
    assert source[1, 2] == 1.0
    alone, source = least_constants(1.0, 3, None, None, None)
    assert alone[0, 1] == pytest.approx(math.sqrt(2.0))
    assert (source == 0.0).all()


def test_each_pair_on_its_own_is_no_looser_and_still_above_what_is_attained():
    import torch

    network = small(2, classes=3).network()
    options = SERIAL.model_copy(update={"method": "ellipsoid", "iterations": 3})
    apart = margin_constants(network, "small", options, each_pair=True)
    together = margin_constants(network, "small", options)
    assert (apart.pairwise <= together.pairwise).all()
    assert apart.shares["pair"] > 0.0
    assert (apart.pairwise == apart.pairwise.T).all()
    x = torch.randn(4000, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.requires_grad_()
    values = evaluate(network, x)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gradient = torch.autograd.grad((values[:, i] - values[:, j]).sum(), x, retain_graph=True)[0]
        assert float(gradient.flatten(1).norm(dim=1).max()) <= apart.pairwise[i, j]


def test_a_linear_classifier_has_exact_constants():
    weight = np.random.default_rng(0).normal(size=(5, 4))
    constants = margin_constants(linear(weight), "linear", SERIAL)
    wanted = np.linalg.norm(weight[:, None] - weight[None], axis=2)
    np.testing.assert_allclose(constants.pairwise, wanted, rtol=1e-12)
    assert (constants.pairwise >= wanted * (1 - 1e-15)).all()
    assert constants.before == 1.0


def test_rows_of_norm_one_do_not_make_a_margin_one_lipschitz():
    """The tempting constant L of what comes before the head is half of what opposite rows attain."""
    constants = margin_constants(linear([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]), "opposite", SERIAL)
    assert constants.before == 1.0
    assert constants.pairwise[0, 1] == pytest.approx(2.0, rel=1e-12)
    assert constants.pairwise[0, 1] >= 2.0


def test_equal_rows_have_no_difference_to_bound():
    constants = margin_constants(linear([[1.0, 2.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0, 1.0]]), "equal", SERIAL)
    assert constants.pairwise[0, 1] == 0.0
    assert constants.pairwise[0, 2] > 0.0


def test_without_a_dense_end_the_whole_network_bounds():
    network = small(dense=False).network()
    assert head_of(network) is None
    constants = margin_constants(network, "activated", SERIAL.model_copy(update={"method": "product"}))
    assert constants.before is None
    assert constants.shares["whole"] == 1.0
    assert constants.pairwise[0, 1] == pytest.approx(math.sqrt(2) * constants.upper)


def test_the_cut_computes_what_the_head_reads():
    import torch

    network = small(3).network()
    head = head_of(network)
    x = torch.randn(5, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = evaluate(head.before, x).flatten(1).numpy()
    np.testing.assert_allclose(inner @ head.weight.T, evaluate(network, x).numpy(), atol=1e-12)
    assert head.before.nodes[-1].op.__class__.__name__ == "Activation"


@pytest.mark.parametrize("log", [True, False])
def test_a_last_softmax_is_left_out_and_said_so(log):
    maps = small()
    plain = maps.network()
    maps.nodes.append(Node("soft", Softmax(log), (maps.last,), maps.nodes[-1].shape))
    network, notes = as_classifier(maps.network(), "soft")
    assert network.content_hash() == plain.content_hash()
    assert "softmax was left out" in notes[0]
    assert as_classifier(plain, "plain")[1] == ()


def test_normalisation_is_part_of_the_network_and_counts():
    import torch

    network = small(1).network()
    ready, notes = as_classifier(network, "normalised", mean=(0.3,), std=(0.2,))
    x = torch.rand(6, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(evaluate(ready, x), evaluate(network, (x - 0.3) / 0.2), rtol=1e-10, atol=1e-12)
    options = SERIAL.model_copy(update={"method": "product"})
    before, after = (margin_constants(net, "n", options).pairwise[0, 1] for net in (network, ready))
    assert after == pytest.approx(5.0 * before, rel=1e-9)
    assert "normalisation" in notes[0]


def test_normalisation_is_per_channel():
    maps = Maps(3, 4, 4)
    maps.conv(2)
    maps.flatten()
    maps.dense(2)
    import torch

    network = maps.network()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    moved = (x - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    ready = normalised(network, mean, std)
    np.testing.assert_allclose(evaluate(ready, x), evaluate(network, moved), atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.1, 0.2), (1.0,), "2 numbers are given for 1 channels"),
        ((0.0,), (0.0,), "not positive"),
        ((0.0,), (-1.0,), "not positive"),
        ((math.nan,), (1.0,), "not finite"),
        ((0.0,), (1e-320,), "too small"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(mean, std, words):
    with pytest.raises(UsageError, match=words):
        as_classifier(small().network(), "n", mean, std)


def test_one_logit_and_maps_are_no_classifier():
    with pytest.raises(ModelError, match="one output") as caught:
        as_classifier(small(classes=1).network(), "binary")
    assert "torch.cat" in caught.value.hint
    maps = Maps(1, 4, 4)
    maps.conv(3)
    with pytest.raises(ModelError, match="no vector of logits"):
        as_classifier(maps.network(), "map")

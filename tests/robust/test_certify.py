"""Certified radii: exact where the truth is known, below what an attack finds, and broken where K is wrong."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lipray
from lipray.config import EstimateConfig
from lipray.data.labelled import labelled
from lipray.errors import BrokenSampleError, DataError, UsageError
from lipray.model import activations as act
from lipray.model.evaluate import evaluate, prepare
from lipray.model.network import Dense, Network, Node, Reshape, Softmax
from lipray.robust import certify as certifying
from lipray.robust.attack import AttackOptions, attack
from lipray.robust.certify import certify_network
from lipray.robust.constants import Constants
from lipray.robust.radii import batch_size, certified_radii, is_blurred, logits, node_constants
from tests.maps import Maps
from tests.networks import networks

SERIAL = EstimateConfig(executor="serial", lower_starts=0, method="product")
QUICK = AttackOptions(restarts=3, steps=40)


def small(seed=0, classes=4, slopes=None):
    maps = Maps(1, 5, 5, seed=seed)
    maps.conv(3, padding=1)
    maps.act() if slopes is None else maps.act(slopes)
    maps.conv(3, padding=1, stride=2)
    maps.act() if slopes is None else maps.act(slopes)
    maps.flatten()
    maps.dense(classes)
    return maps.network()


def linear(weight):
    maps = Maps(1, 2, 2)
    maps.flatten()
    maps.dense(np.asarray(weight, dtype=np.float64))
    return maps.network()


def examples(network, count=24, seed=0, classes=None):
    rng = np.random.default_rng(seed)
    classes = classes or network.output_shape[0]
    return labelled(
        rng.random((count, *network.input_shape)), rng.integers(0, classes, count), "drawn", classes=classes
    )


def scaled_constants(factor):
    """``margin_constants`` with all constants of pairs multiplied by a factor, as a defect would."""

    def made(*arguments, **options):
        right = real(*arguments, **options)
        return Constants(right.pairwise * factor, right.source, right.upper, right.lower, right.before, right.method)

    real = certifying.margin_constants
    return made


def test_a_linear_classifier_has_its_distance_to_the_boundary():
    weight = np.random.default_rng(1).normal(size=(5, 4))
    data = examples(linear(weight))
    result = certify_network(linear(weight), data, SERIAL, attacked=QUICK)
    values = data.x.reshape(len(data), -1).astype(np.float64) @ weight.T
    for index in range(len(data)):
        j = int(values[index].argmax())
        apart = [i for i in range(5) if i != j]
        distances = {i: (values[index, j] - values[index, i]) / np.linalg.norm(weight[j] - weight[i]) for i in apart}
        rival = min(distances, key=distances.get)
        assert result.predictions[index] == j
        assert result.rivals[index] == rival
        assert result.radii[index] == pytest.approx(distances[rival], rel=1e-12)
        assert result.radii[index] < result.empirical[index] <= distances[rival] * (1 + 1e-3)
        assert result.others[index] == rival


@pytest.mark.parametrize("seed", range(4))
def test_no_certified_radius_is_above_what_the_attack_finds(seed):
    network = small(seed, slopes=act.silu() if seed == 3 else None)
    options = SERIAL.model_copy(update={"method": "ellipsoid", "iterations": 3}) if seed == 0 else SERIAL
    result = certify_network(network, examples(network, seed=seed), options, attacked=QUICK, radii=[Fraction(1, 20)])
    assert (result.radii < result.empirical).all()
    assert (result.radii > 0.0).all()
    assert np.isfinite(result.empirical).mean() > 0.9
    (row,) = result.at
    assert row.verified <= row.empirical <= row.clean


@settings(max_examples=10, deadline=None)
@given(networks(), st.integers(0, 10**6))
def test_networks_of_every_layer_kind_are_not_broken(network, seed):
    """Any layers with two or more logits behind them: no radius is above the distance of another class."""
    rng = np.random.default_rng(seed)
    if len(network.output_shape) != 1 or network.output_shape[0] < 2 or seed % 2:
        if isinstance(network.nodes[-1].op, Softmax):
            network = Network(network.nodes[:-1], network.weights)
        size, last = network.nodes[-1].size, len(network.nodes)
        ends = Node("#flat", Reshape(), (last - 1,), (size,)), Node("#head", Dense("#rows", None), (last,), (3,))
        rows = rng.normal(size=(3, size)).astype(np.float32)
        network = Network((*network.nodes, *ends), {**network.weights, "#rows": rows})
    data = labelled(rng.normal(size=(6, *network.input_shape)), rng.integers(0, 2, 6), "drawn", classes=2)
    mean, std = ((0.1,), (0.5,)) if seed % 3 == 0 else (None, None)
    result = certify_network(network, data, SERIAL, attacked=AttackOptions(2, 20), mean=mean, std=std)
    assert (result.radii <= result.empirical).all()
    assert (result.radii >= 0.0).all()


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_what_the_attack_finds_is_another_class_at_that_distance(box):
    network = small(5)
    data = examples(network, 12)
    weights = prepare(network)
    x = data.x.astype(np.float64)
    radii = certified_radii(*logits(network, weights, torch.from_numpy(x)), np.ones((4, 4)) - np.eye(4))
    found = attack(network, weights, x, radii.predictions, radii.order, AttackOptions(2, 30, box=box))
    classes = evaluate(network, torch.from_numpy(found.points), weights).argmax(dim=1).numpy()
    there = found.classes >= 0
    assert there.any()
    assert (classes[there] == found.classes[there]).all()
    assert (classes[there] != radii.predictions[there]).all()
    lengths = np.linalg.norm((found.points - x).reshape(len(x), -1), axis=1)
    np.testing.assert_allclose(found.distances[there], lengths[there], rtol=1e-12)
    assert (found.distances[there] >= lengths[there]).all()
    if box is not None:
        assert found.points[there].min() >= 0.0
        assert found.points[there].max() <= 1.0


def test_more_restarts_find_no_farther_points_and_runs_repeat():
    network = small(6)
    data = examples(network, 10)
    few, more, again = (
        certify_network(network, data, SERIAL, attacked=AttackOptions(count, 30)) for count in (1, 3, 3)
    )
    assert (more.empirical <= few.empirical * 1.001).all()
    assert (more.empirical == again.empirical).all()


def test_ties_have_no_radius():
    weight = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    data = labelled(np.array([[[[0.9, 0.1], [0.0, 0.0]]], [[[0.1, 0.9], [0.0, 0.0]]]]), np.array([0, 2]), "tied")
    result = certify_network(linear(weight), data, SERIAL, attacked=QUICK, radii=[Fraction(1, 10**9)])
    assert result.radii[0] == 0.0
    assert result.radii[1] > 0.5
    assert result.at[0].verified == 0.5
    # The two that are tied are equal everywhere, and nothing separates them: the nearest other class is the third.
    near = labelled(np.full((1, 1, 2, 2), 0.5), np.array([0]), "near")
    result = certify_network(linear([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), near, SERIAL, attacked=QUICK)
    assert result.radii[0] == 0.0
    assert result.empirical[0] < 1e-6


def test_a_class_that_nothing_can_overtake_has_an_infinite_radius():
    maps = Maps(1, 2, 2)
    maps.flatten()
    maps.dense(np.array([[1.0, 2.0, 0.0, 0.0]] * 2))
    network = maps.network()
    op = network.nodes[-1].op
    from dataclasses import replace

    biased = replace(network.nodes[-1], op=replace(op, bias="b"))
    network = Network((*network.nodes[:-1], biased), {**network.weights, "b": np.array([1.0, 0.0])})
    result = certify_network(network, examples(network, 3), SERIAL, attacked=QUICK, radii=[Fraction(1000)])
    assert (result.radii == math.inf).all()
    assert (result.empirical == math.inf).all()
    assert (result.others == -1).all()
    assert result.at[0].verified == result.clean == result.at[0].empirical


def test_halved_constants_are_caught(monkeypatch):
    monkeypatch.setattr(certifying, "margin_constants", scaled_constants(0.5))
    network = linear(np.random.default_rng(1).normal(size=(3, 4)))
    kept = []
    with pytest.raises(BrokenSampleError, match="example 0 of drawn") as caught:
        certify_network(
            network, examples(network), SERIAL, attacked=QUICK, evidence=lambda broken, _: kept.append(broken)
        )
    assert caught.value.exit_code == 12
    (broken,) = kept
    values = logits(network, prepare(network), torch.from_numpy(np.stack([broken.x, broken.point])))[0]
    assert values.argmax(axis=1).tolist() == [broken.prediction, broken.other]
    assert np.linalg.norm(broken.x - broken.point) <= broken.distance <= broken.radius


@pytest.mark.parametrize("seed", range(2))
def test_constants_that_are_far_too_small_are_caught_on_deeper_networks(seed, monkeypatch):
    monkeypatch.setattr(certifying, "margin_constants", scaled_constants(0.1))
    network = small(seed)
    with pytest.raises(BrokenSampleError):
        certify_network(network, examples(network), SERIAL, attacked=QUICK)


def test_a_forgotten_deviation_is_caught(monkeypatch):
    """With inputs divided by 0.2 in front, radii from the constants of what comes after are five times too large."""
    network = linear(np.random.default_rng(2).normal(size=(3, 4)))
    data = examples(network)
    right = certify_network(network, data, SERIAL, attacked=QUICK, mean=(0.5,), std=(0.2,))
    assert (right.radii < right.empirical).all()
    monkeypatch.setattr(certifying, "margin_constants", scaled_constants(0.2))
    with pytest.raises(BrokenSampleError):
        certify_network(network, data, SERIAL, attacked=QUICK, mean=(0.5,), std=(0.2,))


def test_rows_of_norm_one_taken_as_lipschitz_one_are_caught(monkeypatch):
    def tempting(network, *arguments, **options):
        right = real(network, *arguments, **options)
        table = right.before * (1.0 - np.eye(len(right.pairwise)))
        return Constants(table, right.source, right.upper, right.lower, right.before, right.method)

    real = certifying.margin_constants
    network = linear([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    certify_network(network, examples(network), SERIAL, attacked=QUICK)
    monkeypatch.setattr(certifying, "margin_constants", tempting)
    with pytest.raises(BrokenSampleError):
        certify_network(network, examples(network), SERIAL, attacked=QUICK)


def test_accuracies_are_counted_at_exact_radii():
    data = labelled(np.array([[[[0.25, 0.0], [0.0, 0.0]]]] * 2), np.array([0, 1]), "quarter", classes=2)
    result = certify_network(linear([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]), data, SERIAL, attacked=QUICK)
    assert result.radii[0] < 0.25 < result.empirical[0]
    assert result.clean == 0.5
    assert result.verified(Fraction(1, 4)) == 0.0
    assert result.verified(Fraction(float(result.radii[0]))) == 0.5
    assert result.unbroken(Fraction(float(result.empirical[0]))) == 0.0
    assert result.unbroken(Fraction(math.nextafter(float(result.empirical[0]), 0.0))) == 0.5


def test_batches_give_what_one_batch_gives(monkeypatch):
    network = small(2)
    data = examples(network, 11)
    whole = certify_network(network, data, SERIAL)
    monkeypatch.setattr(certifying, "batch_size", lambda _: 4)
    seen = []
    parts = certify_network(network, data, SERIAL, told=lambda done, count: seen.append((done, count)))
    assert seen == [(4, 11), (8, 11), (11, 11)]
    np.testing.assert_allclose(parts.radii, whole.radii, rtol=1e-9)
    assert whole.empirical is None
    assert whole.unbroken(Fraction(1)) is None
    assert batch_size(network) > 100


def test_rounding_of_a_deep_network_is_bounded_by_its_norms():
    """Absolute values of thirty orthogonal layers of 64 grow by 5 each; their norms are 1."""
    rng = np.random.default_rng(0)
    maps = Maps(64)
    for _ in range(30):
        maps.dense(np.linalg.qr(rng.normal(size=(64, 64)))[0])
        maps.act(act.absolute())
    maps.dense(rng.normal(size=(3, 64)) / 8)
    network = maps.network()
    x = torch.from_numpy(rng.normal(size=(8, 64)))
    plain = logits(network, prepare(network), x)
    assert is_blurred(*plain)
    values, errors = logits(network, prepare(network), x, node_constants(network))
    assert (values == plain[0]).all()
    assert errors.max() < 1e-10
    assert plain[1].max() > 1e-3
    assert not is_blurred(values, errors)
    pairwise = 10.0 * (1.0 - np.eye(3))
    assert (certified_radii(*plain, pairwise).radii == 0.0).all()
    assert (certified_radii(values, errors, pairwise).radii > 0.0).all()


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 2), (1, 1, 1), (2, 2, 4)])
def test_constants_by_taps_are_above_those_of_an_estimate(kernel, stride, groups, monkeypatch):
    from lipray.robust import radii

    monkeypatch.setattr(radii, "MATRIX_BELOW", 0)
    maps = Maps(4, 6, 6, seed=kernel)
    maps.conv(8, kernel=kernel, stride=stride, groups=groups, padding=kernel // 2)
    maps.act()
    network = maps.network()
    quick, exact = node_constants(network, quick=True), node_constants(network)
    assert exact[1] * (1 - 1e-9) <= quick[1] <= kernel**2 * exact[1]
    assert quick[2] == exact[2] == 1.0


def test_the_cheapest_constants_that_suffice_are_taken(monkeypatch):
    from lipray.robust import radii

    network = small(0)
    weights, x = prepare(network), torch.rand(8, *network.input_shape, dtype=torch.float64)
    assert radii.sharp_enough(network, weights, x) is None
    monkeypatch.setattr(radii, "is_blurred", lambda _, errors: errors.max() > 0.9 * first)
    first = logits(network, weights, x)[1].max()
    assert radii.sharp_enough(network, weights, x) == node_constants(network, quick=True)
    monkeypatch.setattr(radii, "is_blurred", lambda *_: True)
    assert radii.sharp_enough(network, weights, x) == node_constants(network)


def test_data_must_fit_the_network():
    network = small()
    with pytest.raises(DataError, match="shape"):
        certify_network(network, labelled(np.zeros((2, 1, 4, 4)), np.array([0, 1]), "odd"), SERIAL)
    with pytest.raises(DataError, match="4 outputs"):
        certify_network(network, labelled(np.zeros((2, 1, 5, 5)), np.array([0, 9]), "many"), SERIAL)
    inside = examples(network)
    for box, words in (((0.0, 0.5), "outside"), ((1.0, 0.0), "not below")):
        with pytest.raises(UsageError, match=words):
            certify_network(network, inside, SERIAL, attacked=AttackOptions(box=box))
    with pytest.raises(UsageError, match="--steps"):
        certify_network(network, inside, SERIAL, attacked=AttackOptions(steps=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_search_on_a_gpu_finds_what_one_on_the_cpu_does():
    network = small(7)
    data = examples(network, 10)
    here, there = (
        certify_network(network, data, SERIAL, attacked=AttackOptions(2, 30, device=device))
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.empirical, here.empirical, rtol=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="CUDA"):
        certify_network(small(), examples(small()), SERIAL, attacked=AttackOptions(device="cuda"))


def test_from_python(tmp_path):
    plain = small(0, 3)
    last = len(plain.nodes)
    network = Network((*plain.nodes, Node("soft", Softmax(log=False), (last - 1,), (3,))), plain.weights)
    rng = np.random.default_rng(0)
    data = rng.random((10, 1, 5, 5)).astype(np.float32), rng.integers(0, 3, 10)
    options = {"lower_starts": 0, "method": "product"}
    result = lipray.certify_radii(network, data, radii=["36/255", 0.25], attack=QUICK, out=tmp_path / "out", **options)
    assert [row.radius for row in result.at] == [Fraction(36, 255), Fraction(1, 4)]
    assert (result.radii < result.empirical).all()
    classes = evaluate(network, torch.from_numpy(data[0]).double()).argmax(dim=1).numpy()
    assert (classes == result.predictions).all()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"radii.csv", "robustness.json", "constants.npz"}
    assert "softmax" in result.notes[0]
    again = lipray.certify_radii(result.network, data, attack=False, **options)
    assert again.empirical is None
    assert (again.radii == result.radii).all()
    named = lipray.certify_radii(plain, labelled(*data, "named", classes=3), attack=False, each_pair=True, **options)
    assert (named.radii >= result.radii).all()

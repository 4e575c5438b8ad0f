"""Products that underflow, one after the other: what may be lost is allowed for."""

import math

import numpy as np
import pytest
import torch
from flint import fmpq
from scipy import sparse as sp

import lipray
from lipray.errors import ModelError
from lipray.model.importer import import_module
from lipray.model.network import ChannelAffine, Conv
from lipray.verify.elimination import Blocks
from lipray.verify.layer_norms import operation_constant, scaled_convolution_constant, torus_norm
from lipray.verify.linear_maps import norm_bound
from lipray.verify.product import graph_product, sector_product
from lipray.verify.sector import lower
from lipray.verify.spectral import spectral_norm_bound
from lipray.verify.torus import symbols as sy
from lipray.verify.torus.bundle import BundleResult
from lipray.verify.torus.head import Head, read
from lipray.verify.torus.proof import add_up
from lipray.verify.torus.tail import with_input
from lipray.verify.underflow import LOST, frobenius, power_of_two
from tests.ball import rational
from tests.extremes import LEAST, PROOFS, Attained, check
from tests.maps import Maps

every_proof = pytest.mark.parametrize("kind", PROOFS)


# -- products of a network's numbers


def in_a_row(*factors):
    """Multiples of a map of one channel, as coefficients of sums."""
    maps = Maps(1, 4)
    for factor in factors:
        maps.sum(maps.last, coefficients=(factor,))
    return maps.network()


@every_proof
@pytest.mark.parametrize("factors", [(1e-200, 1e-200, 1e300, 1e300), (1e-160, 1.2342e-160, 1e160, 1e150)])
def test_coefficients_whose_product_underflows(kind, factors):
    check(in_a_row(*factors), [kind])


def test_a_coefficient_of_zero_leaves_nothing():
    assert sector_product(lower(in_a_row(2.0, 0.0))) == 0.0
    assert lower(in_a_row(2.0, 0.0)).output == ()
    assert lower(in_a_row(1e-200, 1e-200)).output[0].matrix.nnz == 0


def test_an_explicit_zero_has_norm_zero():
    assert spectral_norm_bound(sp.csr_array((np.zeros(1), ([0], [0])), shape=(2, 2))) == 0.0


def test_norms_leave_their_matrix_alone():
    """Products sort a matrix' indices where they are."""
    matrix = sp.csr_array((np.array([1.0, 2.0, 3.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    before = matrix.toarray()
    for bound in (spectral_norm_bound, norm_bound):
        bound(matrix)
        assert (matrix.toarray() == before).all()


def normalised(weight, scale, *after):
    maps = Maps(1, 4)
    maps.conv(np.full((1, 1, 1), weight))
    maps.affine([scale])
    for factor in after:
        maps.conv(np.full((1, 1, 1), factor))
    return maps.network()


@every_proof
@pytest.mark.parametrize("factors", [(1e-200, 1e-200, 1e300, 1e200), (1e-160, 1.2342e-160, 1e300, 1e10)])
def test_a_kernel_times_a_norms_scale_that_underflows(kind, factors):
    check(normalised(*factors), [kind])


def test_the_product_along_the_graph_counts_a_scaled_kernel_that_underflows():
    network = normalised(1e-200, 1e-200, 1e300, 1e200)
    assert graph_product(network) >= 1e100
    value = scaled_convolution_constant(network.nodes[1], np.array([1e-200]), network.weights, (1, 4))
    assert 0.0 < value <= 2.0 * LOST
    assert scaled_convolution_constant(network.nodes[1], np.array([0.0]), network.weights, (1, 4)) == 0.0


@pytest.mark.parametrize("scale", [LEAST, 2.0**-1070, 2.0**-1022])
def test_rounded_factors_carry_an_error_however_small(scale):
    maps = Maps(1, 4)
    maps.affine([scale])
    network = maps.network()
    assert operation_constant(network.nodes[1].op, network.weights, (1, 4), (1, 4)) > scale
    (term,) = lower(network).output
    assert (term.error.diagonal() >= 2.0**-1074).all()
    symbol = sy.scaling(torch.tensor([scale], dtype=torch.float64), rounded=True)
    assert float(symbol.error) > 0.0
    assert float(symbol.magnitude) > scale


def test_weights_below_the_smallest_normal_number_round_too():
    """Two rows cancel in floating point, and not exactly: γ|A| alone would underflow."""
    rng = np.random.default_rng(0)
    while True:
        small = rng.integers(1, 1000, size=2) * LEAST
        large = rng.uniform(0.5, 1.0, size=2) * 1e300
        large[1] = -(small[0] * large[0]) / small[1]
        exact = sum(rational(a) * rational(b) for a, b in zip(small, large, strict=True))
        if float((small[None] @ large[:, None]).item()) == 0.0 and exact != 0:
            break
    maps = Maps(1)
    maps.dense(large[:, None])
    maps.dense(small[None])
    maps.dense([[1e100]])
    network = maps.network()
    assert Attained(network).squared() > fmpq(10) ** 100
    assert rational(sector_product(lower(network))) ** 2 > Attained(network).squared()
    check(network)


def test_an_error_where_the_number_cancelled_underflows():
    tiny, rng = 2.0**-600, np.random.default_rng(0)
    first = 0.1
    second = next(w for w in rng.uniform(0.1, 1.0, size=100) if rational(first) * rational(w) != rational(first * w))
    maps = Maps(1)
    maps.dense([[first * tiny]])
    one = maps.dense([[second]])
    other = maps.dense([[first * second * tiny]], source=0)
    maps.sum(one, other, coefficients=(1.0, -1.0))
    for factor in (1e-130, 1e300, 1e300):
        maps.dense([[factor]])
    network = maps.network()
    assert Attained(network).squared() > fmpq(10) ** 500
    check(network)


@pytest.mark.parametrize("count", range(2, 12))
def test_norms_of_the_smallest_numbers(count):
    row = np.full((1, count), LEAST)
    kernel = row[:, :, None]
    op = Conv("w", None, (1,), ((0, 0),), (1,))
    for bound in (spectral_norm_bound(row), norm_bound(row), torus_norm(kernel, op, (count, 5000))):
        assert (bound / LEAST) ** 2 >= count
        assert bound <= (math.sqrt(count) + 2.0) * LEAST


@pytest.mark.parametrize("value", [LEAST, 2.0**-1022, 1.0, np.nextafter(2.0, 0.0), 2.0, np.finfo(float).max])
def test_powers_of_two(value):
    power = power_of_two(value)
    assert math.frexp(power)[0] == 0.5
    assert power <= value < 2.0 * power


def test_a_kernel_that_is_not_finite_has_no_norm():
    op = Conv("w", None, (1,), ((0, 0),), (1,))
    for value in (math.inf, math.nan):
        assert torus_norm(np.array([[[value]]]), op, (1, 5000)) == math.inf


def test_symbols_of_the_smallest_weights():
    op = Conv("w", None, (1,), ((0, 0),), (1,))
    for at in range(1, 5):
        symbol = sy.convolution(op, np.array([[[0.0, LEAST]]]), (torch.tensor([at]),), (5,))
        off = abs(complex(symbol.values.item()) / LEAST - np.exp(2j * math.pi * at / 5))
        assert off <= float(symbol.error) / LEAST


def test_multiples_of_symbols():
    once = sy.scale(1e-200, sy.identity(1))
    twice = sy.scale(1e-200, once)
    assert float(once.error) < 1e-215
    assert float(twice.error) >= LOST
    assert float(twice.magnitude) >= LOST
    assert float(sy.scale(0.0, once).magnitude) == 0.0
    assert float(sy.scale(0.0, once).error) == 0.0


def test_the_first_map_behind_a_head():
    small = torch.tensor([[3 * LEAST, -3 * LEAST]], dtype=torch.float64)
    factor = torch.tensor([[1.1e300, 0.0], [1.3e300, 1.0]], dtype=torch.float64)
    blocks = Blocks((2, 1), ({}, {0: small}), ({}, {}), ({}, {}), 2, 1.0)
    found = with_input(blocks, factor, proof=True)
    exact = sum(rational(a) * rational(b) for a, b in zip(small[0].tolist(), factor[:, 0].tolist(), strict=True))
    assert abs(rational(found.maps[1][0][0, 0]) - exact) <= rational(found.errors[1][0][0, 0])
    assert float(found.errors[1][0][0, 0]) > 0.0


# -- Frobenius norms


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-160, 1.0, 1e160, 1e300])
def test_frobenius_norms_of_any_size(size):
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(3, 4, 5)) + 1j * rng.normal(size=(3, 4, 5))
    matrices = torch.from_numpy(plain) * size
    wanted = torch.linalg.matrix_norm(torch.from_numpy(plain)) * size
    assert frobenius(matrices).tolist() == pytest.approx(wanted.tolist(), rel=1e-3 if size < 1e-300 else 1e-12)
    assert frobenius(torch.zeros(2, 3, 3)).tolist() == [0.0, 0.0]
    assert frobenius(matrices[0]).shape == ()


def test_frobenius_norms_keep_their_bits():
    matrices = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert frobenius(matrices).equal(torch.linalg.matrix_norm(matrices))


@pytest.mark.parametrize("rows", [None, 1.0, 1e-170])
@pytest.mark.parametrize("size", [1e-170, 1.0, 1e200])
def test_errors_of_a_head_are_relative_to_what_it_reads(rows, size):
    """The error is above u times what is added up, of whatever size."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(5, 3, 3, dtype=torch.complex128, generator=generator)
    shape = half @ half.mH
    shape = (shape + shape.mH) * (size / 2)
    weight = None if rows is None else torch.randn(4, 15, dtype=torch.float64, generator=generator) * rows
    found, error, _ = read(
        Head(1, 3, (5,), None, weight), shape, torch.ones(5, dtype=torch.float64), (torch.arange(5),), (5,)
    )
    peak = float(found.abs().max())
    assert math.isfinite(error)
    assert peak * 2.0**-53 <= error
    results = [BundleResult(True, found.numpy(), error) for _ in range(3)]
    total, summed = add_up(results)
    assert summed >= 3.0 * error + float(total.abs().max()) * 2.0**-53


def test_pools_whose_product_underflows_stay_apart():
    maps = Maps(1, 8)
    maps.conv(np.ones((1, 1, 1)))
    maps.average(divisor=[1e200])
    maps.average(divisor=[1e200])
    maps.flatten()
    for factor in (1e300, 1e200):
        maps.dense(np.full((1, maps.nodes[-1].size), factor))
    network = maps.network()
    assert Attained(network).squared() > fmpq(10) ** 198
    check(network)


# -- the importer


class Multiples(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.relu(self.layer(x) * 1e-200 * 1e-200) * 1e200 * 1e200


@pytest.mark.parametrize("method", ["product", "ellipsoid", "frequency", "hybrid"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_an_estimate_is_above_a_constant_whose_factors_underflow(method):
    torch.manual_seed(0)
    layer, shape = torch.nn.Conv1d(1, 2, 3, padding=1, bias=False), (1, 6)
    if method in {"product", "ellipsoid"}:
        layer, shape = torch.nn.Linear(3, 3, bias=False), (3,)
    bound = lipray.estimate(Multiples(layer).eval(), shape, method=method, executor="serial")
    true = layer.weight.detach().abs().max().item()
    assert bound.upper >= true


def norm(weight, variance):
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Conv1d(2, 1, 1)).double().eval()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(weight, dtype=torch.float64))
        module[0].running_var.fill_(variance)
    return module


def test_a_folded_norm_that_underflows_is_refused_by_name():
    with pytest.raises(ModelError, match=r"layer '0' .*2\^-1022"):
        import_module(norm([1e-200, 1.0], 1e300), (2, 4))
    with pytest.raises(ModelError, match=r"layer '0'"):
        import_module(norm([1e-160, 1.0], 1e300), (2, 4))


@pytest.mark.parametrize("weight", [[0.0, 1.0], [1e-45, 1.0], [1e-150, 1.0]])
def test_a_norm_of_zero_or_small_weights_is_none_of_them(weight):
    network = import_module(norm(weight, 1e3), (2, 4))
    scale = next(network.weights[node.op.scale] for node in network.nodes if isinstance(node.op, ChannelAffine))
    assert (scale[0] == 0.0) == (weight[0] == 0.0)

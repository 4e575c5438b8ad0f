"""Largest eigenvalues and norms come from above, and close."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lipray.verify.spectral import largest_eigenvalue_bound, spectral_norm_bound


def orthogonal(rng, n, *, real=True):
    matrix = rng.normal(size=(n, n)) + (0.0 if real else 1j * rng.normal(size=(n, n)))
    return np.linalg.qr(matrix)[0]


def spectrum(kind, n, rng):
    return {
        "spread": np.sort(rng.random(n)),
        "clustered": 1.0 - 1e-14 * rng.random(n),
        "equal": np.ones(n),
        "graded": 10.0 ** -np.linspace(0, 300, n),
        "rank one": np.eye(1, n)[0],
        "half zero": np.r_[np.zeros(n - n // 2), rng.random(n // 2)] if n > 1 else np.ones(1),
        "close pair": np.r_[1.0, 1.0 - 1e-12, 0.5 * rng.random(n)][:n],
    }[kind]


KINDS = ["spread", "clustered", "equal", "graded", "rank one", "half zero", "close pair"]


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e290])
@pytest.mark.parametrize("real", [True, False], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_and_close(kind, real, scale):
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        values = spectrum(kind, n, rng)
        basis = orthogonal(rng, n, real=real)
        matrix = (basis * values) @ basis.conj().T
        matrix = (matrix + matrix.conj().T) / 2 * scale
        bound = largest_eigenvalue_bound(torch.from_numpy(matrix))
        # The matrix differs from the one of known eigenvalues by its own rounding.
        true = float(np.linalg.eigvalsh(matrix / scale)[-1]) * scale
        assert true * (1.0 - 1e-14 * n) <= bound <= true * (1.0 + 1e-9)


@pytest.mark.parametrize("kind", ["spread", "clustered", "rank one", "close pair", "half zero"])
@pytest.mark.parametrize("real", [True, False], ids=["real", "complex"])
def test_large_matrices_are_estimated_by_lanczos_and_proven_all_the_same(kind, real):
    rng = np.random.default_rng(1)
    n = 450
    basis = orthogonal(rng, n, real=real)
    matrix = (basis * spectrum(kind, n, rng)) @ basis.conj().T
    matrix = (matrix + matrix.conj().T) / 2
    true = float(np.linalg.eigvalsh(matrix)[-1])
    assert true * (1.0 - 1e-12) <= largest_eigenvalue_bound(torch.from_numpy(matrix)) <= true * (1.0 + 2e-9)


def test_a_poor_estimate_is_found_out(monkeypatch):
    """An estimate far too low must cost tightness, never soundness."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    matrix[0, 1] = matrix[1, 0] = 0.5
    true = float(torch.linalg.eigvalsh(matrix)[-1])
    for wrong in (0.0, 0.1, true * (1.0 - 1e-9), true * 0.7):
        monkeypatch.setattr("lipray.verify.spectral._estimate", lambda _, wrong=wrong: wrong)
        assert largest_eigenvalue_bound(matrix) >= true


def test_a_rotated_estimate_that_is_too_low_is_found_out(monkeypatch):
    rng = np.random.default_rng(2)
    basis = orthogonal(rng, 6)
    matrix = torch.from_numpy((basis * [0.0, 0.0, 0.1, 0.1, 0.2, 9.0]) @ basis.T)
    matrix = (matrix + matrix.T) / 2
    for wrong in (0.0, 4.0, 8.999999):
        monkeypatch.setattr("lipray.verify.spectral._estimate", lambda _, wrong=wrong: wrong / float(2**2))
        assert largest_eigenvalue_bound(matrix) >= 9.0 * (1.0 - 1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(0, 2**16), st.integers(0, 2))
def test_the_bound_is_above_in_high_precision(n, seed, kind):
    """det(tI - A) and all leading minors positive at t = bound, in 60 digits: t is above every eigenvalue."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, [n, 1, 2][kind]))
    matrix = factor @ factor.T
    matrix = (matrix + matrix.T) / 2
    bound = largest_eigenvalue_bound(torch.from_numpy(matrix))
    with mp.workdps(60):
        exact = mp.matrix([[mpf(float(v)) for v in row] for row in matrix])
        assert mpf(bound) >= mp.eigsy(exact, eigvals_only=True)[n - 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_finite_bound(value):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = value
    assert largest_eigenvalue_bound(matrix) == math.inf
    assert spectral_norm_bound(np.array([[1.0, value]])) == math.inf


def test_nothing_and_zero():
    assert largest_eigenvalue_bound(torch.zeros(0, 0, dtype=torch.float64)) == 0.0
    assert largest_eigenvalue_bound(torch.zeros(4, 4, dtype=torch.float64)) == 0.0
    assert spectral_norm_bound(np.zeros((3, 2))) == 0.0
    assert spectral_norm_bound(np.zeros((3, 2)), 0.25) == 0.25


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**16),
    st.sampled_from((0.05, 0.5, 1.0)),
    st.sampled_from((1e-250, 1e-30, 1.0, 1e30, 1e250)),
)
def test_norms_of_matrices_are_above_and_close(rows, columns, seed, density, scale):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    with mp.workdps(40):
        exact = mp.matrix([[mpf(float(v)) for v in row] for row in matrix * scale])
        true = max(mp.svd_r(exact, compute_uv=False)) if matrix.any() else mpf(0)
        for form in (matrix * scale, sp.csr_array(matrix * scale)):
            bound = spectral_norm_bound(form)
            assert true <= mpf(bound) <= true * (1 + mpf(10) ** -9)
        assert mpf(spectral_norm_bound(matrix * scale, 0.5 * scale)) >= true + mpf(0.5 * scale)


@pytest.mark.parametrize("size", [300, 20_000])
def test_long_sums_are_covered(size):
    """One row: the norm squared is a sum whose rounding grows with its length."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        row = rng.uniform(0.5, 1.0, size=size)
        exact = sum(Fraction(float(value)) ** 2 for value in row)
        for form in (row[None], row[:, None], sp.csr_array(row[None])):
            assert Fraction(spectral_norm_bound(form)) ** 2 >= exact


def test_known_norms():
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    assert 4.0 <= spectral_norm_bound(hadamard) <= 4.0 * (1.0 + 1e-12)
    assert 3.0 <= spectral_norm_bound(np.diag([1.0, -3.0, 2.0])) <= 3.0 * (1.0 + 1e-12)
    assert 2.0 <= spectral_norm_bound(np.ones((2, 2))) <= 2.0 * (1.0 + 1e-12)
    # [-1, 2, -1] on n points with zero padding has norm 2 + 2 cos(pi / (n + 1)).
    for n in (3, 8, 30):
        matrix = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        true = 2.0 + 2.0 * math.cos(math.pi / (n + 1))
        assert true * (1.0 - 1e-15) <= spectral_norm_bound(matrix) <= true * (1.0 + 1e-9)

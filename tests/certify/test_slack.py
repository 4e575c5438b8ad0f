"""The slack of the interior-point method: a chain's blocks say what the whole matrix says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.certify import interior, slack
from lipray.certify.closed_form import closed_form
from lipray.certify.inequality import assemble, is_chain
from lipray.certify.scaled import ScaledProblem
from lipray.certify.slack import ChainSlack, DenseSlack, factored
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.sector import lower
from tests.certify.test_optimisers import chain, residual, scaled


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 7), min_size=3, max_size=7), st.integers(0, 10**6), st.floats(1.1, 4.0))
def test_a_chain_says_what_the_whole_matrix_says(widths, seed, above):
    rng = np.random.default_rng(seed)
    blocks = prepare(lower(chain(rng, *widths)))
    form, start, value = scaled(blocks, closed_form(blocks))
    problem = ScaledProblem(form, start, value)
    y = torch.from_numpy(rng.uniform(0.9, 1.0, problem.n + 1))
    y[problem.n] = above
    ours, theirs = factored(problem, y), DenseSlack.at(problem, y)
    assert (ours is None) == (theirs is None)
    if ours is None:
        return
    assert isinstance(ours, ChainSlack)
    G = theirs.inverse()
    assert close(ours.inverse(), G)
    S = torch.from_numpy(rng.normal(size=(1, problem.m, problem.m)))
    assert close(ours.under(S.clone(), G).mT, theirs.under(S.clone(), G))
    dy = torch.from_numpy(rng.normal(size=problem.n + 1))
    w = torch.from_numpy(rng.normal(size=(1, problem.m, 2)))
    assert close(problem.op_times(dy, w), problem.op(dy) @ w)
    one, other = (min(item.reach(dy, problem.m), 1e3) for item in (ours, theirs))
    assert one == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("widths", [(4, *[12] * 9, 3), (30, 20, 25, 8), (3, 5, 2)])
def test_a_chain_takes_the_steps_of_the_whole_matrix(widths, monkeypatch):
    blocks = prepare(lower(chain(np.random.default_rng(1), *widths)))
    assert is_chain(blocks)
    problem = scaled(blocks, closed_form(blocks))
    ours = interior.minimise(*problem)
    monkeypatch.setattr(slack, "links_of", lambda _: None)
    theirs = interior.minimise(*problem)
    assert ours.converged
    assert theirs.converged
    assert abs(ours.iterations - theirs.iterations) <= 2
    assert ours.value == pytest.approx(theirs.value, rel=1e-6)


def test_skips_and_outputs_that_read_more_are_no_chain():
    blocks = prepare(lower(residual(np.random.default_rng(2))))
    assert not is_chain(blocks)
    form = assemble(blocks)
    base = closed_form(blocks)
    bound = evaluate(blocks, base).bound / blocks.factor
    start = torch.from_numpy(np.concatenate(base))
    problem = ScaledProblem(form, start, bound**2)
    assert slack.links_of(problem) is None
    assert isinstance(factored(problem, torch.full((problem.n + 1,), 2.0, dtype=torch.float64)), DenseSlack)
    # A chain whose output reads the input, too.
    straight = prepare(lower(chain(np.random.default_rng(2), 3, 4, 4, 2)))
    form, start, value = scaled(straight, closed_form(straight))
    assert slack.links_of(ScaledProblem(form, start, value)) is not None
    form.C[..., 0] = 1e-3
    assert slack.links_of(ScaledProblem(form, start, value)) is None


def test_what_is_not_positive_definite_has_no_slack():
    blocks = prepare(lower(chain(np.random.default_rng(3), 3, 4, 4, 2)))
    problem = ScaledProblem(*scaled(blocks, closed_form(blocks)))
    for rho in (0.0, -1.0, math.nan, 1e-9):
        y = torch.ones(problem.n + 1, dtype=torch.float64)
        y[problem.n] = rho
        assert factored(problem, y) is None

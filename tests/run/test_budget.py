"""What is left of a budget, and how it is shared out."""

import math
import time

import pytest

from lipray.partition.plan import TorusWork
from lipray.partition.subproblem import Settings
from lipray.run.budget import Clock, affordable, round_limit
from lipray.run.lower_bound import ascent_seconds, multiply_adds, plan_ascents
from tests.maps import resnet18

WORK = TorusWork(
    sides=((4, 4),),
    switch=None,
    groups=10,
    group_memory=1,
    tail_memory=0,
    pass_seconds=10.0,
    round_seconds=22.0,
    closed_form_seconds=30.0,
)


def test_a_clock_without_a_budget_never_ends():
    clock = Clock.begin(None)
    assert clock.left == math.inf
    assert clock.search is None
    assert clock.solve_limit(2, 2, None) is None
    assert clock.solve_limit(2, 2, 7.0) == 7.0


def test_a_budget_runs_down_to_zero_and_not_below():
    now = time.monotonic()
    assert 9.0 < Clock(10.0, now).left <= 10.0
    assert Clock(10.0, now - 11.0).left == 0.0


def test_sub_problems_share_two_thirds_in_waves():
    clock = Clock.begin(90.0)
    assert clock.solve_limit(1, 1, None) == pytest.approx(60.0)
    assert clock.solve_limit(4, 2, None) == pytest.approx(30.0)
    assert clock.solve_limit(4, 2, 5.0) == 5.0
    assert clock.search == pytest.approx(15.0)


def test_problems_on_tori_share_what_is_left():
    settings = Settings()
    assert round_limit(WORK, settings, 2, 100.0, 1.0) == 100.0
    assert round_limit(WORK, settings, 2, 100.0, 0.5) == 50.0
    assert round_limit(WORK, Settings(time_limit=20.0), 2, 100.0, 1.0) == 20.0
    assert round_limit(WORK, settings, 1, 0.0, 1.0) > 0.0


def test_without_a_budget_a_rule_or_the_iterations_limit_it():
    assert round_limit(WORK, Settings(), 1, math.inf, 1.0) == pytest.approx(120.0)
    assert round_limit(WORK, Settings(iterations=0), 1, math.inf, 1.0) is None
    assert round_limit(WORK, Settings(time_limit=3.0), 1, math.inf, 1.0) == 3.0


def test_what_is_far_too_long_is_not_begun():
    assert affordable(WORK, 1, 15.0)
    assert not affordable(WORK, 1, 14.0)
    assert affordable(WORK, 4, 4.0)
    assert affordable(WORK, 1, math.inf)


def test_the_search_for_a_lower_bound_keeps_to_its_share():
    network = resnet18(32, cifar=True).network()

    def planned(seconds, starts=None):
        return sum(ascent_seconds(a) for a in plan_ascents(network, starts=starts, seed=0, seconds=seconds))

    free = planned(None)
    assert planned(free / 4) <= free / 4
    assert planned(40 * free) >= free
    one = 14 * multiply_adds(network) / 4e9
    assert plan_ascents(network, starts=None, seed=0, seconds=0.5 * one) == ()
    assert 0.0 < planned(0.5 * one, starts=2) <= 2.1 * one

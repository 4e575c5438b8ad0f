"""The comparison with other tools: reference formulas, rows that are kept, and targets that tell their misses."""

import sys
import time

import numpy as np
import pytest

from lipray.certify.closed_form import closed_form
from lipray.compose.compose import COMPOSITIONS
from lipray.run.lower_bound import ascend, best, plan_ascents
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.sector import lower
from tests.published import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from peers import __main__ as command
from peers import derive, eclipse, lipsdp, naive, own, targets
from peers.answer import Answer, NotHereError
from peers.kept import Kept, latest
from peers.networks import CASES, Case
from peers.process import context, measure
from peers.random_networks import dense_chain, eclipse_network, kaiming_block
from peers.tables import network_table, target_table


@pytest.fixture(scope="module")
def small():
    return eclipse_network(4, 6)


@pytest.fixture(scope="module")
def attained(small):
    return best({ascent.label: ascend(ascent) for ascent in plan_ascents(small, starts=4, seed=0)}).quotient


def test_the_random_networks_are_those_of_eclipse():
    network = eclipse_network(3, 5)
    norms = [np.linalg.norm(network.weights[f"fc{number}.weight"], 2) for number in (1, 2, 3)]
    draw = np.random.RandomState(7 * 5 + 13 * 3)
    assert norms[0] == pytest.approx(draw.uniform(0.4, 1.8))
    assert [network.weights[f"fc{n}.weight"].shape for n in (1, 2, 3)] == [(5, 4), (5, 5), (1, 5)]


def test_eclipse_fast_is_lipray_s_closed_form(small):
    answer = eclipse.eclipse_fast(small)
    blocks = prepare(lower(small))
    assert answer.bound == pytest.approx(evaluate(blocks, closed_form(blocks)).bound, rel=1e-8)
    assert answer.proven == pytest.approx(answer.bound, rel=1e-8)


def test_eclipse_lies_between_lipsdp_and_its_fast_form(small):
    answer = eclipse.eclipse(small, 30.0)
    optimum = lipsdp.lipsdp("Clarabel", small, 30.0)
    assert answer.proven == pytest.approx(answer.bound, rel=1e-6)
    assert optimum.proven <= answer.proven * (1.0 + 1e-6) < eclipse.eclipse_fast(small).proven


def test_eclipse_s_program_of_one_layer_has_the_known_answer():
    # One activation layer: the program is LipSDP itself, whose optimum with nonnegative weights is the product's norm.
    rng = np.random.default_rng(0)
    first, last = rng.random((5, 3)), rng.random((1, 5))
    answer = eclipse.eclipse(dense_chain([first, last]), 30.0)
    assert answer.proven == pytest.approx(np.linalg.norm(last @ first, 2), rel=1e-3)


def test_eclipse_gives_up_at_its_time_and_on_skips(small):
    assert eclipse.eclipse(small, -1.0).bound is None
    with pytest.raises(NotHereError, match="order"):
        eclipse.eclipse(dense_chain([np.ones((900, 2)), np.ones((900, 900)), np.ones((1, 900))]), 1.0)


def test_every_way_is_above_what_is_attained(small, attained):
    assert attained > 0.0
    ways = {
        "frobenius": naive.product(small, naive.frobenius),
        "svd": naive.product(small, naive.spectral),
        "liplt": naive.liplt(small),
        "fast": eclipse.eclipse_fast(small),
        "eclipse": eclipse.eclipse(small, 30.0),
        "clarabel": lipsdp.lipsdp("Clarabel", small, 30.0),
        "scs": lipsdp.lipsdp("SCS", small, 30.0),
        "product": own.product(small),
        "closed form": own.closed_form(small),
        "ellipsoid": own.estimate(small, 30.0, method="ellipsoid"),
    }
    for name, answer in ways.items():
        assert (answer.proven or answer.bound) >= attained, name
    assert ways["clarabel"].bound == pytest.approx(ways["ellipsoid"].bound, rel=1e-4)
    assert ways["svd"].bound == pytest.approx(ways["product"].bound, rel=1e-9)
    assert ways["svd"].bound <= ways["frobenius"].bound


def test_maps_are_cut_by_every_composition_there_is():
    block = kaiming_block(4, (1, 2, 2), padding=1)
    rows = own.ways()
    assert {how for how, _ in rows.values()} == set(COMPOSITIONS)
    whole = own.estimate(block, 30.0, method="ellipsoid").bound
    for how, factor in rows.values():
        if factor == 2:
            assert own.tiled(block, 30.0, how, factor).bound >= whole * (1.0 - 1e-6)
    with pytest.raises(NotHereError):
        own.tiled(eclipse_network(2, 3), 1.0, "sum", 2)


def test_what_cannot_be_tried_says_why(small, monkeypatch):
    monkeypatch.setitem(lipsdp.WAYS, "none", lipsdp.Way("NOSUCHSOLVER", {}, 100))
    with pytest.raises(NotHereError, match="does not install here"):
        lipsdp.lipsdp("none", small, 1.0)
    monkeypatch.setitem(lipsdp.WAYS, "tiny", lipsdp.Way("CLARABEL", {}, 3))
    with pytest.raises(NotHereError, match="order"):
        lipsdp.lipsdp("tiny", small, 1.0)


@pytest.fixture
def counted(monkeypatch, tmp_path, small):
    """The command on one network by two methods, whose processes are counted and not made."""
    calls = []

    def fake(*given):
        *_, network, method, allowed = given
        calls.append((network, method))
        if len(calls) == 2 and fake.interrupt:
            raise KeyboardInterrupt
        return {"bound": 2.0, "proven": 2.0, "kind": "certified", "ended": "done", "seconds": 1.0, "limit": allowed}

    fake.interrupt = False
    monkeypatch.setattr(command, "measure", fake)
    monkeypatch.setattr(command, "context", lambda: None)
    monkeypatch.setitem(CASES, "small", Case("small", "fully connected", "a test", lambda: small))

    def go(*words):
        options = ["--only", "small", "--methods", "product", "LipLT", "--out", str(tmp_path), *words]
        return command.run(command.options_of(options))

    return go, calls, fake, tmp_path


def test_a_row_is_measured_once(counted):
    go, calls, _, folder = counted
    assert go() == 0
    first = list(calls)
    assert len(first) == 4
    assert go() == 0
    assert calls == first
    assert go("--fresh") == 0
    assert len(calls) == 2 * len(first)
    assert "| lipray, product | certified | 2 |" in (folder / "peers.md").read_text()


def test_an_interrupted_run_keeps_its_rows_and_goes_on(counted):
    go, calls, fake, folder = counted
    fake.interrupt = True
    assert go() == 130
    assert len(latest(Kept(folder).rows.values())["small"]) == 2  # one way, and how large the network is
    fake.interrupt = False
    assert go() == 0
    assert len(calls) == 2 + 3


def test_a_short_run_ends_in_time_and_another_goes_on(counted, monkeypatch):
    go, calls, _, _ = counted
    monkeypatch.setattr(command, "SHORT", 0.0)
    assert go("--short") == 0
    assert calls == []
    assert go() == 0
    assert len(calls) == 4


def test_a_row_that_ran_out_is_measured_again_with_more_time_only(tmp_path):
    kept = Kept(tmp_path)
    kept.keep("a", "way", "1", {"bound": None, "ended": "out of time (10 s)", "limit": 10.0})
    assert kept.find("a", "way", "1", 10.0) is not None
    assert kept.find("a", "way", "1", 60.0) is None
    assert kept.find("a", "way", "2", 10.0) is None
    kept.keep("a", "way", "1", {"bound": None, "ended": "out of time (10 s)", "limit": 10.0, "cpu": 9.0})
    assert kept.find("a", "way", "1", 10.0) is not None
    kept.keep("a", "way", "1", {"bound": None, "ended": "out of time (10 s)", "limit": 10.0, "cpu": 2.0})
    assert kept.find("a", "way", "1", 10.0) is None
    kept.keep("a", "way", "1", {"bound": 2.0, "ended": "converged, time_limit", "limit": 10.0})
    assert kept.find("a", "way", "1", 10.0) is not None
    assert kept.find("a", "way", "1", 60.0) is None
    kept.keep("a", "way", "1", {"bound": None, "ended": "died (exit code -9)", "limit": 60.0})
    assert kept.find("a", "way", "1", 60.0) is None


def stuck(seconds):
    return lambda: time.sleep(seconds) or Answer(1.0, "certified")


def refused():
    raise NotHereError("no place")


def test_a_process_of_its_own_ends_at_its_limit(monkeypatch):
    monkeypatch.setattr("peers.process.SETTLE", 0.0)
    made = context(preload=("torch",))
    assert measure(made, refused, 60.0, 2**34)["ended"] == "no place"
    row = measure(made, stuck, 0.5, 2**34, 600.0)
    assert (row["bound"], row["ended"]) == (None, "out of time (0 s)")
    assert measure(made, stuck, 60.0, 1, 600.0)["ended"].startswith("out of memory")
    row = measure(made, stuck, 60.0, 2**34, 0.1)
    assert row["bound"] == 1.0
    assert row["seconds"] >= 0.1
    assert row["peak"] >= row["before"] > 0


def row(bound, seconds=1.0, proven=True, ended="optimal", **more):
    kind = "certified" if proven else "solver's value"
    return {
        "bound": bound,
        "proven": bound if proven else None,
        "seconds": seconds,
        "ended": ended,
        "kind": kind,
        "limit": 60.0,
        **more,
    }


def test_targets_that_are_met():
    rows = {
        "net": {
            "attained": row(0.9),
            "LipSDP, Clarabel": row(1.0, 100.0),
            "lipray, ellipsoid": row(1.0005, 2.0),
            "lipray, ellipsoid to 1 %": row(1.009, 1.0),
        },
        "fc_L100_W100": {"attained": row(0.5), "ECLipsE": row(2.0, 50.0), "lipray, auto": row(1.0, 5.0)},
    }
    assert [target.verdict for target in targets.targets(rows, {"net": 400})] == ["met"] * 4


@pytest.mark.parametrize(
    ("place", "way", "changed", "said"),
    [
        (0, "lipray, ellipsoid", row(1.02, 0.01), "net: +1.00%"),
        (1, "lipray, ellipsoid to 1 %", row(1.009, 4.0), "net, LipSDP, Clarabel: 25 times (100 s; "),
        (
            1,
            "LipSDP, SCS",
            row(None, 60.0, ended="out of time (60 s)"),
            "net, LipSDP, SCS: at least 30 times (60 s, ended out of time (60 s); ",
        ),
        (2, "lipray, auto", row(1.0, 51.0), "no bound that is both smaller and sooner"),
        (3, "LipSDP, SCS", row(None, ended="out of time (60 s)"), "LipSDP, SCS: out of time (60 s) (1 row)"),
        (3, "attained", row(0.0), "net: no pair of points attains more than rounding (3 rows)"),
        (3, "lipray, ellipsoid", row(0.8), "0.8 is below what is attained, 0.9"),
        (3, "GLipSDP, published", row(2.0, other_network=True), "a published figure of another network (1 row)"),
    ],
)
def test_targets_tell_their_misses(place, way, changed, said):
    network = "fc_L100_W100" if place == 2 else "net"
    rows = {
        "net": {
            "attained": row(0.9),
            "LipSDP, Clarabel": row(1.01, 100.0),
            "lipray, ellipsoid": row(1.0105, 5.0),
            "lipray, ellipsoid to 1 %": row(1.015, 2.0),
        },
        "fc_L100_W100": {"attained": row(0.5), "ECLipsE": row(2.0, 50.0), "lipray, auto": row(1.0, 5.0)},
    }
    if place == 0:
        del rows["net"]["lipray, ellipsoid to 1 %"]
        changed = row(1.0201, 0.01)
    rows[network][way] = changed
    found = targets.targets(rows, {"net": 400})[place]
    assert found.verdict == "missed"
    assert any(said in miss for miss in found.misses), found.misses


def test_every_pair_of_times_is_listed_and_what_took_its_limit_says_which():
    rows = {
        "attained": row(0.9),
        "LipSDP, Clarabel": {**row(1.0, 100.0), "limit": 200.0},
        "LipSDP, SCS": row(None, 58.0, ended="out of time (60 s)"),
        "LipSDP, SCS, tight": row(None, 0.5, ended="died (exit code -6)"),
        "lipray, ellipsoid": row(1.0, 1.0),
    }
    full = {**rows, "LipSDP, SCS": row(None, 3.0, ended="out of memory (10 GiB)")}
    assert targets.faster({"net": full}, {"net": 400}).seen.startswith("1 of 1 pairs")
    found = targets.faster({"net": rows}, {"net": 400})
    assert not found.misses  # a program that does not fit the machine is neither fast nor slow
    assert found.seen.startswith("2 of 2 pairs")
    assert found.each == (
        "net, LipSDP, Clarabel: 100 times (100 s; lipray, ellipsoid, 1 s)",
        "net, LipSDP, SCS: at least 58 times (58 s, ended out of time (60 s); lipray, ellipsoid, 1 s)",
        "net, LipSDP, SCS, tight: died (exit code -6) in 0.5 s, with nothing to compare",
    )
    assert "\n- " + found.each[1] in "\n".join(target_table([found]))
    table = "\n".join(network_table(rows))
    assert table.count("given 60 s") == 1


def test_a_table_has_the_quotients_and_what_was_left_out():
    rows = {
        "attained": row(1.0),
        "lipray, product": row(4.0),
        "LipSDP, SCS": {**row(1.9, proven=False), "proven": 2.0},
        "LipSDP, SDPA": row(None, ended="does not install here", left_out=True),
        "GLipSDP, published": {**row(3.0), "other_network": True},
    }
    shown = derive.shown(rows)
    assert (shown["LipSDP, SCS"]["gap"], shown["LipSDP, SCS"]["of_product"]) == (2.0, 1.9 / 4.0)
    assert shown["GLipSDP, published"]["gap"] is None
    text = "\n".join(network_table(rows))
    assert "Not here: LipSDP, SDPA (does not install here)." in text
    low = targets.unproven({"net": rows})
    assert low == ["net, LipSDP, SCS: 1.9, of which 2 is proven"]


@pytest.mark.parametrize(("seconds", "verdict"), [(5.0, "met"), (70.0, "missed")])
def test_a_peer_that_runs_out_of_time_is_behind_what_was_done_sooner(seconds, verdict):
    rows = {
        "fc_L100_W100": {"ECLipsE": row(2.0, 50.0), "lipray, auto": row(1.0, 5.0)},
        "fc_L100_W160": {"ECLipsE": row(None, 60.0, ended="out of time (60 s)"), "lipray, auto": row(3.0, seconds)},
    }
    found = targets.targets(rows, {})[2]
    assert found.verdict == verdict
    assert "fc_L100_W160: " in found.seen + "".join(found.misses)
    assert "ECLipsE no bound, out of time (60 s) after 60 s" in found.seen + "".join(found.misses)

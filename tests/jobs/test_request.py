"""The identity of a request, and the command that a job runs."""

import shlex
from pathlib import Path

import pytest

from lipray.cli.options import configure
from lipray.cli.submit import submit_command
from lipray.config import EstimateConfig, make_config
from lipray.jobs import request as requests
from lipray.jobs.freight import Freight
from lipray.jobs.request import make_request, option_words

LENET = Freight("lenet5", "lenet5", None, None, {"model": "lenet5"}, ())


def run_of(freight=LENET, name=None, **options):
    return make_request(freight, EstimateConfig(**options), store="/runs", name=name).run


def test_the_same_request_has_the_same_name():
    assert run_of() == run_of()
    assert run_of().startswith("lipray-lenet5-")
    # The same in another process, and on another machine: nothing of this one is in it.
    assert run_of() == run_of(executor="serial", workers=3, store="elsewhere", run_id="x")
    assert run_of() == run_of(elastic=True, stuck_after=60)
    assert run_of(memory="8GiB", time_limit="1m") == run_of(memory=8 * 2**30, time_limit=60)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "product"},
        {"iterations": 3},
        {"seed": 1},
        {"output_rows": "1"},
        {"pairs": "0,1"},
        {"budget": "1m"},
        {"threads": 2},
        {"device": "cuda"},
        {"lower_starts": 0},
        {"input_shape": "1,28,28"},
    ],
)
def test_what_decides_the_result_changes_the_name(options):
    assert run_of(**options) != run_of()


def test_model_and_version_and_name_are_in_it(monkeypatch):
    other = Freight("lenet5", "lenet5", None, None, {"model": "lenet5", "weights": "ab"}, ())
    assert run_of(other) != run_of()
    assert run_of(name="mine").startswith("lipray-mine-")
    assert run_of(name="mine").rpartition("-")[2] == run_of().rpartition("-")[2]
    before = run_of()
    monkeypatch.setattr(requests, "__version__", "99.0")
    assert run_of() != before


@pytest.mark.parametrize("name", ["../../etc", "a b; rm -rf ~", "ü", "-x", "x" * 200, "."])
def test_names_are_plain_and_short(name):
    run = run_of(name=name)
    assert set(run) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert len(run) < 80
    assert EstimateConfig(run_id=run).run_id == run


def test_attempts_are_numbered():
    request = make_request(LENET, EstimateConfig(), store="/runs")
    assert [request.submission(number) for number in (1, 2, 3)] == [request.run, f"{request.run}-2", f"{request.run}-3"]


CONFIGS = [
    {},
    {"method": "hybrid", "switch": "3", "chain": True, "block_depth": 2, "tolerance": 1e-9},
    {"chain": False, "block_depth": 3, "partition_factor": 2, "composition": "sum"},
    {"pairs": ((3, 5), (1, -2)), "input_shape": (3, 32, 32), "memory": "12GiB", "budget": "1h30m"},
    {"output_rows": (-1, 7), "time_limit": 0.125, "iterations": 0, "lower_starts": 0, "threads": 4, "seed": 7},
    {"device": "cuda", "input_shape": (64,), "weights": "w.pt", "data": "d.npy"},
    {"elastic": True, "stuck_after": "2m"},
]


def parsed(words):
    """The configuration that the driver's words give."""
    given = submit_command.make_context("estimate", list(words)).params
    flags = {name: value for name, value in given.items() if name in EstimateConfig.model_fields}
    return configure(flags, None)


@pytest.mark.parametrize("options", CONFIGS, ids=[str(sorted(options)) for options in CONFIGS])
def test_the_driver_is_given_the_same_options(options):
    config = make_config(options, keywords=True)
    freight = Freight(
        "m.py:net", "net", "w.pt" if config.weights else None, "d.npy" if config.data else None, {"model": "x"}, ()
    )
    request = make_request(freight, config, store="/runs")
    there = parsed([word for word in request.words[1:] if not word.startswith(("--run-id", "--address", "--store"))])
    assert there == config
    assert f"--run-id={request.run}" in request.words
    assert "--address=auto" in request.words
    assert "--store=/runs" in request.words
    assert "--trust-model" not in request.words


def test_every_option_is_either_sent_or_left_on_purpose():
    """A new option of an estimate is sent by itself; this fails where it has a form that is not understood."""
    sent = set(EstimateConfig.model_fields) - requests.ELSEWHERE
    covered = set().union(*(set(options) for options in CONFIGS))
    assert sent <= covered | {"method"}, sent - covered


@pytest.mark.parametrize(
    "place",
    ["a b.py", "it's.py", "$(touch x).py", "`touch x`.py", "a;touch x.py", "new\nline.py", '"quoted".py', "*.py"],
)
def test_words_are_quoted_for_the_shell(place):
    freight = Freight(f"{place}:net", "net", f"{place}.pt", None, {"model": "x"}, ())
    request = make_request(freight, EstimateConfig(), store=f"/{place}", trust_model=True)
    words = shlex.split(request.entrypoint)
    assert words[:4] == ["exec", "python", "-m", "lipray"]
    assert tuple(words[4:]) == request.words
    assert words[5] == f"{place}:net"
    assert f"--weights={place}.pt" in words
    assert f"--store=/{place}" in words
    assert "--trust-model" in words


def test_no_path_of_this_machine_is_sent(tmp_path):
    config = EstimateConfig(weights=tmp_path / "w.pt", data=tmp_path / "d.npy", out=Path("/here"))
    assert option_words(config) == []

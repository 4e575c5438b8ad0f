"""Options: units, lists, defaults, and that they are the ones the rest of lipray knows."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lipray.cli.estimate import estimate_command
from lipray.cli.plan import plan_command
from lipray.compose.compose import COMPOSITIONS
from lipray.config import EstimateConfig, make_config, read_config
from lipray.errors import ConfigError, UsageError
from lipray.partition.choice import AUTO
from lipray.partition.subproblem import METHODS, Settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("1.5 GiB", 3 * 2**29), ("500MB", 5 * 10**8), ("64 kib", 2**16), ("1073741824", 2**30), (7, 7)],
)
def test_sizes(text, size):
    assert EstimateConfig(memory=text).memory == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "8 G i B", "inf", "0", 0])
def test_bad_sizes(text):
    with pytest.raises(ValidationError):
        EstimateConfig(memory=text)


@pytest.mark.parametrize("value", ["3,32,32", "3x32x32", " 3, 32 ,32", (3, 32, 32), [3, 32, 32]])
def test_shapes(value):
    assert EstimateConfig(input_shape=value).input_shape == (3, 32, 32)


@pytest.mark.parametrize("value", ["", "3,,5", "3;5", "3.5", True])
def test_bad_shapes(value):
    with pytest.raises(ValidationError):
        EstimateConfig(input_shape=value)


def test_one_number_is_a_shape_and_a_row():
    assert EstimateConfig(input_shape="64").input_shape == (64,)
    assert EstimateConfig(output_rows=7).output_rows == (7,)


@pytest.mark.parametrize("value", ["3,5", (3, 5), [[3, 5]], ("3,5",)])
def test_one_pair(value):
    assert EstimateConfig(pairs=value).pairs == ((3, 5),)


def test_several_pairs():
    assert EstimateConfig(pairs=("3,5", "1,2")).pairs == EstimateConfig(pairs="3,5;1,2").pairs == ((3, 5), (1, 2))


@pytest.mark.parametrize("value", ["", "3", "3,5,7", [], 3, [3, 5, 7]])
def test_bad_pairs(value):
    with pytest.raises(ValidationError):
        EstimateConfig(pairs=value)


def choices(field):
    return set(EstimateConfig.model_fields[field].annotation.__args__)


def test_choices_are_those_of_the_stages():
    assert choices("method") == {AUTO, *METHODS}
    assert EstimateConfig().method == AUTO
    assert choices("composition") == set(COMPOSITIONS)
    config, settings = EstimateConfig(), Settings()
    assert config.composition == COMPOSITIONS[0]
    for name in ("iterations", "tolerance", "time_limit", "memory", "switch", "device"):
        assert getattr(config, name) == getattr(settings, name)


def test_every_option_has_a_flag():
    flags = {parameter.name for parameter in estimate_command.params}
    assert set(EstimateConfig.model_fields) <= flags
    beyond = {"model", "trust_model", "config", "as_json", "debug", "quiet", "no_store"}
    assert flags - set(EstimateConfig.model_fields) == beyond
    assert {parameter.name for parameter in plan_command.params} <= flags


def test_flags_win_even_where_they_exclude_each_other(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("output_rows: [1, 2]\nseed: 4\n")
    config = make_config({"pairs": ("0,1",)}, file)
    assert config.output_rows is None
    assert config.pairs == ((0, 1),)
    assert config.seed == 4


def test_paths_in_a_file_are_beside_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("weights: w.safetensors\nout: /absolute\n")
    assert read_config(file) == {"weights": tmp_path / "w.safetensors", "out": Path("/absolute")}


def test_an_empty_file_is_fine_and_code_is_not_run(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("# nothing\n")
    assert make_config({}, file) == EstimateConfig()
    file.write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ConfigError):
        make_config({}, file)


def test_errors_name_what_the_user_wrote(tmp_path):
    with pytest.raises(UsageError, match=r"^--lower-starts: .*\(got -1\)"):
        make_config({"lower_starts": -1})
    with pytest.raises(UsageError, match=r"^lower_starts: "):
        make_config({"lower_starts": -1}, keywords=True)
    file = tmp_path / "c.yaml"
    file.write_text("lower_start: 3\n")
    with pytest.raises(ConfigError, match="lower_start: is not an option") as caught:
        make_config({}, file)
    assert "lower_starts" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("8h", 28800), ("1h30m", 5400), ("0.5h", 1800), ("2d", 172800), ("45", 45), (7, 7)],
)
def test_durations(text, seconds):
    assert EstimateConfig(budget=text).budget == seconds
    assert EstimateConfig(time_limit=text).time_limit == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "-3s", "0s", "h10", "10 20", "inf", True])
def test_bad_durations(text):
    with pytest.raises(ValidationError):
        EstimateConfig(budget=text)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ellipsoid", "switch": "conv1"},
        {"method": "sdp", "device": "cuda"},
        {"method": "product", "chain": True},
        {"method": "frequency", "switch": "conv1"},
        {"chain": False},
        {"device": "tpu"},
        {"switch": ""},
    ],
)
def test_options_on_tori_that_contradict_each_other(options):
    with pytest.raises(ValidationError):
        EstimateConfig(**options)


def test_options_on_tori_that_go_together():
    assert EstimateConfig(method="frequency", switch="none").switch == "none"
    assert EstimateConfig(switch=3).switch == "3"
    assert EstimateConfig(chain=False, block_depth=2).chain is False
    assert EstimateConfig(device="cuda").device == "cuda"

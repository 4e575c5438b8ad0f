"""Checkpoints load exactly, or fail with one message that names the file, the tensor and the remedy."""

from __future__ import annotations

import collections
import os
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lipray.errors import CheckpointError, LiprayError, NonFiniteWeightsError, UntrustedModelError
from lipray.model.architectures import ARCHITECTURES
from lipray.model.architectures.initial import initialised, skeleton
from lipray.model.checkpoint import FileKind, file_kind, fit, read_checkpoint, resembling


class Marker:
    """Pickled into a file; unpickling it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def loaded(path, **options):
    return read_checkpoint(path, **options)


def fitted(path, target=None):
    return fit(read_checkpoint(path), (target or module()).state_dict(), "the net")[0]


@pytest.fixture
def state():
    return module().state_dict()


def check_same(found, state):
    wanted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_state_dicts(tmp_path, state, legacy):
    path = tmp_path / "w.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    check_same(fitted(path), state)


def test_safetensors(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    check_same(fitted(tmp_path / "w.safetensors"), state)


def test_a_file_is_known_by_content_not_by_name(tmp_path, state):
    torch.save(state, tmp_path / "w.safetensors")
    save_file(state, tmp_path / "w.pt")
    check_same(fitted(tmp_path / "w.safetensors"), state)
    check_same(fitted(tmp_path / "w.pt"), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_wrapped_state_dicts(tmp_path, state, wrapper):
    torch.save({"epoch": 3, wrapper: state, "loss": torch.tensor(0.5)}, tmp_path / "w.pt")
    checkpoint = loaded(tmp_path / "w.pt")
    check_same(fit(checkpoint, state, "net")[0], state)
    assert wrapper in checkpoint.notes[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_are_dropped_with_a_note(tmp_path, state, prefix):
    torch.save(collections.OrderedDict((prefix + key, value) for key, value in state.items()), tmp_path / "w.pt")
    found, notes = fit(loaded(tmp_path / "w.pt"), state, "net")
    check_same(found, state)
    assert prefix in notes[0]


def test_a_prefix_that_belongs_to_the_module_stays(tmp_path):
    target = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(target.state_dict(), tmp_path / "w.pt")
    check_same(fitted(tmp_path / "w.pt", target), target.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_convert_exactly(tmp_path, state, dtype):
    narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_file(narrow, tmp_path / "w.safetensors")
    found = fitted(tmp_path / "w.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert all(torch.equal(found[key].double(), narrow[key].double()) for key in found)


def test_one_double_tensor_makes_all_double(tmp_path, state):
    save_file({**state, "3.bias": state["3.bias"].double() + 1e-12}, tmp_path / "w.safetensors")
    assert {value.dtype for value in fitted(tmp_path / "w.safetensors").values()} == {torch.float64}


def test_zero_weights_are_weights(tmp_path, state):
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    save_file(zeros, tmp_path / "w.safetensors")
    check_same(fitted(tmp_path / "w.safetensors"), zeros)


def test_step_counters_may_be_missing(tmp_path, state):
    save_file({k: v for k, v in state.items() if not k.endswith("tracked")}, tmp_path / "w.safetensors")
    check_same(fitted(tmp_path / "w.safetensors"), state)


def complaint(path, kind=CheckpointError, target=None) -> str:
    with pytest.raises(kind) as caught:
        fitted(path, target)
    assert caught.value.hint
    assert type(caught.value) is kind
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in complaint(tmp_path / "none.safetensors")
    assert "not a file" in complaint(tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, state, suffix, share):
    path = tmp_path / f"w.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert str(path) in complaint(path)


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from(["pt", "safetensors", "legacy"]), place=st.floats(0, 0.99), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(tmp_path_factory, suffix, place, value):
    path = tmp_path_factory.mktemp("w") / f"w.{suffix}"
    state = module().state_dict()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == "pt")
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = value
    path.write_bytes(data)
    try:
        found = fitted(path)
    except LiprayError as error:
        assert error.hint  # noqa: PT017
    else:
        assert set(found) == {key for key in state if not key.endswith("tracked")}


@pytest.mark.parametrize("data", [b"hello", b"PK\x03\x04junk", b"\x80\x02junk", b"12345678{junk", b"x" * 100])
def test_garbage(tmp_path, data):
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(data)
        with pytest.raises(LiprayError) as caught:
            loaded(path)
        assert isinstance(caught.value, CheckpointError | UntrustedModelError)


def test_a_pickled_module_is_named_and_refused(tmp_path):
    torch.save(module(), tmp_path / "m.pt")
    assert "Sequential" in complaint(tmp_path / "m.pt", UntrustedModelError)


def test_no_code_runs_without_trust(tmp_path, state):
    trace = tmp_path / "trace"
    for data, path in (
        ({**state, "a": Marker(trace)}, tmp_path / "a.pt"),
        ({"state_dict": Marker(trace)}, tmp_path / "b.pt"),
    ):
        torch.save(data, path)
        complaint(path, UntrustedModelError)
    with (tmp_path / "c.pt").open("wb") as file:
        pickle.dump(Marker(trace), file)
    complaint(tmp_path / "c.pt", UntrustedModelError)
    assert not trace.exists()
    with pytest.raises(LiprayError):
        loaded(tmp_path / "a.pt", trust=True)
    assert trace.exists()


def test_a_trusted_pickled_module_gives_its_weights(tmp_path, state):
    torch.save(module(), tmp_path / "m.pt")
    check_same(fit(loaded(tmp_path / "m.pt", trust=True), state, "net")[0], state)


def test_code_archives_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(tmp_path / "s.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "e.pt2")
    assert "TorchScript" in complaint(tmp_path / "s.pt", UntrustedModelError)
    assert "exported program" in complaint(tmp_path / "e.pt2", UntrustedModelError)
    assert file_kind(tmp_path / "s.pt") is FileKind.TORCHSCRIPT
    trusted = loaded(tmp_path / "s.pt", trust=True)
    assert set(trusted.tensors) == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
        ({}, "empty"),
        ({"a": torch.ones(2), "b": 3}, "b"),
        (7, "int"),
    ],
)
def test_what_is_no_state_dict(tmp_path, payload, word):
    torch.save(payload, tmp_path / "w.pt")
    assert word in complaint(tmp_path / "w.pt")


def test_sparse_and_quantised_tensors(tmp_path, state):
    odd = (torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    for index, tensor in enumerate(odd):
        torch.save({**state, "3.weight": tensor}, tmp_path / f"{index}.pt")
        with pytest.raises(LiprayError) as caught:
            fitted(tmp_path / f"{index}.pt")
        assert isinstance(caught.value, CheckpointError | UntrustedModelError)


def test_missing_extra_and_misshaped_keys_with_both_shapes(tmp_path, state):
    del state["3.bias"]
    state["4.weight"] = torch.ones(5, 6)
    state["3.weight"] = torch.ones(3, 9)
    save_file(state, tmp_path / "w.safetensors")
    told = complaint(tmp_path / "w.safetensors")
    assert "missing 3.bias 3" in told
    assert "not in the architecture 4.weight 5x6" in told
    assert "3.weight is 3x9 in the file and 3x8 in the architecture" in told


def test_long_lists_are_cut(tmp_path):
    save_file({f"k{i}": torch.ones(1) for i in range(40)}, tmp_path / "w.safetensors")
    told = complaint(tmp_path / "w.safetensors")
    assert "and 35 more" in told
    assert "k39" not in told


def test_another_architecture_is_recognised(tmp_path):
    state = initialised(ARCHITECTURES["cnn1"], channels=(2, 3)).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    told = complaint(tmp_path / "w.pt", target=skeleton(ARCHITECTURES["lenet5"]))
    assert "those of cnn1" in told
    assert resembling(loaded(tmp_path / "w.pt")) == "cnn1"


def test_integers_where_floats_belong(tmp_path, state):
    state["3.weight"] = torch.ones(3, 8, dtype=torch.int8)
    save_file(state, tmp_path / "w.safetensors")
    assert "3.weight (torch.int8)" in complaint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights(tmp_path, state, value, dtype):
    state["3.weight"] = state["3.weight"].to(dtype)
    state["3.weight"][1, 2] = value
    save_file(state, tmp_path / "w.safetensors")
    assert "3.weight" in complaint(tmp_path / "w.safetensors", NonFiniteWeightsError)

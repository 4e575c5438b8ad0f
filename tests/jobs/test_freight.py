"""What is shipped with a job, under which names, and what of it decides the result."""

from pathlib import Path

import pytest

from lipray.errors import CheckpointError, ModelNotFoundError, UsageError
from lipray.jobs import freight
from lipray.jobs.freight import pack


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A project, which is the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("model.py", "beside.py", "net.onnx", "w.safetensors", "sub/deep.py", "sub/points.npy"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"content of {name}")
    return folder


def shipped(parcel):
    with parcel.loaded() as folder:
        if folder is None:
            return {}
        return {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def test_a_built_in_architecture_needs_nothing():
    parcel = pack("lenet5", None, None)
    assert (parcel.model, parcel.name, parcel.weights, parcel.data) == ("lenet5", "lenet5", None, None)
    assert shipped(parcel) == {}


def test_files_on_the_command_line_are_shipped_by_relative_names():
    parcel = pack("sub/deep.py:net", Path("w.safetensors").absolute(), Path("sub/points.npy"))
    assert (parcel.model, parcel.weights, parcel.data) == (
        "model/deep.py:net",
        "weights/w.safetensors",
        "data/points.npy",
    )
    assert parcel.name == "net"
    assert shipped(parcel) == {
        "data/points.npy": "content of sub/points.npy",
        "model/deep.py": "content of sub/deep.py",
        "weights/w.safetensors": "content of w.safetensors",
    }


def test_a_model_file_keeps_its_name():
    parcel = pack("net.onnx", None, None)
    assert (parcel.model, parcel.name) == ("model/net.onnx", "net")


def test_the_folder_that_was_shipped_is_gone_afterwards():
    with pack("net.onnx", None, None).loaded() as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_a_working_folder_is_shipped_whole_but_for_what_is_hidden_or_made(tmp_path):
    for name in (
        ".env",
        ".git/config",
        "__pycache__/x.pyc",
        "venv/pyvenv.cfg",
        "venv/lib/x.py",
        "runs/old/result.json",
    ):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no")
    (tmp_path / "outside.safetensors").write_text("weights")
    parcel = pack("sub/deep.py:net", tmp_path / "outside.safetensors", None, working_dir=Path(), leave=(Path("runs"),))
    assert parcel.model == "sub/deep.py:net"
    assert parcel.weights == "lipray-files/weights/outside.safetensors"
    assert set(shipped(parcel)) == {
        "beside.py",
        "lipray-files/weights/outside.safetensors",
        "model.py",
        "net.onnx",
        "sub/deep.py",
        "sub/points.npy",
        "w.safetensors",
    }


def test_a_module_of_this_folder_wants_it_shipped():
    with pytest.raises(UsageError, match="runs elsewhere") as caught:
        pack("sub.deep:net", None, None)
    assert "--working-dir ." in caught.value.hint
    assert pack("sub.deep:net", None, None, working_dir=Path()).model == "sub.deep:net"
    assert pack("installed.somewhere:net", None, None).model == "installed.somewhere:net"
    assert pack("sub.deep:net", None, None, ship=False).model == "sub.deep:net"


def test_paths_on_the_cluster_are_absolute_and_need_not_be_here():
    parcel = pack("/there/model.py:net", Path("/there/w.pt"), None, ship=False)
    assert (parcel.model, parcel.weights, parcel.name) == ("/there/model.py:net", "/there/w.pt", "net")
    assert shipped(parcel) == {}
    for words in (("model.py:net", None), ("/there/model.py:net", Path("w.pt"))):
        with pytest.raises(UsageError, match="no absolute path"):
            pack(*words, None, ship=False)


def content(*words, **more):
    return pack(*words, **more).content


def test_content_decides_not_names():
    before = content("model.py:net", Path("w.safetensors"), None)
    Path("elsewhere.py").write_text("content of model.py")
    Path("v.safetensors").write_text("content of w.safetensors")
    assert content("elsewhere.py:net", Path("v.safetensors"), None) == before
    assert content("model.py:other", Path("w.safetensors"), None) != before
    assert content("model.py:net", None, None) != before
    assert content("model.py:net", None, Path("w.safetensors")) != content("model.py:net", Path("w.safetensors"), None)
    Path("v.safetensors").write_text("trained on")
    assert content("model.py:net", Path("v.safetensors"), None) != before


def test_any_file_of_a_working_folder_decides():
    before = content("model.py:net", None, None, working_dir=Path())
    assert content("model.py:net", None, None, working_dir=Path().absolute()) == before
    Path(".hidden").write_text("x")
    assert content("model.py:net", None, None, working_dir=Path()) == before
    Path("beside.py").write_text("changed")
    changed = content("model.py:net", None, None, working_dir=Path())
    assert changed != before
    Path("beside.py").rename("renamed.py")
    assert content("model.py:net", None, None, working_dir=Path()) != changed


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("absent.py:net", None, None), ModelNotFoundError),
        (("absent.onnx", None, None), ModelNotFoundError),
        (("lenet", None, None), ModelNotFoundError),
        (("model.py", None, None), UsageError),
        (("lenet5", Path("absent.pt"), None), CheckpointError),
        (("lenet5", None, Path("absent.npy")), UsageError),
    ],
)
def test_what_is_missing_is_named_before_anything_is_sent(words, error):
    with pytest.raises(error):
        pack(*words)


def test_a_working_folder_that_is_none_is_refused():
    with pytest.raises(UsageError, match="is no folder"):
        pack("model.py:net", None, None, working_dir=Path("model.py"))


def test_what_is_too_large_is_refused_with_the_largest_named(monkeypatch):
    monkeypatch.setattr(freight, "LIMIT", 10)
    parcel = pack("net.onnx", None, None)
    with pytest.raises(UsageError, match=r"model/net\.onnx") as caught, parcel.loaded():
        pytest.fail("it was loaded")
    assert "--no-ship" in caught.value.hint

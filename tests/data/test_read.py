"""Digits, .npz files, checks of labelled data, and the texts that name data."""

import builtins
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from lipray.data.labelled import labelled
from lipray.data.read import read_data
from lipray.errors import DataError


def test_digits_split_as_the_examples_do():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    train, test = read_data("digits", "train"), read_data("digits", "test")
    digits = load_digits()
    rows, held = train_test_split(np.arange(1797), test_size=0.25, random_state=0, stratify=digits.target)
    assert (len(train), len(test), train.shape, train.classes) == (1347, 450, (1, 8, 8), 10)
    np.testing.assert_array_equal(train.x[:, 0] * 16, digits.images[rows])
    np.testing.assert_array_equal(test.y, digits.target[held])
    assert (train.x.min(), train.x.max()) == (0, 1)


def test_digits_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="scikit-learn"):
        read_data("digits", "test")


def test_an_npz_has_one_split(tmp_path):
    x, y = np.random.default_rng(0).random((4, 1, 2, 2)), np.array([0, 2, 1, 1])
    np.savez(tmp_path / "a.npz", x=x, y=y, other=np.zeros(3))
    for split in ("train", "test"):
        read = read_data(str(tmp_path / "a.npz"), split)
        np.testing.assert_array_equal(read.x, x.astype(np.float32))
        assert (read.y.tolist(), read.classes, read.shape) == ([0, 2, 1, 1], 3, (1, 2, 2))
        assert len(read.take(slice(1, 3))) == 2


def test_whole_numbers_need_a_scale(tmp_path):
    x = np.array([[[0, 8]], [[4, 16]]], np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1], scale=1 / 16)
    assert read_data(str(tmp_path / "a.npz"), "test").x.tolist() == [[[0, 0.5]], [[0.25, 1]]]
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1])
    with pytest.raises(DataError, match="scale"):
        read_data(str(tmp_path / "a.npz"), "test")


class Made:
    def __reduce__(self):
        return (open, ("made", "w"))


ONES = np.ones((2, 1, 2, 2))


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": ONES}, "no array y; it has x"),
        ({"y": [1]}, "no array x"),
        ({"x": ONES, "y": [0, 1, 1]}, "2 examples"),
        ({"x": ONES, "y": [0.5, 1]}, "not whole numbers"),
        ({"x": ONES, "y": [np.nan, 1]}, "not whole numbers"),
        ({"x": ONES, "y": ["a", "b"]}, "not whole numbers"),
        ({"x": ONES, "y": [0, -1]}, "outside 0"),
        ({"x": ONES * [[[[1, np.nan], [1, 1]]]], "y": [0, 1]}, "example 0 has a NaN"),
        ({"x": ONES * 1e39, "y": [0, 1]}, "example 0 has a NaN, an infinity"),
        ({"x": np.ones(2), "y": [0, 1]}, "shape"),
        ({"x": np.ones((0, 3)), "y": []}, "shape"),
        ({"x": ONES.astype(bool), "y": [0, 1]}, "not numbers"),
        ({"x": ONES.astype(str), "y": [0, 1], "scale": 1.0}, "not numbers"),
        ({"x": ONES, "y": [0, 1], "scale": 0.0}, "positive"),
        ({"x": ONES, "y": [0, 1], "scale": [1.0, 1.0]}, "not one number"),
        ({"x": np.array([Made(), 1], object), "y": [0, 1]}, "plain arrays"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_wrong_npz_is_refused(tmp_path, monkeypatch, arrays, why):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **arrays)
    with pytest.raises(DataError, match=why):
        read_data("a.npz", "test")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_files_that_are_no_npz(tmp_path):
    place = tmp_path / "a.npz"
    single = io.BytesIO()
    np.save(single, ONES)
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.random.default_rng(0).random((50, 9)), y=np.zeros(50))
    damaged = bytearray(whole.getvalue())
    damaged[500] ^= 255
    for content in (b"", b"text", pickle.dumps(Made()), single.getvalue(), whole.getvalue()[:900], bytes(damaged)):
        place.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz"):
            read_data(str(place), "test")
    with pytest.raises(DataError, match="no such file"):
        read_data(str(tmp_path / "absent.npz"), "test")


@pytest.mark.parametrize("spec", ["", "mnist", "cifar10", "cifar10:", "tiny-imagenet:", "imagenet:x", "a.csv"])
def test_unknown_texts_name_the_known_ones(spec):
    with pytest.raises(DataError, match=r"digits, FILE\.npz, cifar10:PATH"):
        read_data(spec, "test")


def test_unknown_split():
    with pytest.raises(DataError, match=r"'validation'(.|\n)*train and test"):
        read_data("digits", "validation")


def test_classes_are_checked_against_what_is_asked():
    with pytest.raises(DataError, match="example 1 is 5, outside 0 … 4"):
        labelled(ONES, np.array([0, 5]), "x", classes=5)
    assert labelled(ONES, np.array([0.0, 1.0]), "x", classes=7).classes == 7


def test_readers_load_no_heavy_library():
    code = "import sys, lipray.data.read; print(sorted({'torch', 'ray', 'sklearn', 'PIL', 'scipy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

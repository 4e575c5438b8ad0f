"""Tiny-ImageNet's zip archive and folder, and what may be wrong with them."""

import builtins

import numpy as np
import pytest

from lipray.data.read import read_data
from lipray.errors import DataError
from tests.archives import folder, jpeg, tiny_imagenet, zipped


def altered(change):
    files = tiny_imagenet()
    change(files)
    return files


@pytest.fixture(params=["zip", "folder", "inner folder"])
def place(request):
    def make(path, files):
        if request.param == "zip":
            return zipped(path / "any.zip", files)
        return folder(path, files) / ("tiny-imagenet-200" if request.param == "inner folder" else ".")

    return make


def test_training_images(tmp_path, place):
    read = read_data(f"tiny-imagenet:{place(tmp_path, tiny_imagenet())}", "train")
    assert read.x.shape == (6, 3, 64, 64)
    assert read.x.dtype == np.float32
    assert read.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert read.classes == 3
    np.testing.assert_allclose(read.x[2, :, 0, 0] * 255, [20, 0, 235], atol=3)  # JPEG rounds
    grey = read.x[5]
    np.testing.assert_allclose(grey * 255, 40, atol=3)
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()


def test_validation_images_are_the_test_split(tmp_path, place):
    read = read_data(f"tiny-imagenet:{place(tmp_path, tiny_imagenet())}", "test")
    assert read.y.tolist() == [2, 1, 0]  # in the order of the annotations
    np.testing.assert_allclose(read.x[:, 0, 0, 0] * 255, [140, 120, 100], atol=3)


def drop(name):
    return lambda files: files.pop(f"tiny-imagenet-200/{name}")


def put(name, content):
    return lambda files: files.update({f"tiny-imagenet-200/{name}": content})


@pytest.mark.parametrize(
    ("change", "split", "why"),
    [
        (drop("wnids.txt"), "train", "lacks wnids.txt"),
        (put("wnids.txt", b""), "train", "not a list of class identifiers"),
        (put("wnids.txt", b"../n01\n"), "train", "not a list of class identifiers"),
        (put("wnids.txt", b"n01\nn02\nn03\nn04\n"), "train", r"train/n04/images.*1 of 4"),
        (put("train/n01/images/n01_0.JPEG", b"text"), "train", "n01_0.JPEG.*not readable as a JPEG"),
        (put("train/n01/images/n01_0.JPEG", jpeg(9)[:300]), "train", "n01_0.JPEG.*not readable as a JPEG"),
        (put("train/n01/images/n01_0.JPEG", jpeg(9, side=32)), "train", "32×32 pixels, not 64×64"),
        (put("train/n01/images/n01_0.JPEG", bytes(2**20 + 1)), "train", "larger than"),
        (drop("val/val_annotations.txt"), "test", "lacks val/val_annotations.txt"),
        (put("val/val_annotations.txt", b"\n"), "test", "names no images"),
        (put("val/val_annotations.txt", b"val_0.JPEG\tn09\t0\t0\n"), "test", "line 1"),
        (put("val/val_annotations.txt", b"../../secret.JPEG\tn01\n"), "test", "line 1"),
        (drop("val/images/val_1.JPEG"), "test", "lacks val/images/val_1.JPEG"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, place, change, split, why):
    with pytest.raises(DataError, match=why):
        read_data(f"tiny-imagenet:{place(tmp_path, altered(change))}", split)


def test_damaged_or_absent(tmp_path):
    whole = zipped(tmp_path / "a.zip", tiny_imagenet()).read_bytes()
    cut = tmp_path / "cut.zip"
    for content in (whole[: len(whole) // 2], b"text", b"", whole.replace(b"n01", b"n05", 1)):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.zip"):
            read_data(f"tiny-imagenet:{cut}", "train")
    with pytest.raises(DataError, match="no such file"):
        read_data(f"tiny-imagenet:{tmp_path / 'absent.zip'}", "train")
    with pytest.raises(DataError, match=r"lacks wnids\.txt"):
        read_data(f"tiny-imagenet:{zipped(tmp_path / 'other.zip', {'a': b''})}", "train")


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"Pillow(.|\n)*lipray\[images\]"):
        read_data(f"tiny-imagenet:{tmp_path}", "train")

"""CIFAR in its published formats, damaged and hostile archives."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from lipray.data.read import read_data
from lipray.data.restricted_pickle import load_pickle
from lipray.errors import DataError
from tests.archives import BATCH, cifar_binary, cifar_python, folder, images, labels, python2, tar

VERSIONS = [(10, cifar_python), (10, cifar_binary), (100, cifar_python), (100, cifar_binary)]


def expected(classes, split):
    files = {(10, "train"): range(5), (10, "test"): [5], (100, "train"): [0], (100, "test"): [1]}[classes, split]
    x = np.concatenate([images(BATCH, seed) for seed in files]).reshape(-1, 3, 32, 32)
    return x.astype(np.float32) / 255, np.concatenate([labels(seed, classes) for seed in files])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("classes", "files"), VERSIONS)
def test_every_version_gives_the_same(tmp_path, classes, files, split):
    made = files(classes)
    inner = next(iter(made)).split("/")[0]
    x, y = expected(classes, split)
    places = [tar(tmp_path / "any-name.tgz", made), folder(tmp_path, made), tmp_path / inner]
    for place in places:
        read = read_data(f"cifar{classes}:{place}", split)
        assert read.shape == (3, 32, 32)
        assert read.classes == classes
        np.testing.assert_array_equal(read.x, x)
        np.testing.assert_array_equal(read.y, y)
    assert len(list(tmp_path.iterdir())) == 2  # nothing was unpacked


def test_a_record_is_red_then_green_then_blue(tmp_path):
    record = bytes([7]) + bytes([255] * 1024 + [51] * 1024 + [0] * 1023 + [102])
    read = read_data(f"cifar10:{folder(tmp_path, {'cifar-10-batches-bin/test_batch.bin': record})}", "test")
    assert read.y.tolist() == [7]
    np.testing.assert_allclose(read.x[0].reshape(3, -1).min(axis=1), [1, 0.2, 0])
    assert read.x[0, 2, 31, 31] == np.float32(0.4)


def test_pickles_of_python_3_are_read_too():
    held = {b"data": images(2, 0), b"labels": [1, 2], b"filenames": [b"a", b"b"]}
    read = load_pickle(pickle.dumps(held, protocol=2), "x")
    np.testing.assert_array_equal(read["data"], held[b"data"])
    assert read["filenames"] == [b"a", b"b"]


class Hostile:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(Hostile(os.mkdir, "made")),
        pickle.dumps(Hostile(os.mkdir, "made"), 2),
        pickle.dumps(Hostile(eval, "open('made', 'w')"), 2),
        pickle.dumps({b"data": Hostile(os.mkdir, "made"), b"labels": [1]}, 0),
        pickle.dumps(Hostile(np.fromfile, "made"), 2),
        pickle.dumps(np.array([Hostile(os.mkdir, "made")]), 2),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}, 2),
        b"c_codecs\nencode\n(Vtext\nVzlib_codec\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n}b.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy\ndtype\n)\x81.",
        b"cos\nmkdir\n.",
        b"(S'made'\nios\nmkdir\n.",
        b"\x82\x01.",
        b"Pmade\n.",
        b"Nr\xff\xff\xff\x7f.",
        b"\x96" + bytes([0, 0, 0, 0, 9, 0, 0, 0]) + b".",
        b"",
        b"not a pickle",
    ],
)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, pickled):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path, {"cifar-10-batches-py/test_batch": pickled})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="test_batch"):
        read_data(f"cifar10:{tmp_path}", "test")
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_pickle_may_call_cannot_be_changed_by_it():
    changed = b"c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__Nstb."
    with pytest.raises(DataError, match="changes what it may only call"):
        load_pickle(changed, "x")
    assert load_pickle(b"c_codecs\nencode\n(Vtext\ntR.", "x") == b"text"


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"data": images(2, 0), "labels": [1]}, "2 images with 1 labels"),
        ({"data": images(2, 0), "labels": [1, 10]}, "outside 0 … 9"),
        ({"data": images(2, 0), "labels": [1, -1]}, "whole numbers from 0"),
        ({"data": images(2, 0), "labels": [1, "2"]}, "whole numbers"),
        ({"data": images(2, 0)[:, :3000], "labels": [1, 2]}, "shape"),
        ({"data": images(2, 0)}, "no entries data and labels"),
        ({"data": [1, 2], "labels": [1, 2]}, "array of bytes"),
        ([1, 2], "no entries"),
    ],
)
def test_a_pickle_with_other_entries(tmp_path, held, why):
    with pytest.raises(DataError, match=why):
        read_data(f"cifar10:{folder(tmp_path, {'cifar-10-batches-py/test_batch': python2(held)})}", "test")


def test_binary_records_that_do_not_fit(tmp_path):
    folder(tmp_path, {"cifar-10-batches-bin/test_batch.bin": bytes(3074)})
    with pytest.raises(DataError, match="records of 3073"):
        read_data(f"cifar10:{tmp_path}", "test")
    folder(tmp_path, {"cifar-10-batches-bin/test_batch.bin": bytes([10]) + bytes(3072)})
    with pytest.raises(DataError, match="example 0 is 10, outside 0 … 9"):
        read_data(f"cifar10:{tmp_path}", "test")


def test_an_incomplete_archive_names_what_it_lacks(tmp_path):
    files = cifar_python(10)
    del files["cifar-10-batches-py/data_batch_3"]
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/data_batch_3"):
        read_data(f"cifar10:{tar(tmp_path / 'a.tar.gz', files)}", "train")


def test_another_data_set_is_told(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", cifar_python(100))
    with pytest.raises(DataError, match=r"no file of CIFAR-10.*\n.*cifar-10-python.tar.gz"):
        read_data(f"cifar10:{archive}", "train")


def test_damaged_archives(tmp_path):
    whole = tar(tmp_path / "a.tar.gz", cifar_binary(10)).read_bytes()
    for content in (whole[: len(whole) // 2], b"text", b"", bytes(1000)):
        (tmp_path / "a.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar\.gz"):
            read_data(f"cifar10:{tmp_path / 'a.tar.gz'}", "train")
    with pytest.raises(DataError, match="no such file"):
        read_data(f"cifar10:{tmp_path / 'absent'}", "train")


def test_a_changed_pixel_in_an_archive_is_noticed(tmp_path):
    """Compressed archives end with a checksum, which tells what no length or header does."""
    whole = bytearray(tar(tmp_path / "a.tar.gz", cifar_binary(10)).read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(whole)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"a\.tar\.gz"):
            read_data(f"cifar10:{tmp_path / 'a.tar.gz'}", split)


def test_random_damage_is_always_named(tmp_path):
    """What a pickle or a tar file says after bytes of it have changed may be anything; it is data, or an error."""
    random = np.random.default_rng(0)
    tarred = tar(tmp_path / "whole.tar.gz", cifar_python(100)).read_bytes()
    pickled = cifar_python(100)["cifar-100-python/test"]
    refused = 0
    for trial in range(120):
        content = bytearray(tarred if trial % 4 == 0 else pickled)
        ends = np.r_[0:120, len(content) - 200 : len(content)]  # where what is not pixels stands
        for place in random.choice(ends, random.integers(1, 4)):
            content[place] = random.integers(256)
        place = tmp_path / ("a.tar.gz" if trial % 4 == 0 else "cifar-100-python/test")
        folder(tmp_path, {place.relative_to(tmp_path).as_posix(): bytes(content)})
        try:
            read_data(f"cifar100:{place if trial % 4 == 0 else tmp_path}", "test")
        except DataError:
            refused += 1
    assert refused > 60


def test_links_and_strange_paths_are_not_followed(tmp_path):
    secret = folder(tmp_path, {"secret": bytes([1]) + bytes(3072)}) / "secret"
    name = "cifar-10-batches-bin/test_batch.bin"
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        inside = tarfile.TarInfo(f"../../{name}")
        inside.size = 3073
        archive.addfile(inside, io.BytesIO(bytes(3073)))
    with pytest.raises(DataError, match="no file of CIFAR-10"):
        read_data(f"cifar10:{tmp_path / 'links.tar.gz'}", "test")


def test_a_name_that_comes_twice(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            info.size = 3073
            archive.addfile(info, io.BytesIO(bytes(3073)))
    with pytest.raises(DataError, match="twice"):
        read_data(f"cifar10:{tmp_path / 'a.tar'}", "test")


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("lipray.data.members.LARGEST", 1000)
    with pytest.raises(DataError, match="larger than 1000 bytes"):
        read_data(f"cifar10:{tar(tmp_path / 'a.tar.gz', cifar_binary(10))}", "test")

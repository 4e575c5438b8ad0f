"""Small archives in the formats that data sets are published in, made from nothing."""

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

BATCH = 3  # images in a file


class Python2(pickle._Pickler):
    """Writes what cPickle of Python 2 wrote at protocol 2: every string is one of bytes."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as its base has it

    def _string(self, text):
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[bytes] = _string
    dispatch[str] = _string


def python2(value):
    file = io.BytesIO()
    Python2(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def images(count, seed):
    """Rows of pixels as CIFAR has them."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar_python(classes):
    """Files of the Python version, by name; labels of CIFAR-10 are 0, 3, 6, 9 … across the files."""
    if classes == 10:
        names = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")]
        key = "labels"
    else:
        names, key = ["cifar-100-python/train", "cifar-100-python/test"], "fine_labels"
    files = {}
    for seed, name in enumerate(names):
        held = {
            "batch_label": name,
            key: labels(seed, classes),
            "data": images(BATCH, seed),
            "filenames": ["a.png"] * 3,
        }
        if classes == 100:
            held["coarse_labels"] = [0] * BATCH
        files[name] = python2(held)
    return files


def cifar_binary(classes):
    """Files of the binary version, with the same images and labels."""
    if classes == 10:
        names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
        folder, before = "cifar-10-batches-bin", b""
    else:
        names, folder, before = ["train.bin", "test.bin"], "cifar-100-binary", b"\x00"
    return {
        f"{folder}/{name}": b"".join(
            before + bytes([label]) + row.tobytes()
            for label, row in zip(labels(seed, classes), images(BATCH, seed), strict=True)
        )
        for seed, name in enumerate(names)
    }


def labels(seed, classes):
    return [(seed * BATCH + row) * 3 % classes for row in range(BATCH)]


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def folder(path, files):
    for name, content in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return path


def jpeg(level, *, grey=False, side=64):
    file = io.BytesIO()
    Image.new("L" if grey else "RGB", (side, side), level if grey else (level, 0, 255 - level)).save(file, "JPEG")
    return file.getvalue()


def tiny_imagenet(identifiers=("n02", "n01", "n03")):
    """Files of Tiny-ImageNet: two training images per class, the second grey, one validation image per class."""
    files = {"wnids.txt": "\n".join(identifiers).encode(), "words.txt": b"n01\tthing\n"}
    lines = []
    for number, each in enumerate(sorted(identifiers)):
        files[f"train/{each}/images/{each}_0.JPEG"] = jpeg(20 * number)
        files[f"train/{each}/images/{each}_1.JPEG"] = jpeg(20 * number, grey=True)
        files[f"train/{each}/{each}_boxes.txt"] = b""
        files[f"val/images/val_{number}.JPEG"] = jpeg(100 + 20 * number)
        lines.append(f"val_{number}.JPEG\t{each}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    files["test/images/test_0.JPEG"] = jpeg(0)
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path

"""The store: what is kept comes back, what is damaged is found out, and no write is ever seen half done."""

import errno
import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipray.certify.certificate import Certificate, Status
from lipray.certify.solve import solve
from lipray.errors import StoreError, UsageError
from lipray.partition.subproblem import Settings, Subproblem
from lipray.run.lower_bound import Ascent, ascend
from lipray.run.store import objects
from lipray.run.store.files import STALE
from lipray.run.store.objects import object_key
from lipray.run.store.solved import open_store
from tests.maps import Maps


def network(seed=3):
    maps = Maps(1, 6, 6, seed=seed)
    maps.conv(2, padding=1)
    maps.act()
    maps.flatten()
    maps.dense(3)
    return maps.network()


NETWORK = network()
PROBLEM = Subproblem("one", NETWORK, "ellipsoid", Settings(iterations=3))
ASCENT = Ascent("two", NETWORK, 0, 2, 3, 7, np.ones((1, *NETWORK.input_shape)))


@pytest.fixture(params=["local", "memory", "file"])
def place(request, tmp_path):
    """A path, or the URL of a file system of fsspec's."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}/store"


def same(one, other):
    assert type(one) is type(other)
    for name in one.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if name == "proof":
            assert (a is None) == (b is None)
            if a is not None:
                same(a, b)
        elif name == "multipliers":
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        else:
            assert a == b, name


@pytest.mark.parametrize("method", ["product", "ellipsoid", "frequency", "hybrid"])
def test_certificates_come_back_as_they_were(place, method):
    problem = replace(PROBLEM, method=method)
    value = solve(problem)
    store = open_store(place)
    assert store.get(problem) is None
    store.put(problem, value)
    same(open_store(place).get(problem), value)


def test_witnesses_come_back_as_they_were(place):
    value = ascend(ASCENT)
    store = open_store(place)
    store.put(ASCENT, value)
    same(store.get(ASCENT), value)


def test_an_infinite_bound_and_none_of_the_rest_come_back(place):
    value = Certificate(PROBLEM.key(), "ellipsoid", math.inf, Status.FALLBACK, figures={"product": math.inf})
    store = open_store(place)
    store.put(PROBLEM, value)
    same(store.get(PROBLEM), value)


def test_the_key_is_what_the_answer_depends_on():
    changed = {key: array.copy() for key, array in NETWORK.weights.items()}
    first = next(iter(changed))
    changed[first].flat[0] = np.nextafter(changed[first].flat[0], np.inf)
    others = [
        replace(PROBLEM, network=replace(NETWORK, weights=changed)),
        replace(PROBLEM, method="sdp"),
        replace(PROBLEM, settings=Settings(iterations=4)),
        ASCENT,
        replace(ASCENT, seed=8),
        replace(ASCENT, first=1),
        replace(ASCENT, starts=3),
        replace(ASCENT, steps=4),
        replace(ASCENT, points=None),
        replace(ASCENT, points=2.0 * ASCENT.points),
    ]
    keys = [object_key(work) for work in (PROBLEM, *others)]
    assert len(set(keys)) == len(keys)
    assert object_key(replace(PROBLEM, label="another")) == keys[0]
    assert object_key(replace(PROBLEM, settings=Settings(iterations=3, workers=5, device="cuda"))) == keys[0]


def test_another_algorithm_finds_nothing(place, monkeypatch):
    store = open_store(place)
    store.put(PROBLEM, solve(PROBLEM))
    monkeypatch.setattr(objects, "ALGORITHM", objects.ALGORITHM + 1)
    assert store.get(PROBLEM) is None
    assert not store.damaged


def kept(tmp_path):
    """A local store with one object; its record and its arrays."""
    store = open_store(str(tmp_path / "store"))
    store.put(PROBLEM, solve(PROBLEM))
    (record,) = (tmp_path / "store").rglob("*.json")
    (arrays,) = (tmp_path / "store").rglob("*.npz")
    return store, record, arrays


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("length", [0, 1, 70, -1])
def test_truncated_files_are_quarantined_and_done_again(tmp_path, which, length):
    store, *files = kept(tmp_path)
    files[which].write_bytes(files[which].read_bytes()[:length])
    assert store.get(PROBLEM) is None
    assert len(store.damaged) == 1
    assert any((tmp_path / "store" / "quarantine").iterdir())
    value = solve(PROBLEM)
    store.put(PROBLEM, value)
    assert store.get(PROBLEM).bound == value.bound


@pytest.mark.parametrize("which", [0, 1])
def test_every_changed_byte_is_found(tmp_path, which):
    store, *files = kept(tmp_path)
    whole = [file.read_bytes() for file in files]
    for position in range(0, len(whole[which]), 37):
        for file, content in zip(files, whole, strict=True):
            file.write_bytes(content)
        content = bytearray(whole[which])
        content[position] ^= 1 << position % 8
        files[which].write_bytes(bytes(content))
        assert store.get(PROBLEM) is None, position
    assert store.damaged


def test_arrays_that_are_gone_and_records_under_foreign_names_are_damage(tmp_path):
    store, record, arrays = kept(tmp_path)
    other = replace(PROBLEM, method="sdp")
    key = object_key(other)
    there = tmp_path / "store" / "objects" / key[:2] / f"{key}.json"
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(record.read_bytes())
    assert store.get(other) is None
    assert "another object's" in store.damaged[0]
    arrays.unlink()
    store.put(PROBLEM, solve(PROBLEM))
    arrays.unlink()
    assert store.get(PROBLEM) is None
    assert "arrays are gone" in store.damaged[1]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fault):
    store, record, arrays = kept(tmp_path)
    before = {path: path.read_bytes() for path in (record, arrays)}

    def fail(_descriptor):
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
        store.put(PROBLEM, replace(solve(PROBLEM), bound=123.0))
    if isinstance(fault, OSError):
        assert "No space left on device" in str(caught.value)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert not list((tmp_path / "store").rglob("*.part"))
    assert store.get(PROBLEM).bound != 123.0


def test_files_of_writers_long_gone_are_swept(tmp_path):
    _, record, _ = kept(tmp_path)
    old, new = record.with_name(".a.part"), record.with_name(".b.part")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    open_store(str(tmp_path / "store"))
    assert not old.exists()
    assert new.exists()


def test_readers_beside_a_writer_see_whole_objects(tmp_path):
    """Two writers of different values under one key, and a reader: it gets the one or the other, never a mixture."""
    store = open_store(str(tmp_path / "store"))
    values = [solve(PROBLEM), replace(solve(PROBLEM), bound=99.0, gram=np.full((3, 3), 7.0))]
    store.put(PROBLEM, values[0])
    stop = threading.Event()

    def write(value):
        while not stop.is_set():
            store.put(PROBLEM, value)

    writers = [threading.Thread(target=write, args=(value,)) for value in values]
    for writer in writers:
        writer.start()
    try:
        for _ in range(60):
            found = store.get(PROBLEM)
            assert found is not None
            same(found, values[0] if found.bound == values[0].bound else values[1])
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not store.damaged


def test_a_store_that_cannot_be_used_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(file / "store"))
    with pytest.raises(UsageError, match="--store"):
        open_store("nosuchprotocol://bucket/store")
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    Path(tmp_path / "store" / "objects").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        store.put(PROBLEM, solve(PROBLEM))

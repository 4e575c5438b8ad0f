"""The certificate file: what is written reads back, and whatever else is there is refused in one line, unread."""

import copy
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lipray.errors import CertificateError
from lipray.verify import record as record_file
from lipray.verify.record import ARRAYS, NAME, decode, digest_of, encode, expected_arrays, read, unpack

HASH = "0123456789abcdef" * 4
LAMBDAS = {"0-0": np.array([0.25, 1.5, 1e-200]), "0-1": np.array([7.0]), "1-0": np.array([0.1, 0.2])}
EXPECTED = {name: len(values) for name, values in LAMBDAS.items()}


def sample():
    """The fields of a certificate that has one of everything; it is about no network."""
    return {
        "schema_version": 1,
        "lipray": "0.1.0",
        "model": {"input_shape": [1, 4, 4], "output_shape": [3], "graph": HASH, "weights": HASH[::-1]},
        "selection": {"rows": None, "pairs": [[0, 2], [1, 0]]},
        "problems": [
            {
                "content": HASH,
                "method": "ellipsoid",
                "kind": "dense",
                "cut": None,
                "window": False,
                "sides": [],
                "windows": [],
                "layers": [{"name": "relu1", "width": 3}, {"name": "ünïcode", "width": 1}],
                "claim": 1.5,
            },
            {
                "content": HASH[::-1],
                "method": "hybrid",
                "kind": "torus",
                "cut": 2,
                "window": True,
                "sides": [[6, 6], [3, 3]],
                "windows": [],
                "layers": [{"name": "relu2", "width": 2}],
                "claim": 2e-17,
            },
        ],
        "blocks": [
            {
                "first": 0,
                "last": 4,
                "composition": "overlap",
                "tiles": [
                    {"window": [[0, 2], [0, 4]], "problem": 0, "restricted": False},
                    {"window": [[2, 4], [0, 4]], "problem": 0, "restricted": True},
                ],
                "claim": 1.75,
            },
            {
                "first": 4,
                "last": 6,
                "composition": "whole",
                "tiles": [{"window": [], "problem": 1, "restricted": False}],
                "claim": 0.0,
            },
        ],
        "claim": 1e300,
    }


def signed(values, packed=b""):
    """``certificate.json`` that names these arrays, its digest right whatever it holds."""
    full = {key: value for key, value in values.items() if key != "digest"}
    full.setdefault("arrays", hashlib.sha256(packed).hexdigest())
    try:
        return json.dumps({**full, "digest": digest_of(full)}).encode()
    except ValueError:  # a NaN, of which there is no digest
        return json.dumps({**full, "digest": HASH}).encode()


def changed(values, place, value):
    """The fields with the one at a path such as ``"problems.0.claim"`` replaced by a value, or a function of it."""
    values = copy.deepcopy(values)
    *path, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    inner = values
    for step in path:
        inner = inner[step]
    inner[last] = value(inner[last]) if callable(value) else value
    return values


def header(text, *, magic=b"\x93NUMPY\x01\x00"):
    return magic + len(text).to_bytes(2, "little") + text


def npy(shape, *, descr="'<f8'", fortran="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode())


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


THREE = npy("(3,)") + LAMBDAS["0-0"].tobytes()
ONE = npy("(1,)") + LAMBDAS["0-1"].tobytes()
TWO = npy("(2,)") + LAMBDAS["1-0"].tobytes()
REST = [("0-1.npy", ONE), ("1-0.npy", TWO)]


@pytest.fixture
def folder(tmp_path):
    """A folder inside another one; nothing may appear in either."""
    inner = tmp_path / "outer" / "run"
    inner.mkdir(parents=True)
    return inner


def put(folder, first, second=None):
    (folder / NAME).write_bytes(first)
    if second is not None:
        (folder / ARRAYS).write_bytes(second)


def refused(folder, says=(), file=NAME):
    """Reading fails in one line that names the file and says each of ``says``; nothing is warned of or written."""
    top = folder.parents[1]
    before = sorted(top.rglob("*"))
    with warnings.catch_warnings(record=True, action="always") as warned, pytest.raises(CertificateError) as caught:
        read(folder)
    assert not warned
    message = caught.value.describe()
    assert message.startswith(f"{folder / file}: ")
    assert message.isprintable()
    assert len(message) < 500 + len(str(folder))
    for part in says:
        assert part in message
    assert sorted(top.rglob("*")) == before


def test_what_is_written_reads_back(folder):
    first, second = encode(sample(), LAMBDAS)
    put(folder, first, second)
    for path in (folder, folder / NAME):
        record, arrays = read(path)
        plain = record.model_dump(mode="json")
        assert {key: plain[key] for key in sample()} == sample()
        assert {name: values.tobytes() for name, values in arrays.items()} == {
            name: values.tobytes() for name, values in LAMBDAS.items()
        }
        assert all(values.dtype == np.float64 for values in arrays.values())
    assert encode(sample(), LAMBDAS) == (first, second)
    other = folder / "kept.json"
    (folder / NAME).rename(other)
    assert read(other)[0] == record


def test_the_format_needs_nothing_of_lipray():
    first, second = encode(sample(), LAMBDAS)
    values = json.loads(first)
    assert hashlib.sha256(second).hexdigest() == values["arrays"]
    digest = values.pop("digest")
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == digest
    assert text.isascii()
    with np.load(io.BytesIO(second), allow_pickle=False) as arrays:
        assert {name: arrays[name].tolist() for name in arrays.files} == {k: v.tolist() for k, v in LAMBDAS.items()}
    with zipfile.ZipFile(io.BytesIO(second)) as file:
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}


def test_single_precision_and_foreign_byte_order_are_not_written():
    given = {"0-0": LAMBDAS["0-0"].astype(">f8"), "0-1": np.float32([7.0]), "1-0": LAMBDAS["1-0"]}
    assert encode(sample(), given) == encode(sample(), LAMBDAS)


def test_the_example_by_hand_is_one():
    """What the refusals below are variations of is itself accepted."""
    packed = archive([("0-0.npy", THREE), *REST])
    record = decode(NAME, signed(sample(), packed))
    assert expected_arrays(record) == EXPECTED
    assert unpack(ARRAYS, packed, EXPECTED)["0-0"].tolist() == LAMBDAS["0-0"].tolist()
    plain = {key: value for key, value in sample().items() if key != "selection"} | {"selection": {}}
    for part in plain["blocks"][1]["tiles"]:
        part.pop("window"), part.pop("restricted")
    full = {**sample(), "selection": {"rows": None, "pairs": None}, "arrays": HASH}
    assert decode(NAME, json.dumps({**plain, "arrays": HASH, "digest": digest_of(full)}).encode())


@pytest.mark.parametrize("missing", [NAME, ARRAYS])
def test_missing_files(folder, missing):
    put(folder, *encode(sample(), LAMBDAS))
    (folder / missing).unlink()
    refused(folder, ["cannot be read (No such file or directory)"], missing)
    (folder / missing).mkdir()
    refused(folder, ["no plain file"], missing)


def test_missing_folder_and_folder_without_a_run(folder):
    refused(folder, ["cannot be read"])
    with pytest.raises(CertificateError, match=r"nowhere: cannot be read \(No such file"):
        read(folder / "nowhere")
    (folder / "file").touch()
    with pytest.raises(CertificateError, match=r"certificate.json: cannot be read \(Not a directory\)"):
        read(folder / "file" / NAME)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", [NAME, ARRAYS])
def test_a_pipe_is_not_waited_for(folder, file):
    put(folder, *encode(sample(), LAMBDAS))
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(folder, ["no plain file"], file)


def unread(monkeypatch, name):
    """Opening files of this name fails the test."""
    opened = Path.open

    def guarded(path, *rest, **more):
        assert path.name != name
        return opened(path, *rest, **more)

    monkeypatch.setattr(Path, "open", guarded)


def test_files_too_large_are_not_read(folder, monkeypatch):
    first, second = encode(sample(), LAMBDAS)
    put(folder, first, second)
    os.truncate(folder / ARRAYS, 10**8)
    with monkeypatch.context() as patched:
        unread(patched, ARRAYS)
        refused(folder, ["larger than"], ARRAYS)
    os.truncate(folder / NAME, 10**8)
    with monkeypatch.context() as patched:
        unread(patched, NAME)
        refused(folder, [f"larger than the {2**24} bytes"])
    put(folder, first, second)
    monkeypatch.setattr(record_file, "LARGEST_RECORD", len(first))
    assert read(folder)
    monkeypatch.setattr(record_file, "LARGEST_RECORD", len(first) - 1)
    unread(monkeypatch, NAME)
    refused(folder, ["larger than"])


def test_declared_sizes_are_not_believed(folder):
    """Widths beyond any memory, of thousands of layers, cost nothing until the numbers are there."""
    values = sample()
    values["problems"][0]["layers"] = [{"name": "relu", "width": 2**31 - 1}] * 3000
    packed = archive([("0-0.npy", THREE), *REST])
    put(folder, signed(values, packed), packed)
    refused(folder, ["0-0.npy", "not 2147483647 float64 numbers"], ARRAYS)


@pytest.mark.parametrize("version", [0, 2, 17, -1, 10**30])
def test_another_version_is_named_beside_this_one(folder, version):
    put(folder, json.dumps({"schema_version": version, "whatever": [1]}).encode())
    refused(folder, [f"has schema version {version}, and this reads 1"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"\xff\xfe\x00\x01", "expected value"),
        (json.dumps(sample()).encode("utf-16"), "expected value"),
        (b"\xef\xbb\xbf" + signed(sample()), "expected value"),
        (b'{"schema_version": 1, "lipray": "\xff\xfe"}', "unicode"),
        (b'{"schema_version": 1, "lipray": "\\ud800"}', "hex escape"),
        (signed(sample()) + b"{}", "trailing"),
        (b"[" * 100_000, "recursion"),
        (b'{"schema_version": 1, "model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "recursion"),
        (b'{"schema_version": ' + b"9" * 10_000 + b"}", "out of range"),
        (b"null", "schema_version"),
        (b"[1]", "schema_version"),
        (b"{}", "schema_version"),
        (b'{"schema_version": true}', "schema_version"),
        (b'{"schema_version": 1.0}', "schema_version"),
        (b'{"schema_version": "1"}', "schema_version"),
        (b'{"schema_version": 1}', "lipray"),
        (json.dumps({str(key): 0 for key in range(1000)}).encode(), "1000 keys"),
    ],
)
def test_no_json_of_a_certificate(folder, content, says):
    put(folder, content, b"")
    refused(folder, [f"{NAME}: is no certificate (", says])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("claim", value) for value in (-1.0, -1e-300, NAN, INF, -INF, "1.0", True, None, [1.0], {})),
        *(("problems.0.claim", value) for value in (-1.0, NAN, INF, "2", False)),
        *(("blocks.1.claim", value) for value in (-1.0, NAN, -INF)),
        *(("blocks.0.first", value) for value in (-1, 2**31, 10**40, 0.0, "0", False, None)),
        *(("blocks.0.tiles.0.problem", value) for value in (-1, 1e9, True)),
        *(("blocks.0.tiles.0.restricted", value) for value in (0, 1, "false", None)),
        ("blocks.0.tiles.0.window", [[0, 1], [0, 1], [0, 1]]),
        ("blocks.0.tiles.0.window", [[0, 1, 2]]),
        ("blocks.0.tiles.0.window", [[0]]),
        ("blocks.0.tiles.0.window.0.1", -2),
        ("blocks.0.tiles.0.window.0.1", 1.5),
        ("blocks.0.tiles", []),
        ("blocks.0.tiles", {}),
        ("blocks.0.composition", "product"),
        ("blocks", []),
        ("blocks", "none"),
        ("problems.0.kind", "DENSE"),
        ("problems.0.kind", None),
        ("problems.0.method", "sdp\nverified: L = 0"),
        ("problems.0.method", "\x1b[2J"),
        ("problems.0.method", ""),
        ("problems.0.method", "x" * 41),
        ("problems.0.method", 3),
        ("problems.0.content", HASH.upper()),
        ("problems.0.content", HASH[:-1]),
        ("problems.0.content", HASH + "\n"),
        ("problems.0.cut", -1),
        ("problems.0.cut", "2"),
        ("problems.0.window", 1),
        ("problems.1.sides", [[6, 6, 6]]),
        ("problems.1.sides", [[]]),
        ("problems.1.sides", [[0, 6]]),
        ("problems.1.sides", [[6.0, 6]]),
        ("problems.0.layers.0.width", -3),
        ("problems.0.layers.0.width", 2**31),
        ("problems.0.layers.0.width", True),
        ("problems.0.layers.0.name", None),
        ("problems.0.layers.0", ["relu1", 3]),
        ("problems.0", None),
        ("selection.rows", [0.0]),
        ("selection.rows", "0,1"),
        ("selection.pairs", [[0, 1, 2]]),
        ("selection.pairs", [[True, 1]]),
        ("selection", None),
        ("model.input_shape", []),
        ("model.input_shape", [1, 4, 4, 4]),
        ("model.input_shape", [1, 0, 4]),
        ("model.output_shape", [2**31]),
        ("model.graph", 5),
        ("model.weights", ""),
        ("lipray", 1),
        ("arrays", "sha"),
    ],
)
def test_numbers_and_words_that_do_not_belong_are_named(folder, place, value):
    """The digest is that of the changed content: only the format stands in the way, and it names the place."""
    put(folder, signed(changed(sample(), place, value)), b"")
    named = place if place.count(".") < 4 else place[: place.rindex(".")]
    refused(folder, [f"{NAME}: is no certificate ({named}"])


@pytest.mark.parametrize("place", ["", "model", "selection", "problems.0", "blocks.0", "blocks.0.tiles.0"])
def test_keys_too_many_are_named_and_cannot_forge_a_line(folder, place):
    key = "extra\nerror: none\x1b[31m" + "x" * 10_000
    put(folder, signed(changed(sample(), f"{place}.{key}".removeprefix("."), 1)), b"")
    refused(folder, ["extra error: none", "xxx"])


@pytest.mark.parametrize(
    "place", [key for key in sample() if key != "schema_version"] + ["problems.0.claim", "blocks.0.tiles.0.problem"]
)
def test_keys_too_few_are_named(folder, place):
    values = sample()
    *path, last = place.split(".")
    inner = values
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    del inner[last]
    put(folder, signed(values), b"")
    refused(folder, [f"is no certificate ({place}: Field required)"])


def test_every_byte_of_the_json_is_under_the_digest():
    first, _ = encode(sample(), LAMBDAS)
    original = decode(NAME, first)
    kept = 0
    for position, byte in enumerate(first):
        for other in (byte ^ 1, byte ^ 0x10, ord("7"), ord(" ")):
            if other != byte:
                try:
                    found = decode(NAME, first[:position] + bytes([other]) + first[position + 1 :])
                except CertificateError:
                    continue
                assert found == original  # white space
                kept += 1
    assert kept < 0.2 * 4 * len(first)


def test_no_part_of_the_json_is_a_certificate():
    first, _ = encode(sample(), LAMBDAS)
    for length in range(len(first.rstrip())):
        with pytest.raises(CertificateError):
            decode(NAME, first[:length])


def test_every_byte_of_the_arrays_is_under_their_hash(folder):
    first, second = encode(sample(), LAMBDAS)
    put(folder, first)
    for position in range(0, len(second), 3):
        (folder / ARRAYS).write_bytes(second[:position] + bytes([second[position] ^ 4]) + second[position + 1 :])
        with pytest.raises(CertificateError, match=r"its SHA-256 is not the one"):
            read(folder)
    for length in range(0, len(second), 37):
        (folder / ARRAYS).write_bytes(second[:length])
        with pytest.raises(CertificateError, match=r"its SHA-256 is not the one"):
            read(folder)


def test_damaged_archives_give_the_numbers_or_nothing():
    """Also where the hash was made to fit: checksums and sizes of the archive hold the numbers fast."""
    _, second = encode(sample(), LAMBDAS)
    for position, byte in enumerate(second):
        for other in (byte ^ 1, byte ^ 0x80, 0xFF):
            try:
                found = unpack(ARRAYS, second[:position] + bytes([other]) + second[position + 1 :], EXPECTED)
            except CertificateError:
                continue
            assert {name: values.tolist() for name, values in found.items()} == {
                name: values.tolist() for name, values in LAMBDAS.items()
            }
    for length in range(len(second)):
        with pytest.raises(CertificateError):
            unpack(ARRAYS, second[:length], EXPECTED)


class Payload:
    """Pickled into an array; unpickling it would leave a file."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def objects():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()] * 3, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (objects(), "float64"),
        (npy("(3,)", descr="'|O'") + pickle.dumps([1, 2, 3]).ljust(24, b"."), "object"),
        (saved(np.float32([1, 2, 3])), "float32"),
        (npy("(6,)", descr="'<f4'") + bytes(24), "float32"),
        (npy("(3,)", descr="'>f8'") + bytes(24), ">f8"),
        (npy("(3,)", descr="'<i8'") + bytes(24), "int64"),
        (npy("(3,)", descr="'<c16'") + bytes(48), "complex128"),
        (npy("(3,)", descr="[('a', '<f8')]") + bytes(24), "[('a', '<f8')]"),
        (npy("(3,)", descr="('<f8', (1,))") + bytes(24), "(1,)"),
        (npy("(3,)", descr="'a8'") + bytes(24), "Warning"),
        (saved(np.ones((3, 1))), "(3, 1)"),
        (saved(np.ones((1, 3))), "(1, 3)"),
        (saved(np.ones(4)), "float64"),
        (saved(np.ones(2)), "float64"),
        (saved(np.float64(1.0)), "float64"),
        (npy("(3,)", fortran="True") + bytes(24), "Fortran"),
        (npy("(3L,)") + bytes(24), "Warning"),
        (npy("(-3,)") + bytes(24), "(-3,)"),
        (npy("(9223372036854775807,)") + bytes(24), "(9223372036854775807,)"),
        (npy("(3, 9999999999999999999999)") + bytes(24), "99999999"),
        (npy("__import__('os').abort()") + bytes(24), "damaged"),
        (npy("(3,)" + "," * 300) + bytes(24), "damaged"),
        (header(b"(" * 480) + bytes(24), "damaged"),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'more': '\\d'}") + bytes(24), "damaged"),
        (npy("(3,)").rstrip() + b" " * 600 + b"\n" + bytes(24), "float64 numbers"),
        (npy("(3,)")[:8] + b"\xff\xff" + npy("(3,)")[10:] + bytes(24), "damaged"),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}" + b" " * 460) + bytes(1), "damaged"),
        (b"\x93NUMPY\x02\x00" + THREE[8:], "another format"),
        (b"\x93NUMPX\x01\x00" + THREE[8:], "damaged"),
        (THREE + bytes(8), "float64"),
        (THREE[:-1], "float64"),
        (bytes(40), "damaged"),
        (b"", "float64"),
    ],
)
def test_members_that_are_no_such_array(folder, monkeypatch, content, says):
    monkeypatch.chdir(folder)
    packed = archive([("0-0.npy", content), *REST])
    put(folder, signed(sample(), packed), packed)
    refused(folder, ["is damaged (", says], ARRAYS)


@pytest.mark.parametrize(
    "name",
    ["../../x.npy", "/x.npy", "..\\..\\x.npy", "0-2.npy", "1-1.npy", "0-0", "0-0.npz", "0-0.NPY", ".npy", "a\nb"],
)
@pytest.mark.parametrize("beside", [True, False], ids=["too much", "instead"])
def test_members_of_another_name(folder, monkeypatch, name, beside):
    monkeypatch.chdir(folder)
    packed = archive([(name, THREE), *REST, *([("0-0.npy", THREE)] if beside else [])])
    put(folder, signed(sample(), packed), packed)
    refused(folder, ["does not belong there"], ARRAYS)


def test_a_member_twice_or_not_at_all(folder):
    packed = archive([("0-0.npy", THREE), *REST, ("0-0.npy", THREE)])
    put(folder, signed(sample(), packed), packed)
    refused(folder, ["'0-0.npy' does not belong there"], ARRAYS)
    packed = archive(REST)
    put(folder, signed(sample(), packed), packed)
    refused(folder, ["lacks '0-0' and 0 more arrays"], ARRAYS)
    put(folder, signed(sample(), archive([])), archive([]))
    refused(folder, ["lacks '0-0' and 2 more arrays"], ARRAYS)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("encrypted", "stored as they are"),
        ("checksum", "CRC"),
        ("overlapping", "differ"),
        ("no archive", "not a zip file"),
    ],
)
def test_archives_that_are_not_plain(folder, way, says):
    packed = bytearray(archive([("0-0.npy", THREE), *REST]))
    entry = packed.index(b"PK\x01\x02")
    if way == "encrypted":
        packed[entry + 8] |= 1
    elif way == "checksum":
        packed[entry + 16] ^= 1
    elif way == "overlapping":  # the second member's data are the first one's
        second = packed.index(b"PK\x01\x02", entry + 4)
        packed[second + 42 : second + 46] = packed[entry + 42 : entry + 46]
    else:
        packed = bytearray(b"PK" + bytes(200))
    put(folder, signed(sample(), packed), packed)
    refused(folder, ["is damaged (", says], ARRAYS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_bomb_is_not_unpacked(folder, compression):
    """Millions of zeros that take a few bytes: in the place of an array, and of the size it should have."""
    values = sample()
    for width, content in ((3, THREE + bytes(2**24)), (2**21, npy("(2097152,)") + bytes(2**24))):
        values["problems"][0]["layers"][0]["width"] = width
        packed = archive([("0-0.npy", content), *REST], compression)
        put(folder, signed(values, packed), packed)
        tracemalloc.start()
        refused(folder, [], ARRAYS)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


HOSTILE = """
import resource, sys
from lipray.errors import CertificateError
from lipray.verify.record import decode

size = 2**20
bodies = [
    b'{"schema_version": 1, "x": [' + b"0," * (size // 2) + b"0]}",
    b'{"schema_version": 1, "x": [' + b"[]," * (size // 3) + b"0]}",
    b'{"schema_version": 1, "blocks": [' + b"{}," * (size // 3) + b"0]}",
    b'{"schema_version": 1, "blocks": [{"tiles": [' + b"{}," * (size // 3) + b"0]}]}",
    b'{"schema_version": 1, "problems": [{"layers": [' + b"{}," * (size // 3) + b"0]}]}",
    b'{"schema_version": 1, ' + b",".join(b'"%06x": 0' % i for i in range(size // 12)) + b"}",
]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 160 * 2**20,) * 2)
for body in bodies:
    try:
        decode("file", body)
    except CertificateError as fault:
        print(len(fault.describe()) < 500)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux does")
def test_json_of_a_megabyte_takes_no_gigabyte():
    """Faults are found one at a time, and hold no copies of what they are about."""
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 6, done.stderr

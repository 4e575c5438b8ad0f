"""Bytes that nobody wrote as a certificate: the reader refuses them in its own words, soon, or reads what is there."""

import functools
import io
import json
import subprocess
import sys
import warnings
import zipfile
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lipray.errors import CertificateError, VerificationError
from lipray.verify.check import verify
from lipray.verify.record import ARRAYS, NAME, CertificateRecord, decode, encode, expected_arrays, unpack
from tests.maps import Maps
from tests.slopes import worst_slopes
from tests.verify.test_check import HUGE, by_hand
from tests.verify.test_record import EXPECTED, LAMBDAS, changed, sample, signed

RECORD, PACKED = encode(sample(), LAMBDAS)
quick = functools.partial(
    settings, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def outcome_of_json(content):
    """The record, or ``None`` where it is refused; any other exception is a defect."""
    try:
        return decode(NAME, content)
    except CertificateError as fault:
        check_message(fault)
        return None


def outcome_of_arrays(content):
    with warnings.catch_warnings(action="error"):
        try:
            return unpack(ARRAYS, content, EXPECTED)
        except CertificateError as fault:
            check_message(fault)
            return None


def check_message(fault):
    message = fault.describe()
    assert message.isprintable()
    assert len(message) < 400


@st.composite
def mutated(draw, original):
    """A few edits of valid bytes: changed, cut out, doubled, moved, or strange ones put between."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + draw(st.sampled_from((1, 4, 40, 2000))))))
        part = bytes(content[start:stop])
        match draw(st.integers(0, 5)):
            case 0 if start < len(content):
                content[start] = draw(st.integers(0, 255))
            case 1:
                del content[start:stop]
            case 2:
                content[stop:stop] = part
            case 3:
                place = draw(st.integers(0, len(content)))
                content[place:place] = part
            case 4:
                content[start:start] = draw(st.binary(max_size=8))
            case _:
                strange = (
                    b"NaN",
                    b"-1",
                    b"1e999",
                    b"[[",
                    b"null",
                    b'"\\u0000"',
                    b"PK\x01\x02",
                    b"\xff\xff\xff\xff",
                    b"9" * 30,
                )
                content[start:stop] = draw(st.sampled_from(strange))
    return bytes(content)


@quick(max_examples=150)
@given(st.one_of(st.binary(max_size=300), mutated(RECORD)))
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 10**5)
def test_bytes_as_the_record(content):
    found = outcome_of_json(content)
    assert found is None or found == decode(NAME, RECORD)


@quick(max_examples=100)
@given(st.one_of(st.binary(max_size=300), mutated(PACKED)))
@example(b"PK\x05\x06" + bytes(18))
def test_bytes_as_the_arrays(content):
    found = outcome_of_arrays(content)
    if found is not None:
        assert {name: values.tolist() for name, values in found.items()} == {
            name: values.tolist() for name, values in LAMBDAS.items()
        }


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["dense", "torus", "overlap", "0" * 64]),
)
keys = st.one_of(st.text(max_size=4), st.sampled_from([*CertificateRecord.model_fields, "tiles", "claim", "window"]))
plain_json = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def places(values, path=""):
    """Paths of all fields."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield f"{path}{key}"
        yield from places(value, f"{path}{key}.")


@quick(max_examples=80)
@given(plain_json)
def test_json_of_any_structure(value):
    assert outcome_of_json(json.dumps(value).encode()) is None
    assert outcome_of_json(json.dumps({"schema_version": 1, "value": value}).encode()) is None
    if isinstance(value, dict):
        assert outcome_of_json(json.dumps(value | {"schema_version": 1}).encode()) is None


@quick(max_examples=120)
@given(st.data())
def test_any_value_anywhere_in_a_record(data):
    """Signed again, so that nothing but the types is in the way; what is read is what is there."""
    values = sample()
    for _ in range(data.draw(st.integers(1, 2))):
        values = changed(values, data.draw(st.sampled_from(list(places(values)))), data.draw(plain_json))
    found = outcome_of_json(signed(values))
    if found is not None:
        plain = found.model_dump(mode="json")
        assert all(plain[key] == values[key] for key in values)


descriptions = st.sampled_from(
    ["'<f8'", "'>f8'", "'|O'", "'<f4'", "[('a', '<f8')]", "'<f8', 'x': 1", "'<U2'", "('<f8', (1,))"]
)
shapes = st.one_of(
    st.sampled_from(["(3,)", "(1,)", "(2,)", "()", "(3, 1)", "3", "(True,)", "(1.0,)", "[3]"]), st.text(max_size=12)
)


@st.composite
def members(draw):
    """A member of an archive: a name, and an array's header and numbers that may or may not fit each other."""
    name = draw(st.one_of(st.sampled_from([f"{key}.npy" for key in LAMBDAS]), st.text(max_size=12)))
    text = f"{{'descr': {draw(descriptions)}, 'fortran_order': {draw(st.booleans())}, 'shape': {draw(shapes)}, }}"
    text = text.encode("utf-8", "replace")
    length = draw(st.one_of(st.just(len(text)), st.integers(0, 2**16 - 1)))
    numbers = draw(
        st.one_of(st.sampled_from([values.tobytes() for values in LAMBDAS.values()]), st.binary(max_size=40))
    )
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
    return name, b"\x93NUMPY" + version + length.to_bytes(2, "little") + text + numbers


@quick(max_examples=100)
@given(
    st.lists(members(), max_size=4), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.binary(max_size=8)
)
def test_archives_of_any_members(parts, compression, comment):
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w", compression) as file:
        file.comment = comment
        for name, content in parts:
            file.writestr(zipfile.ZipInfo(name or "x"), content, compression)
    found = outcome_of_arrays(buffer.getvalue())
    if found is not None:
        assert {name: len(values) for name, values in found.items()} == EXPECTED


# -- through the check


def small():
    maps = Maps(1, 4, seed=1)
    maps.conv(2, padding=1)
    maps.act()
    maps.conv(1, padding=1)
    maps.act()
    return maps.network()


NETWORK = small()
LOWER = worst_slopes(NETWORK, 0)


CERTIFICATES = {
    kind: by_hand(NETWORK, kind, cut=4 if kind == "torus" else None) for kind in ("product", "dense", "torus")
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_what_is_varied_below_is_verified(kind):
    values, arrays = CERTIFICATES[kind]
    assert LOWER <= verify(decode(NAME, encode(values, arrays)[0]), arrays, NETWORK).bound <= HUGE


fitting = st.one_of(
    st.integers(0, 6),
    st.floats(0, 1e12),
    st.booleans(),
    st.none(),
    st.sampled_from(["product", "dense", "torus", "whole", "overlap", "sum"]),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(list), max_size=2),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=2), max_size=2),
)


@quick(max_examples=150)
@given(st.data())
def test_any_value_anywhere_in_a_certificate(data):
    """Values of the right types at least: refused by the reader, by the check, or a bound."""
    values, arrays = CERTIFICATES[data.draw(st.sampled_from(list(CERTIFICATES)))]
    for _ in range(data.draw(st.integers(1, 3))):
        values = changed(values, data.draw(st.sampled_from(list(places(values)))), data.draw(fitting))
    if data.draw(st.booleans()):
        part = data.draw(st.sampled_from(["problems", "blocks", "blocks.0.tiles", "problems.0.layers"]))
        if part in set(places(values)):
            values = changed(values, part, lambda items: [*items, *items] if isinstance(items, list) else items)
    record = outcome_of_json(signed(values))
    if record is None:
        return
    arrays = {
        name: arrays.get(name, np.full(width, 1e-3)) for name, width in expected_arrays(record).items() if width < 99
    }
    if arrays.keys() != expected_arrays(record).keys():
        return
    try:
        assert verify(record, arrays, NETWORK).bound >= LOWER
    except VerificationError as fault:
        check_message(fault)


# -- guided by coverage

FUZZ = """
import json
import sys

import atheris

with atheris.instrument_imports(include=["lipray.verify.record", "zipfile", "numpy.lib._format_impl"]):
    from lipray.errors import CertificateError
    from lipray.verify import record

EXPECTED = {expected!r}


def once(content):
    way, content = content[:1], content[1:]
    try:
        if way < b"\\x55":
            record.decode("file", content)
        elif way < b"\\xaa":
            record.unpack("file", content, EXPECTED)
        else:
            plain = json.loads(content)
            if isinstance(plain, dict):
                plain["digest"] = record.digest_of(plain)
            found = record.decode("file", json.dumps(plain).encode())
            record.expected_arrays(found)
    except CertificateError as fault:
        assert fault.describe().isprintable() and len(fault.describe()) < 400
    except (ValueError, RecursionError):
        if way < b"\\xaa":
            raise


atheris.Setup(sys.argv, once)
atheris.Fuzz()
"""


@pytest.mark.slow
def test_the_reader_under_atheris(tmp_path):
    """Tens of thousands of inputs, each new one chosen for the lines that it reaches; none ends the reader."""
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "json").write_bytes(b"\x00" + RECORD)
    (corpus / "arrays").write_bytes(b"\x60" + PACKED)
    (corpus / "signed").write_bytes(b"\xff" + RECORD)
    script = tmp_path / "fuzz.py"
    script.write_text(FUZZ.format(expected=EXPECTED))
    words = ["-runs=20000", "-seed=1", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    done = subprocess.run(
        [sys.executable, script, *words, corpus], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 20000 runs" in done.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name not in {"corpus", "fuzz.py"}]

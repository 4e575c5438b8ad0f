"""Where a cluster is, who may be spoken to, and with which token."""

import pytest

from lipray.errors import UsageError
from lipray.jobs.address import DEFAULT, VARIABLE, admit, resolve
from lipray.jobs.token import find_token, headers


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No address and no token from outside."""
    for name in (VARIABLE, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_address_given_wins_over_the_environment_over_the_default(monkeypatch):
    assert resolve(None).url == DEFAULT
    monkeypatch.setenv(VARIABLE, "http://10.0.0.5:8265/")
    assert resolve(None).url == "http://10.0.0.5:8265"
    assert resolve("https://head.example/ray/").url == "https://head.example/ray"


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "tls"),
    [
        ("127.0.0.1:8265", "127.0.0.1", 8265, True, False),
        ("http://localhost:1", "localhost", 1, True, False),
        ("http://127.8.9.1:1", "127.8.9.1", 1, True, False),
        ("http://[::1]:8265", "::1", 8265, True, False),
        ("https://127.0.0.1", "127.0.0.1", 443, True, True),
        ("http://head", "head", 80, False, False),
        ("http://127.0.0.1.example:8265", "127.0.0.1.example", 8265, False, False),
        ("http://localhost.example", "localhost.example", 80, False, False),
        ("http://0.0.0.0:8265", "0.0.0.0", 8265, False, False),  # noqa: S104 - refused unless protected
        ("https://10.0.0.5:8265", "10.0.0.5", 8265, False, True),
    ],
)
def test_addresses(text, host, port, loopback, tls):
    found = resolve(text)
    assert (found.host, found.port, found.loopback, found.tls) == (host, port, loopback, tls)


@pytest.mark.parametrize(
    "text", ["auto", "", "ray://head:10001", "http://", "ftp://head", "http://head:x", "http://h?a=1"]
)
def test_what_is_no_jobs_api_is_refused(text):
    with pytest.raises(UsageError):
        resolve(text)


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(UsageError) as caught:
        resolve("http://me:geheim@head:8265")
    assert "geheim" not in str(caught.value)


REMOTE = "http://10.0.0.5:8265"


def test_another_machine_without_token_and_tls_is_refused():
    with pytest.raises(UsageError, match="neither a token nor TLS") as caught:
        admit(resolve(REMOTE), token=False, insecure=False)
    assert "--insecure" in caught.value.hint
    assert "RAY_AUTH_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "token", "insecure", "remark"),
    [
        (DEFAULT, False, False, None),
        (DEFAULT, True, False, None),
        ("https://10.0.0.5", False, False, None),
        ("https://10.0.0.5", True, False, None),
        (REMOTE, True, False, "not encrypted"),
        (REMOTE, False, True, "no token and no TLS"),
    ],
)
def test_who_may_be_spoken_to(text, token, insecure, remark):
    said = admit(resolve(text), token=token, insecure=insecure)
    assert said is None if remark is None else remark in said


def test_the_token_is_found_where_ray_finds_it(monkeypatch, tmp_path):
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    assert find_token() == "from-home"
    (tmp_path / "other").write_text("  from-file ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert find_token() == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-environment")
    assert find_token() == "from-environment"
    assert headers("x") == {"Authorization": "Bearer x"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None
    assert headers(None) == {}


@pytest.mark.parametrize("bad", ["two words", "line\nbreak", "naïve", "   "])
def test_what_is_no_token_is_refused_and_not_repeated(monkeypatch, bad):
    monkeypatch.setenv("RAY_AUTH_TOKEN", bad)
    with pytest.raises(UsageError) as caught:
        find_token()
    assert bad.strip() == "" or bad not in str(caught.value)


def test_a_named_file_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        find_token()


def test_a_token_that_is_demanded_and_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UsageError, match="there is none"):
        find_token()

"""Every error: fields, message, hint, exit code, and the way through a pickle."""

import inspect
import pickle

import pytest

from lipray import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LiprayError)]


def make(kind, **keywords):
    numbers = {"needed": 2**33, "available": 2**30}
    return kind(*(numbers.get(name, f"the {name}") for name in kind.fields), **keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_survives_pickling(kind):
    error = make(kind, hint="try this")
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is kind
    assert (back.args, back.hint, str(back)) == (error.args, "try this", str(error))
    for name in kind.fields:
        assert getattr(back, name) == getattr(error, name)


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_and_how(kind):
    error = make(kind)
    assert kind.__doc__
    assert error.describe()
    assert "\n" not in error.describe()
    for name in kind.fields:
        value = getattr(error, name)
        assert (f"{value / 2**30:.2f}" if isinstance(value, int) else value) in error.describe()
    assert str(make(kind, hint="do so")).endswith("\ndo so")


@pytest.mark.parametrize("kind", KINDS)
def test_exit_codes_tell_the_families_apart(kind):
    families = [errors.LiprayError, *errors.LiprayError.__subclasses__()]
    codes = [family.exit_code for family in families]
    assert len(set(codes)) == len(codes)
    assert kind.exit_code not in {0, 130}
    family = next(base for base in kind.__mro__ if base in families)
    assert kind.exit_code == family.exit_code


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_required(kind):
    with pytest.raises(TypeError):
        kind()

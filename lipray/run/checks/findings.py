"""A finding: what was looked at, in which state it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from lipray import __version__
from lipray.errors import LiprayError
from lipray.run.record.records import Record

State = Literal["ok", "warning", "fault"]


class Finding(Record):
    """One thing that was looked at; ``code`` is the exit code of a fault, and 0 otherwise."""

    name: str
    state: State
    text: str
    remedy: str = ""
    code: int = 0


class DiagnosisRecord(Record):
    """All findings in the order they were made; ``exit_code`` is that of the first fault."""

    schema_version: Literal[1] = 1
    lipray: str
    exit_code: int
    findings: tuple[Finding, ...]


def good(name: str, text: str) -> Finding:
    """What is as it should be."""
    return Finding(name=name, state="ok", text=text)


def warning(name: str, text: str, remedy: str) -> Finding:
    """What works, with a reservation."""
    return Finding(name=name, state="warning", text=text, remedy=remedy)


def fault(name: str, text: str, remedy: str = "", *, code: int) -> Finding:
    """What does not work; ``code`` is the exit code of its kind."""
    return Finding(name=name, state="fault", text=text, remedy=remedy, code=code)


def fault_of(name: str, error: LiprayError) -> Finding:
    """An error as a finding."""
    return fault(name, error.describe(), error.hint, code=error.exit_code)


def gather(name: str, check: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
    """What a check found; an error ends it, and is its last finding.

    Args:
        name: of the check, for an error.
        check: gives findings one after the other.
    """
    found: list[Finding] = []
    try:
        found.extend(check())
    except LiprayError as error:
        found.append(fault_of(name, error))
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others find
        lines = str(error).strip().splitlines()
        found.append(fault(name, f"unexpected {type(error).__name__}{': ' + lines[0] if lines else ''}", code=1))
    return tuple(found)


def diagnosis(findings: Iterable[Finding]) -> DiagnosisRecord:
    """The record of all findings."""
    listed = tuple(findings)
    code = next((finding.code for finding in listed if finding.state == "fault"), 0)
    return DiagnosisRecord(lipray=__version__, exit_code=code, findings=listed)

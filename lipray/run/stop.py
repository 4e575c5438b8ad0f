"""A run told to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """SIGINT or SIGTERM came: a run that has a valid bound ends with it, anything else unwinds.

    Raised by a signal handler, wherever the main thread is; no error, so that nothing takes it for one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, ``"SIGINT"`` or ``"SIGTERM"``."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """What a shell makes of that signal: 130 or 143."""
        return 128 + self.number


_held = 0
_told: int | None = None
_since: float | None = None


def told_since() -> float | None:
    """Since when the process is told to stop, on the monotonic clock; ``None`` where it is not."""
    return _since


def forget() -> None:
    """Whoever was told to stop has ended."""
    global _since  # noqa: PLW0603 - signals are the process'
    _since = None


def tell(number: int) -> None:
    """Stop the run now, or at the end of what must not be torn apart. To be called by a signal handler.

    Raises:
        Stopped: unless inside ``whole``.
    """
    global _told, _since  # noqa: PLW0603 - signals are the process'
    _since = time.monotonic()
    if _held:
        _told = number
        return
    raise Stopped(number)


@contextmanager
def whole() -> Iterator[None]:
    """What is inside is not torn apart: calls of Ray's compiled parts make another error of an exception inside.

    Raises:
        Stopped: at the end, if the run was told to stop in the meantime.
    """
    global _held, _told  # noqa: PLW0603 - signals are the process'
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _told is not None and not _held:
        number, _told = _told, None
        raise Stopped(number)

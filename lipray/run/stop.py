"""A run told to stop."""

from __future__ import annotations

import signal


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

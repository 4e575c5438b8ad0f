"""The terminal: results on stdout, and a run that ends cleanly when it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console, RenderableType


def print_result(result: RenderableType) -> None:
    """Print to stdout, at the terminal's width, or wide enough for a table when it is not a terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)
    console.print(result)


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """While inside, SIGTERM unwinds like Ctrl-C, so that an embedded Ray is shut down.

    Raises:
        SystemExit: with code 143, on SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

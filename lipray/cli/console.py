"""The terminal: results on stdout, and a run that ends cleanly when it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console, RenderableType

from lipray.run.events import Event, Listener
from lipray.run.stop import Stopped, forget, tell


def print_result(result: RenderableType) -> None:
    """Print to stdout, at the terminal's width, or wide enough for a table when it is not a terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=160)
    console.print(result)


@contextmanager
def end_cleanly() -> Iterator[Callable[[Listener], Listener]]:
    """While inside, Ctrl-C and SIGTERM unwind the command, so that an embedded Ray is shut down.

    An exception that a signal raises inside a finaliser or a callback from a compiled library is swallowed there.
    What is yielded makes a listener that raises it once more at the next event.

    Raises:
        Stopped: on the first of them. A run that has a valid bound ends with it.
        KeyboardInterrupt: on SIGINT, when it comes again.
        SystemExit: with code 143, on SIGTERM, when it comes again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda listener: listener
        return
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            tell(number)
            return
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def watch(listener: Listener) -> Listener:
        def listen(event: Event) -> None:
            if asked:
                raise Stopped(asked[-1])
            listener(event)

        return listen

    # A shell has its background jobs ignore Ctrl-C.
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield watch
    finally:
        forget()
        for number, handler in before.items():
            signal.signal(number, handler)

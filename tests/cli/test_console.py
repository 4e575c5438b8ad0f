"""Told to stop: the command unwinds, even where the first exception was swallowed."""

import signal
import threading

import pytest

from lipray.cli.console import end_cleanly
from lipray.run.events import LowerBoundImproved
from lipray.run.stop import Stopped

EVENT = LowerBoundImproved(1.0, "start 1")
ENDS = [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, SystemExit, 143)]


class Deaf:
    """Its finaliser is interrupted, and Python drops what a finaliser raises."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "ends", "code"), ENDS)
def test_the_first_signal_stops_the_second_breaks_off(number, ends, code):
    with pytest.raises(ends), end_cleanly():  # noqa: PT012 - the order is what is tested
        with pytest.raises(Stopped) as told:
            signal.raise_signal(number)
        assert told.value.exit_code == code
        assert not isinstance(told.value, Exception)
        signal.raise_signal(number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [number for number, *_ in ENDS])
def test_what_a_finaliser_swallows_comes_at_the_next_event(number):
    heard, reached = [], False
    with pytest.raises(Stopped), end_cleanly() as watch:  # noqa: PT012 - the order is what is tested
        listener = watch(heard.append)
        listener(EVENT)
        Deaf(number)
        reached = True
        listener(EVENT)
    assert reached
    assert heard == [EVENT]


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number, *_ in ENDS]
    with end_cleanly():
        assert [signal.getsignal(number) for number, *_ in ENDS] != before
    assert [signal.getsignal(number) for number, *_ in ENDS] == before


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with end_cleanly():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_touched():
    found = []

    def work():
        with end_cleanly() as watch:
            found.append(watch(print))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [print]

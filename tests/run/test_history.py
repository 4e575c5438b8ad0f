"""Events are read back as they were written, and a damaged line costs that line."""

from lipray.run.record.folder import open_run
from lipray.run.record.history import read_history

GOOD = b'{"time": 1.5, "event": "task_done", "label": "a", "seconds": 2.0, "upper": 3.0, "new field": [1]}'


def test_damaged_lines_are_counted_and_left_out(tmp_path):
    broken = [b'{"time": 2.0, "ev', b"\xff\xfe", b'{"time": NaN, "event": "x"}', b'{"event": "no time"}', b"[]"]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join([GOOD, *broken, GOOD, b""]))
    history = read_history(open_run(tmp_path))
    assert [event.label for event in history.events] == ["a", "a"]
    assert history.events[0].upper == 3.0
    assert history.damaged == len(broken)


def test_no_file_is_no_event(tmp_path):
    assert read_history(open_run(tmp_path)).events == ()

"""Tests of the progress line, with a clock of their own."""

import io

import pytest

from skd_jax import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    "seconds,text", [(0.4, "0s"), (59.4, "59s"), (60, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_rate_and_time_left_leave_out_what_was_done_before(clock):
    stream = io.StringIO()
    with progress.Progress(100, "training", "steps", done=40, stream=stream) as line:
        clock.now += 5
        line.update()  # too early for another line in a file
        assert stream.getvalue() == ""
        clock.now += 15
        line.update(9, "loss 1.5")
        assert stream.getvalue() == "training: 50/100 steps, 0.5/s, ETA 1m40s, loss 1.5\n"


def test_mark_starts_the_clock_again(clock):
    stream = io.StringIO()
    with progress.Progress(10, "training", "steps", stream=stream) as line:
        clock.now += 60  # compiling the first step
        line.update()
        line.mark()
        clock.now += 18
        line.update(9)
    assert stream.getvalue().splitlines()[-1] == "training: 10/10 steps, 0.5/s, in 18s"


def test_a_terminal_sees_one_line_rewritten(clock):
    stream = io.StringIO()
    stream.isatty = lambda: True
    with progress.Progress(4, "preparing", "videos", stream=stream) as line:
        for _ in range(4):
            clock.now += 1
            line.update()
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("in 4s\n")
    assert stream.getvalue().count("\r\x1b[K") == 5

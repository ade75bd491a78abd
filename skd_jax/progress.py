"""A progress line with rate and time left, readable on a terminal and in a log file."""

import sys
import time
from typing import Self


def format_seconds(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h07m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


class Progress:
    """Counts towards `total` and prints where it stands.

    On a terminal one line is rewritten twice a second; elsewhere a plain line is printed every
    15 seconds, so that log files stay short. The rate, and with it the time left, counts from the
    start or from the last `mark`.

    Args:
      total: number of units to do.
      label: what is being done, e.g. "preparing".
      unit: plural name of a unit, e.g. "videos".
      done: units finished before, which do not count for the rate.
      stream: where to print; standard error by default, so that results alone go to standard output.
    """

    def __init__(self, total: int, label: str, unit: str = "items", done: int = 0, stream=None):
        self.total, self.label, self.unit = total, label, unit
        self.done = self._base = done
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._interval = 0.5 if self._tty else 15.0
        self._start = self._last = time.monotonic()
        self._printed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        self._print("", final=True)
        if self._tty and self._printed:
            self._stream.write("\n")
            self._stream.flush()

    def mark(self) -> None:
        """Starts the clock of the rate again, e.g. once a program is compiled."""
        self._start = self._last = time.monotonic()
        self._base = self.done

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units; `note` is shown behind the rate."""
        self.done += count
        if time.monotonic() - self._last >= self._interval:
            self._print(note)

    def _print(self, note: str, final: bool = False) -> None:
        now = time.monotonic()
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._base) / elapsed
        if final:
            tail = f"in {format_seconds(elapsed)}"
        else:
            tail = f"ETA {format_seconds((self.total - self.done) / rate)}" if rate else "ETA ?"
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {tail}"
        line += f", {note}" if note else ""
        self._stream.write(f"\r\x1b[K{line}" if self._tty else f"{line}\n")
        self._stream.flush()
        self._last, self._printed = now, True

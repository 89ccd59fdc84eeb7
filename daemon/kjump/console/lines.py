# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for a person in front of the machine, from the helper and from the boot initrd.

Runs in the helper and in the boot initrd.  Every active console gets them
(/sys/class/tty/console/active), as /dev/console is only the last one.  Never fails: a console that
cannot be written to is passed over.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = "kjump: "

PATIENCE = 0.5
"""Seconds to wait for a console that is busy with another program's line or with ours."""

_saying = threading.Lock()
_stuck: set[Path] = set()
"""Consoles that did not become free in that time: nobody waits for them until a write succeeds."""

also: list[Callable[[str], None]] = []
"""What else gets each line, without the prefix: a splash screen."""


def consoles() -> list[Path]:
    try:
        names = Path("/sys/class/tty/console/active").read_text().split()
    except OSError:
        names = ["console"]
    return [Path("/dev", name) for name in names]


def say(text: str) -> None:
    """One line on every console; for any thread.  Text that is no UTF-8 is shown escaped."""
    line = f"{PREFIX}{text}\r\n".encode(errors="backslashreplace")
    # A terminal that somebody writes to refuses others who will not wait.
    mine = _saying.acquire(timeout=2 * PATIENCE)
    try:
        for path in consoles():
            _write(path, line)
    finally:
        if mine:
            _saying.release()
    for show in also:
        show(text)


def _write(path: Path, line: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    end = time.monotonic() + (0.0 if path in _stuck else PATIENCE)
    try:
        while line:
            try:
                line = line[os.write(fd, line) :]
            except BlockingIOError:
                if time.monotonic() >= end:
                    _stuck.add(path)
                    return
                time.sleep(0.005)
        _stuck.discard(path)
    except OSError:
        pass
    finally:
        os.close(fd)


class Progress:
    """Prints the progress of a copy, at most once in ``interval`` seconds, and at its end."""

    def __init__(self, what: str, total: int, interval: float = 1.0) -> None:
        """``total``: bytes that will be copied."""
        self._what = what
        self._total = max(total, 1)
        self._interval = interval
        self._start = self._last = time.monotonic()
        self._done = self._said = 0
        self._lock = threading.Lock()

    def add(self, more: int) -> None:
        """``more`` bytes were copied; for any thread."""
        with self._lock:
            self._done += more
            self.at(self._done)

    def at(self, done: int) -> None:
        """``done``: bytes copied so far."""
        now = time.monotonic()
        ended = self._said < self._total <= done
        if now - self._last < self._interval and not ended:
            return
        self._last, self._said = now, done
        say(self.line(done, now - self._start))

    def line(self, done: int, seconds: float) -> str:
        rate = done / seconds if seconds > 0 else 0.0
        left = (self._total - done) / rate if rate > 0 else 0.0
        return (
            f"{self._what} {min(done * 100 // self._total, 100):3d} %"
            f"  {done >> 20} of {self._total >> 20} MiB"
            f"  {rate / (1 << 20):.0f} MiB/s  {max(left, 0):.0f} s left"
        )

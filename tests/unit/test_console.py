# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines on consoles that others write to, and on those that take none."""

from __future__ import annotations

import os
import pty
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.console import lines as console


class Terminal:
    """A pseudo terminal that is read from only when a test asks for it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = Path(os.ttyname(self.slave))
        self.seen = b""

    def fill(self) -> threading.Thread:
        """Write more than it takes; whoever does so stands in the way of others."""
        thread = threading.Thread(target=os.write, args=(self.slave, b"." * 200_000), daemon=True)
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
        return thread

    def read(self, seconds: float, until: bytes | None = None, times: int = 1) -> None:
        end = time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while time.monotonic() < end and (until is None or self.seen.count(until) < times):
            try:
                self.seen += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.005)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setattr(console, "consoles", lambda: [made.path])
    monkeypatch.setattr(console, "_stuck", set())
    yield made
    os.close(made.master)
    os.close(made.slave)


def test_a_line_waits_for_who_writes_just_then(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE", 30.0)  # this machine may be slow, too
    other = terminal.fill()
    says = threading.Thread(target=console.say, args=("hello",))
    says.start()
    time.sleep(0.1)
    line = b"kjump: hello\r\n"
    terminal.read(30, until=line)
    other.join(1)
    says.join(1)
    assert line in terminal.seen


def test_lines_of_all_threads_come_whole(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE", 30.0)
    lines = [f"line {n} " + "x" * 60 for n in range(40)]
    threads = [threading.Thread(target=console.say, args=(line,)) for line in lines]
    reads = threading.Thread(target=terminal.read, args=(30, b"\r\n", len(lines)))
    reads.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reads.join()
    said = terminal.seen.decode().split("\r\n")
    assert sorted(said[:-1]) == sorted(f"kjump: {line}" for line in lines)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_line_may_name_what_is_no_text(terminal: Terminal) -> None:
    """A device of the kernel command line, say."""
    console.say("no " + os.fsdecode(b"/dev/\xff"))
    terminal.read(30, until=b"\n")
    assert terminal.seen == b"kjump: no /dev/\\udcff\r\n"


def test_a_console_that_takes_nothing_is_waited_for_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = terminal.fill()
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    console.say("first")
    first = clock.now
    assert console.PATIENCE <= first < 2 * console.PATIENCE
    for _ in range(20):
        console.say("more")
    assert clock.now == first
    while other.is_alive():
        terminal.read(0.05)
    terminal.read(0.05)
    console.say("again")
    terminal.read(30, until=b"kjump: again")
    assert b"kjump: again" in terminal.seen and not console._stuck


def test_progress_tells_the_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    progress = console.Progress("saving", 8 << 20, interval=60.0)
    for _ in range(8):
        progress.add(1 << 20)
    progress.at(8 << 20)
    assert [line.split("  ")[:2] for line in said] == [["saving 100 %", "8 of 8 MiB"]]

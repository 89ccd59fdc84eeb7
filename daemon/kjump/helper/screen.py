# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth in the helper: shows the console's lines on a splash screen, too.

Runs in the helper, if its initrd has Plymouth ([Helper] Plymouth=yes), in a thread of its own.
Nobody waits for it: if lines come faster than it can show them, it shows only the newest.  If
plymouthd does not start, hangs or dies, the helper goes on without it.  Plymouth does not handle
keys: `kjump.console.keys` reads them independently.

It decides nothing, and writes to no disk.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kjump.console import lines
from kjump.console.splash import CLIENTS, Splash
from kjump.machine.cmdline import parse

DAEMONS = (Path("/usr/sbin/plymouthd"), Path("/sbin/plymouthd"), Path("/usr/bin/plymouthd"))
WORDS = "splash plymouth.ignore-serial-consoles"
"""The kernel command line for plymouthd: show a splash, and leave the serial consoles and their
input to kjump."""
START = 20.0
"""Seconds in which plymouthd must answer."""
AGAIN = 0.1
"""Seconds between two pings."""
LEAVE = 2.0
"""Most seconds that the helper waits for plymouthd to end."""


def command(daemon: Path, running: str) -> list[str]:
    """The command that starts plymouthd.  ``running``: the helper's command line, whose
    ``plymouth.`` words are passed on for debugging.  Pure."""
    own = [str(word) for word in parse(running).words if word.name.startswith("plymouth.")]
    words = " ".join([WORDS, *own])
    return [
        str(daemon),
        "--no-daemon",
        "--no-boot-log",
        "--mode=shutdown",
        f"--kernel-command-line={words}",
    ]


class Screen:
    """`begin` starts it and returns at once; `end` must come before the helper is left."""

    def __init__(
        self, daemons: Sequence[Path] = DAEMONS, clients: Sequence[Path] = CLIENTS
    ) -> None:
        self._daemon = next((path for path in daemons if os.access(path, os.X_OK)), None)
        self._clients = clients
        self._process = 0
        self._line = ""
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, cmdline: str = "") -> None:
        if self._daemon is None:
            return
        words = command(self._daemon, cmdline)
        lines.also.append(self.show)
        self._thread = threading.Thread(
            target=self._work, args=(words,), name="screen", daemon=True
        )
        self._thread.start()

    def show(self, text: str) -> None:
        """Show this line soon, unless another one comes first; for any thread."""
        self._line = text
        self._news.set()

    def end(self) -> None:
        """Make plymouthd release the display; kill it if it does not."""
        if self._thread is None:
            return
        self._stop.set()
        self._news.set()
        self._thread.join(LEAVE)
        self._kill()
        self._thread = None

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """End the splash screen for good: the console is visible and has the keyboard."""
        self.end()
        yield

    # -- the thread ---------------------------------------------------------------------------

    def _work(self, words: list[str]) -> None:
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            try:
                self._process = os.posix_spawn(
                    words[0],
                    words,
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
                )
            finally:
                os.close(null)
            # If memory runs out, the kernel kills it before anything important.
            Path(f"/proc/{self._process}/oom_score_adj").write_text("1000")
        except OSError:
            if not self._process:
                return
        splash = self._answering()
        if splash is not None and splash.command("show-splash"):
            self._follow(splash)
            splash.command("quit")
            self._wait(LEAVE / 2)
        self._kill()

    def _answering(self) -> Splash | None:
        """Wait until plymouthd answers, and return the splash screen."""
        end = time.monotonic() + START
        while self._runs() and time.monotonic() < end and not self._stop.wait(AGAIN):
            splash = Splash(self._clients)
            if splash.is_there:
                return splash
        return None

    def _follow(self, splash: Splash) -> None:
        """Show each line as it comes, until the end."""
        while not self._stop.is_set() and splash.is_there and self._runs():
            self._news.wait()
            self._news.clear()
            if self._line and not self._stop.is_set():
                splash.show(self._line)

    def _runs(self) -> bool:
        """Whether plymouthd runs."""
        if self._process:
            try:
                if not os.waitpid(self._process, os.WNOHANG)[0]:
                    return True
            except OSError:
                pass
            self._process = 0
        return False

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._runs() and time.monotonic() < end:
            time.sleep(0.01)

    def _kill(self) -> None:
        if self._runs():
            try:
                os.kill(self._process, signal.SIGKILL)
            except OSError:
                pass
            self._wait(0.2)

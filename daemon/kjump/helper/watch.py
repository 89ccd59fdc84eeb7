# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching the copy: a person may want to stop it, and it may hang.

Runs in the helper, in a thread of its own beside the copy.  It reads Esc and the power button, and
it notices when the copy makes no progress.  In both cases it raises an error in the main thread,
and the helper jumps back with that reason.  If this program itself hangs, systemd stops it
(because WATCHDOG=1 is missing) and starts ``kjump-return``.  If nothing runs any more, the
machine's watchdog restarts the machine (`kjump.helper.watchdog`), and the session is lost.

It writes nothing to any disk.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from kjump.console.keys import ESC, POWER, Keys
from kjump.console.lines import say
from kjump.errors import Cancelled, HelperHung, KjumpError
from kjump.helper import watchdog

TICK = 1.0
"""Seconds between two signs of life."""
FROZEN = 30
"""Most seconds without a sign of life after which the program counts as hung."""
HEADROOM = 30
"""Seconds for systemd to stop such a program and to go back, before the machine is restarted."""
DEAF = 10.0
"""Seconds for the main thread to react to an error that was raised in it."""
SOFT_AFTER = 3.0
"""Seconds for a hardware watchdog to appear."""
UNKNOWN = "the first that appears"
"""The watchdog's name in the image if the copy begins before a driver has found one."""
ALIVE = Path("/run/kjump-alive")
"""Contains, for ``kjump-return``, the seconds after which the copy counts as hung; its time is
updated at each sign of life."""


def frozen_after(seconds: int) -> int:
    """Seconds without a sign of life after which the program counts as hung.  ``seconds``: the
    limit for a copy without progress.  Pure."""
    return min(seconds, FROZEN)


def notify(text: str) -> None:
    """Notify systemd (sd_notify(3)); nothing happens if it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)  # keys must work even if systemd hangs
            out.sendto(text.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        pass


def has_hung(alive: Path = ALIVE) -> bool:
    """Whether the copy, which has ended, had given no sign of life for too long."""
    try:
        seconds = int(alive.read_text())
        return time.time() - alive.stat().st_mtime >= seconds
    except (OSError, ValueError):
        return False


class Watch:
    """`begin`, called in the main thread, starts watching; call `end` before leaving the helper."""

    def __init__(self, inject: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """``inject``: a failure to cause, for tests (see `_play`); ``clock``: in seconds."""
        self._inject = inject
        self._clock = clock
        self._seconds = 0
        self._beats = self._seen = 0
        self._progress = 0.0
        self._late = False
        self._raised = 0.0
        self._error: KjumpError | None = None
        self._deciding = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._dog: watchdog.Watchdog | None = None

    @property
    def watchdog(self) -> str:
        """The watchdog in use, for the image's description; empty: none is wanted."""
        dog = self._dog
        if dog is None:
            return UNKNOWN if self._seconds else ""
        return f"{dog.name}, {dog.seconds} s"

    def begin(self, seconds: int) -> None:
        """``seconds`` without progress count as a hang; 0: watch only keys."""
        self._seconds = seconds
        self._progress = self._clock()
        signal.signal(signal.SIGUSR1, self._follow)
        if seconds:
            self._take()
            _write_alive(frozen_after(seconds))
            notify(f"WATCHDOG_USEC={frozen_after(seconds) * 1_000_000}\nWATCHDOG=1")
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """The copy made progress; for any thread."""
        self._beats += 1
        if self._inject:
            self._play(self._inject)

    def too_late(self) -> None:
        """The image is about to be committed: from here on it cannot be cancelled.

        Raises `Cancelled` if it just was.
        """
        with self._deciding:
            self._late = True
        if isinstance(self._error, Cancelled):
            raise self._error

    def deafen(self) -> None:
        """Raise nothing in the main thread any more."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def end(self) -> None:
        """Release the keys, end systemd's supervision, and stop the watchdog."""
        self.deafen()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10 * TICK)
        if self._seconds:
            notify("WATCHDOG_USEC=18446744073709551615")  # infinity: systemd stops looking
        dog, self._dog = self._dog, None
        if dog is not None:
            dog.stop()

    # -- the thread ---------------------------------------------------------------------------

    def _look(self) -> None:
        begun = self._clock()
        keys = Keys()
        try:
            while not self._stop.is_set():
                self._hear(keys.read(TICK / 2))
                self._stop.wait(TICK / 10)
                now = self._clock()
                if not self._seconds:
                    continue
                if self._dog is None and 0 < now - begun - SOFT_AFTER < 4 * TICK:
                    self._take(soft=True)
                if self._beats != self._seen:
                    self._seen, self._progress = self._beats, now
                elif now - self._progress > self._seconds:
                    self._raise(HelperHung(f"The copy made no progress for {self._seconds} s."))
                if not self._raised or now - self._raised < DEAF:
                    self._sign_of_life()
        finally:
            keys.close()

    def _take(self, *, soft: bool = False) -> None:
        dog = watchdog.take(*self._bark())
        if dog is None and soft:
            dog = watchdog.take_soft(*self._bark())
        if dog is not None:
            say(f"watchdog: {dog.name}, {dog.seconds} s")
        self._dog = dog

    def _bark(self) -> tuple[int, int]:
        """Seconds after which the machine's watchdog should restart it, and the least useful
        value."""
        frozen = frozen_after(self._seconds)
        return frozen + HEADROOM, frozen + HEADROOM - 20

    def _hear(self, found: list[str]) -> None:
        for key in (ESC, POWER):
            if key not in found:
                continue
            name = "Esc" if key == ESC else "The power button"
            with self._deciding:
                late = self._late
                if not late:
                    self._raise(Cancelled(f"{name} was pressed while the session was being saved."))
            if late:
                say(f"{name} was pressed too late: the image is being completed")
            else:
                say(f"{name} was pressed: back to the session")

    def _raise(self, error: KjumpError) -> None:
        """Raise the error in the main thread, once."""
        if self._error is None:
            self._error = error
            self._raised = self._clock()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _follow(self, _signal: int, _frame: FrameType | None) -> None:
        error = self._error
        if error is not None and not (self._late and isinstance(error, Cancelled)):
            raise error

    def _sign_of_life(self) -> None:
        if self._dog is not None:
            self._dog.pet()
        notify("WATCHDOG=1")
        try:
            os.utime(ALIVE)
        except OSError:
            pass

    def plays(self, kind: str) -> bool:
        """Whether a test wants this failure."""
        return self._inject == kind

    def play_late(self) -> None:
        """For tests: ``die`` kills this program when the image has just become complete."""
        if self.plays("die"):
            say("killed for a test")
            os.kill(os.getpid(), signal.SIGKILL)

    def _play(self, kind: str) -> None:
        """For tests: ``stop`` hangs this program, ``freeze`` does so without systemd's supervision,
        and ``stall`` hangs the copy's thread that comes here."""
        if kind == "stall":
            threading.Event().wait()
        if kind == "freeze":
            if self._dog is None:
                return
            notify("WATCHDOG_USEC=18446744073709551615")
        if kind in ("stop", "freeze"):
            say(f"stopped for a test: {kind}")
            os.kill(os.getpid(), signal.SIGSTOP)


def _write_alive(seconds: int) -> None:
    try:
        ALIVE.write_text(str(seconds))
    except OSError:
        pass

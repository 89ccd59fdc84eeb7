# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth: shows the lines of the console on the splash screen, too.

Runs in the boot initrd, and in the helper if it has Plymouth.  It never fails and never waits long:
if a splash screen does not answer, kjump goes on without it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLIENTS = (Path("/usr/bin/plymouth"), Path("/bin/plymouth"))
PATIENCE = 2.0
"""Seconds that Plymouth may take for an answer."""
MAKING_ROOM = 10.0
"""The same before a question to a person: nobody can answer while Plymouth has the keyboard."""


TERMINAL = Path("/dev/tty0")
KDSETMODE, KD_TEXT = 0x4B3A, 0
"""From uapi/linux/kd.h."""
VT_SETMODE, VT_AUTO = 0x5602, struct.pack("bbhhh", 0, 0, 0, 0, 0)
"""From uapi/linux/vt.h, with its ``struct vt_mode``."""


def take_terminal() -> None:
    """Make the foreground terminal show text, and let it be switched without asking a program."""
    try:
        fd = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(fd, VT_SETMODE, VT_AUTO)
        fcntl.ioctl(fd, KDSETMODE, KD_TEXT)
    except OSError:
        pass
    finally:
        os.close(fd)


class Splash:
    """The splash screen that is shown at creation; without one, all methods do nothing."""

    def __init__(
        self,
        clients: Sequence[Path] = CLIENTS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock``: the time in seconds; ``pause``: waits that many seconds."""
        self._clock = clock
        self._pause = pause
        self._client = next((str(path) for path in clients if os.access(path, os.X_OK)), "")
        self._shown = ""
        self._hangs = False
        if not self._run("--ping"):
            self._client = ""

    @property
    def is_there(self) -> bool:
        return bool(self._client) and not self._hangs

    def show(self, text: str) -> None:
        """Show this message instead of the one before."""
        if self._shown:
            self.command("hide-message", f"--text={self._shown}")
        self._shown = text
        self.command("display-message", f"--text={text}")

    def command(self, *words: str) -> bool:
        """Send Plymouth a command (plymouth(1)); whether it obeyed."""
        return self.is_there and self._run(*words)

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """Inside this context the console is visible and has the keyboard.

        When a kernel is left to be entered again, or to restore another kernel's memory, it may
        switch to a terminal of its own and wait for that (pm_prepare_console(),
        kernel/power/console.c).  It would wait for ever: Plymouth must agree to such a switch, but
        is frozen by then; and a terminal in graphics mode cannot be left at all.
        """
        # Also try this with a Plymouth that hung: the key that shows the boot messages keeps it
        # busy.  After the first word alone it keeps the keyboard, after the second its picture.
        for word in ("hide-splash", "deactivate"):
            self._hangs = not self._run(word, patience=MAKING_ROOM)
        if self._client and self._hangs:
            take_terminal()
        try:
            yield
        finally:
            for word in ("reactivate", "show-splash"):
                self.command(word)

    def _run(self, *words: str, patience: float = 0) -> bool:
        """Whether Plymouth obeyed within the time."""
        if not self._client:
            return False
        try:
            process = os.posix_spawn(self._client, [self._client, *words], os.environ)
            end = self._clock() + (patience or PATIENCE)
            while not (ended := os.waitpid(process, os.WNOHANG))[0]:
                if self._clock() > end:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    self._hangs = True
                    return False
                self._pause(0.005)
        except OSError:
            self._client = ""
            return False
        return ended[1] == 0

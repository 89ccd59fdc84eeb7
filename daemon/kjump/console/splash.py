# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth: what the console says, on the splash screen too.

Runs in the boot initrd, and in the helper if it has Plymouth.  Never fails, never waits long: a
splash screen that does not answer is done without.
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
"""The same, where a person is to be asked: she cannot answer before, as Plymouth has her keys."""


TERMINAL = Path("/dev/tty0")
KDSETMODE, KD_TEXT = 0x4B3A, 0
"""Of uapi/linux/kd.h."""
VT_SETMODE, VT_AUTO = 0x5602, struct.pack("bbhhh", 0, 0, 0, 0, 0)
"""Of uapi/linux/vt.h, and its ``struct vt_mode``."""


def take_terminal() -> None:
    """Have the foreground terminal show text, and no program asked when it is changed."""
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
    """The screen that is there when this is made; without one all of this does nothing."""

    def __init__(
        self,
        clients: Sequence[Path] = CLIENTS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock``: seconds; ``pause``: lets so many of them pass."""
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
        """This message in place of the one before."""
        if self._shown:
            self.command("hide-message", f"--text={self._shown}")
        self._shown = text
        self.command("display-message", f"--text={text}")

    def command(self, *words: str) -> bool:
        """Have Plymouth do this (plymouth(1)); whether it did."""
        return self.is_there and self._run(*words)

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """The console in its place, with the keyboard.

        A kernel that is left so as to be entered again, or by restoring another one's memory, may
        change to a terminal of its own, and waits for that (pm_prepare_console(),
        kernel/power/console.c).  It would wait for ever: Plymouth wants to be asked about such a
        change, and is frozen by then; and there is none from a terminal in graphics mode.
        """
        # Also from one that hung: a key for which it shows the messages of the boot keeps it busy.
        # The first word alone leaves it the keyboard, the second alone leaves its picture.
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
        """Whether Plymouth did so, within the seconds."""
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

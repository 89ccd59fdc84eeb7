# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys that a person presses: on any keyboard, on a serial console, or the power button.

Runs in the helper and in the boot initrd.  It reads keyboards through the foreground virtual
terminal, which knows their layout.  It reads Esc and the power button also through evdev
(/dev/input/event*, ``struct input_event`` of uapi/linux/input.h), because the power button is on no
terminal.  It finds devices that appear later.  It never fails: it skips a device that it cannot
open or read.
"""

from __future__ import annotations

import os
import re
import select
import struct
import termios
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kjump.console import lines

ESC, POWER = "esc", "power"

EVENT = struct.Struct("llHHi")
"""``struct input_event`` on x86_64: seconds, microseconds, type, code, value."""
EV_KEY, PRESSED = 1, 1
CODES = {1: ESC, 116: POWER}
"""KEY_ESC and KEY_POWER of uapi/linux/input-event-codes.h."""

GATHER = 0.03
"""Seconds in which the rest of an escape sequence follows its first byte, at 9600 baud too."""
LOOK_AGAIN = 1.0
"""Seconds between two searches for new devices."""
SEQUENCE = re.compile(rb"\x1b(?:[\[O][0-?]*[ -/]*[@-~]?|[^\x1b])")
"""An arrow key and the like (ECMA-48), or a key pressed together with Alt."""


def typed(data: bytes) -> list[str]:
    """The keys behind what a terminal sent at once: `ESC` for the Esc key by itself, else the
    characters.  Escape sequences are ignored.  Pure."""
    rest = SEQUENCE.sub(b"", data)
    return [ESC if byte == 0x1B else chr(byte) for byte in rest if byte < 0x80]


def pressed(data: bytes) -> list[str]:
    """`ESC` and `POWER` among the events of an input device; drops incomplete events.  Pure."""
    whole = data[: len(data) // EVENT.size * EVENT.size]
    return [
        CODES[code]
        for _, _, kind, code, value in EVENT.iter_unpack(whole)
        if kind == EV_KEY and value == PRESSED and code in CODES
    ]


def terminals(active: Iterable[Path]) -> list[Path]:
    """The terminals to listen to: always the foreground virtual terminal, and every active console
    that is not a virtual terminal.  Pure."""
    virtual = re.compile(r"/dev/(tty\d*|console)")
    return [Path("/dev/tty0"), *(path for path in active if not virtual.fullmatch(str(path)))]


class Keys:
    """Listens from its creation until `close`, which restores the state of the terminals."""

    def __init__(
        self, *, buttons: bool = True, earlier: bool = False, root: Path = Path("/")
    ) -> None:
        """``buttons``: listen to evdev as well; ``earlier``: also accept what was typed before, as
        far as the kernel kept it for a terminal."""
        self._buttons = buttons
        self._earlier = earlier
        self._root = root
        self._open: dict[Path, tuple[int, list[Any] | None]] = {}
        self._looked = 0.0
        self._look()

    def read(self, seconds: float) -> list[str]:
        """The keys that were pressed; waits ``seconds`` for the first, and is empty if none was."""
        end = time.monotonic() + seconds
        while True:
            if time.monotonic() - self._looked >= LOOK_AGAIN:
                self._look()
            left = max(0.0, end - time.monotonic())
            files = {fd: path for path, (fd, _) in self._open.items()}
            try:
                ready, _, _ = select.select(list(files), (), (), min(left, LOOK_AGAIN))
            except (OSError, ValueError):
                ready = []
            found = [key for fd in ready for key in self._heard(files[fd])]
            if found or left <= 0:
                return found

    def close(self) -> None:
        for path in list(self._open):
            self._drop(path)

    def _look(self) -> None:
        self._looked = time.monotonic()
        for path in self._paths():
            if path in self._open:
                fd, before = self._open[path]
                if before is not None:
                    # Another program may have changed the mode, as Plymouth does when it releases
                    # a terminal.
                    _raw(fd, flush=False)
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            self._open[path] = fd, _raw(fd, flush=not self._earlier)

    def _paths(self) -> Iterator[Path]:
        for path in terminals(lines.consoles()):
            yield self._root / path.relative_to("/")
        if self._buttons:
            yield from sorted((self._root / "dev/input").glob("event*"))

    def _heard(self, path: Path) -> list[str]:
        fd, _ = self._open[path]
        buttons = path.name.startswith("event")
        try:
            data = os.read(fd, 64 * EVENT.size)
            begun = not buttons and data[-1:] == b"\x1b"
            if begun and select.select([fd], (), (), GATHER)[0]:
                data += os.read(fd, 64)
        except BlockingIOError:
            return []
        except OSError:  # unplugged
            self._drop(path)
            return []
        if not data:
            self._drop(path)
        return pressed(data) if buttons else typed(data)

    def _drop(self, path: Path) -> None:
        fd, before = self._open.pop(path)
        try:
            if before is not None:
                termios.tcsetattr(fd, termios.TCSANOW, before)
        except (termios.error, OSError):
            pass
        os.close(fd)


def _raw(fd: int, *, flush: bool) -> list[Any] | None:
    """Make a terminal deliver each key at once, without echo and without signals.  Returns its
    state before.  Output is not affected; ``flush`` discards what was typed before."""
    try:
        before = termios.tcgetattr(fd)
        now = [*before[:6], list(before[6])]
        now[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON)
        now[2] |= termios.CLOCAL
        now[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, now)
        if flush:
            termios.tcflush(fd, termios.TCIFLUSH)
    except (termios.error, OSError):
        return None
    return before

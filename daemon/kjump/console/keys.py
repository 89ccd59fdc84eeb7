# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys that a person presses: on any keyboard, on a serial console, or the power button.

Runs in the helper and in the boot initrd.  Keyboards are heard through the foreground virtual
terminal, which knows their layout, and Esc and the power button also through evdev
(/dev/input/event*, ``struct input_event`` of uapi/linux/input.h), as the power button is on no
terminal.  Devices that appear later are found.  Never fails: what cannot be opened or read is
passed over.
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
"""Seconds between two looks for devices that appeared."""
SEQUENCE = re.compile(rb"\x1b(?:[\[O][0-?]*[ -/]*[@-~]?|[^\x1b])")
"""An arrow key and the like (ECMA-48), or a key pressed together with Alt."""


def typed(data: bytes) -> list[str]:
    """What was pressed, from what a terminal sent at one go: `ESC` for the Esc key by itself, else
    the characters.  Escape sequences are no keys of ours.  Pure."""
    rest = SEQUENCE.sub(b"", data)
    return [ESC if byte == 0x1B else chr(byte) for byte in rest if byte < 0x80]


def pressed(data: bytes) -> list[str]:
    """`ESC` and `POWER` among events of an input device; incomplete ones are dropped.  Pure."""
    whole = data[: len(data) // EVENT.size * EVENT.size]
    return [
        CODES[code]
        for _, _, kind, code, value in EVENT.iter_unpack(whole)
        if kind == EV_KEY and value == PRESSED and code in CODES
    ]


def terminals(active: Iterable[Path]) -> list[Path]:
    """The terminals to listen to, of the active consoles: the foreground virtual terminal, whatever
    is the console, and every other that is none.  Pure."""
    virtual = re.compile(r"/dev/(tty\d*|console)")
    return [Path("/dev/tty0"), *(path for path in active if not virtual.fullmatch(str(path)))]


class Keys:
    """Listens from when it is made until `close`, which leaves the terminals as they were."""

    def __init__(
        self, *, buttons: bool = True, earlier: bool = False, root: Path = Path("/")
    ) -> None:
        """``buttons``: listen to evdev as well; ``earlier``: what was typed before counts, too,
        as far as the kernel kept it for a terminal."""
        self._buttons = buttons
        self._earlier = earlier
        self._root = root
        self._open: dict[Path, tuple[int, list[Any] | None]] = {}
        self._looked = 0.0
        self._look()

    def read(self, seconds: float) -> list[str]:
        """What was pressed, waiting so long for the first key; empty where nothing was."""
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
                    # Another program may have set it otherwise, as Plymouth does when it gives a
                    # terminal back.
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
        except OSError:  # pulled out
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
    """Have a terminal give each key at once, without an echo and without signals; how it was
    before.  What is written to it stays as it is; what was typed before is thrown away, if so
    wished."""
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

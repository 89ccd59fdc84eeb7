# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/snapshot, played: a kernel that gives slots of one swap area.

The code that takes slots is the real one, native/swap.c, compiled with an ioctl of ours.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kjump.machine import swap
from kjump.machine.native import BUILT
from kjump.machine.ranges import PAGE

SOURCE = BUILT.with_name("swap.c")

COMPILER = ("gcc", "-shared", "-fPIC", "-Dioctl=played_ioctl")
IOCTL = """
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
int64_t offered[16384];
int offers, given, refusal;
int played_ioctl(int fd, unsigned long request, ...)
{
	va_list rest;
	(void)fd; (void)request;
	if (refusal) { errno = refusal; return -1; }
	if (given == offers) { errno = ENOSPC; return -1; }
	va_start(rest, request);
	*va_arg(rest, int64_t *) = offered[given++];
	va_end(rest);
	return 0;
}
"""


class Snapshot:
    """The device.  ``refuse``: the errno of an ioctl, by its number; ``slots``: pfns on the device
    that are free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.refuse: dict[int, int] = {}
        self.area: tuple[int, int] | None = None
        self.open: list[int] = []
        self.freed = 0
        device = folder / "snapshot"
        device.touch()
        (folder / "ioctl.c").write_text(IOCTL)
        library = folder / "swap.so"
        subprocess.run(
            [*COMPILER, "-o", library, SOURCE, folder / "ioctl.c"],
            check=True,
        )
        self._lib = ctypes.CDLL(str(library))
        monkeypatch.setattr(swap, "SNAPSHOT_DEVICE", device)
        for name in ("_take_slots", "_longest"):
            typed = getattr(swap, name)
            played = self._lib[typed.__name__]
            played.argtypes, played.restype = typed.argtypes, typed.restype
            monkeypatch.setattr(swap, name, played)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def offer(self, slots: Sequence[int]) -> None:
        """These pages of the device are free, and given in this order."""
        table = (ctypes.c_int64 * 16384).in_dll(self._lib, "offered")
        for at, slot in enumerate(slots):
            table[at] = slot * PAGE
        ctypes.c_int.in_dll(self._lib, "offers").value = len(slots)
        ctypes.c_int.in_dll(self._lib, "given").value = 0

    def refuse_slots(self, number: int) -> None:
        ctypes.c_int.in_dll(self._lib, "refusal").value = number

    @property
    def given(self) -> int:
        return ctypes.c_int.in_dll(self._lib, "given").value

    def ioctl(self, fd: int, request: int, argument: bytes = b"") -> bytes:
        if request in self.refuse:
            number = self.refuse[request]
            raise OSError(number, os.strerror(number))
        if request == swap.SET_SWAP_AREA:
            offset, device = swap.AREA.unpack(argument)
            self.area = device, offset
            self.open.append(fd)
        elif request == swap.FREE_SWAP_PAGES:
            self.freed += 1
            if fd in self.open:
                self.open.remove(fd)
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return argument

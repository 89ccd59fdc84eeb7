# SPDX-License-Identifier: GPL-2.0-or-later
"""Free slots of a swap area in use, taken and held through /dev/snapshot.

Runs in the session only.  The kernel gives slots to whoever has the device open for reading, for
its own hibernation in user space (kernel/power/user.c), and takes them back when the descriptor is
closed, also when its owner is killed.  While it is open the kernel's own hibernation is refused
(hibernate_acquire).  Opening it runs the kernel's notifiers of hibernation
(PM_HIBERNATION_PREPARE), closing it those of its end.

A swap partition in use cannot be written to (ETXTBSY) but by who holds it so: block/fops.c asks
is_hibernate_resume_dev(), which compares with the area that was set here (since 5.8, "PM:
hibernate: Restrict writes to the resume device").
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Self

from kjump.errors import NoSnapshotDevice, TargetInUse, TargetMissing, TargetTooSmall
from kjump.machine.native import INT, LIBRARY, POINTER, U64, U64_OUT
from kjump.machine.ranges import PAGE

SNAPSHOT_DEVICE = Path("/dev/snapshot")
FREE_SWAP_PAGES = 0x3309
SET_SWAP_AREA = 0x400C330D
"""``_IOW('3', 13, struct resume_swap_area)``, which is packed: 12 bytes."""
AREA = struct.Struct("<qI")
ROOM = 1 << 20
"""Pieces of free swap that are looked at, at most: 16 MiB of memory."""
MOST = 1 << 16
"""Pieces that are used, at most: no more fit into the map of a target (`kjump.image.locator`).  As
Python objects they take 160 bytes each, when memory is short."""

Span = tuple[int, int]

_take_slots = LIBRARY.kj_take_slots
_take_slots.argtypes = (INT, U64, POINTER, U64, U64_OUT)
_take_slots.restype = ctypes.c_int64
_longest = LIBRARY.kj_longest
_longest.argtypes = (POINTER, U64, U64)
_longest.restype = U64


def encoded_device(device: int) -> int:
    """A device number (st_rdev) as the ioctl wants it: new_encode_dev() of linux/kdev_t.h."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


class Writable:
    """A swap area in use that can be written to until `close`; no slots are taken."""

    def __init__(self, device: int, first_block: int) -> None:
        """The area on ``device`` (st_rdev) whose first block lies at byte ``first_block`` of it.

        Raises `NoSnapshotDevice`, `TargetInUse` if someone else hibernates, `TargetMissing`
        if the area is not in use any more.
        """
        try:
            self._fd = os.open(SNAPSHOT_DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise TargetInUse(
                    "The kernel's own hibernation holds the swap.", advice="Try again."
                ) from error
            raise NoSnapshotDevice(
                f"{SNAPSHOT_DEVICE} cannot be used: {error.strerror}."
            ) from error
        area = AREA.pack(first_block // PAGE, encoded_device(device))
        try:
            fcntl.ioctl(self._fd, SET_SWAP_AREA, area)
        except OSError as error:
            self.close()
            if error.errno == errno.EPERM:  # swsusp_swap_in_use(): slots of somebody
                raise TargetInUse("Slots of the swap are taken already.") from error
            raise TargetMissing(
                f"The kernel does not know the swap area: {error.strerror}.",
                advice="Switch it on (swapon), or name another target.",
            ) from error

    def close(self) -> None:
        """Give back what is held: slots, too."""
        if self._fd >= 0:
            try:
                fcntl.ioctl(self._fd, FREE_SWAP_PAGES)
            except OSError:
                pass  # closing gives them back as well
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Slots(Writable):
    """Slots that are ours until `close`."""

    def __init__(self, device: int, first_block: int, pages: int) -> None:
        """Take up to ``pages`` slots.  `spans`: where they are, bytes of the device.

        Raises as `Writable` does, and `TargetTooSmall` where no slot is free.
        """
        super().__init__(device, first_block)
        try:
            self.spans = self._take(pages)
        except BaseException:
            self.close()
            raise

    def _take(self, pages: int) -> list[Span]:
        out = (ctypes.c_uint64 * (2 * ROOM))()
        taken = ctypes.c_uint64()
        count = _take_slots(self._fd, pages, out, ROOM, ctypes.byref(taken))
        if count < 0:
            raise TargetMissing(f"The kernel gives no swap: {os.strerror(-count)}.")
        if count == 0:
            raise TargetTooSmall("No swap is free.", advice="Add swap, or close programs.")
        return longest(out, count)


def longest(pairs: ctypes.Array[ctypes.c_uint64], count: int, most: int = MOST) -> list[Span]:
    """The longest of so many pieces, ascending and joined: ``most`` of them at the most.

    ``pairs``: offset and length of each; it is overwritten.
    """
    count = int(_longest(pairs, count, most))
    values = pairs[: 2 * count]
    return list(zip(values[0::2], values[1::2], strict=True))

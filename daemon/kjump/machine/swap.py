# SPDX-License-Identifier: GPL-2.0-or-later
"""Free slots of a swap area in use, taken and held through /dev/snapshot.

Runs in the session only.  The kernel offers slots to any process that has the device open for
reading, because hibernation in user space needs them (kernel/power/user.c).  It takes them back
when the descriptor is closed, even if the owner is killed.  While the device is open, the kernel
refuses its own hibernation (hibernate_acquire).  Opening it runs the kernel's notifiers for the
start of a hibernation (PM_HIBERNATION_PREPARE), and closing it those for the end.

The kernel refuses to write to a swap partition in use (ETXTBSY), except for the holder of this
device: block/fops.c asks is_hibernate_resume_dev(), which compares with the area that was set here
(since 5.8, "PM: hibernate: Restrict writes to the resume device").
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
"""``_IOW('3', 13, struct resume_swap_area)``; the struct is packed and has 12 bytes."""
AREA = struct.Struct("<qI")
ROOM = 1 << 20
"""Most pieces of free swap that are examined; they take 16 MiB of memory."""
MOST = 1 << 16
"""Most pieces that are used: no more fit into the map of a target (`kjump.image.locator`).  As
Python objects they take 160 bytes each, just when memory is short."""

Span = tuple[int, int]

_take_slots = LIBRARY.kj_take_slots
_take_slots.argtypes = (INT, U64, POINTER, U64, U64_OUT)
_take_slots.restype = ctypes.c_int64
_longest = LIBRARY.kj_longest
_longest.argtypes = (POINTER, U64, U64)
_longest.restype = U64


def encoded_device(device: int) -> int:
    """A device number (st_rdev) as the ioctl expects it: new_encode_dev() of linux/kdev_t.h."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


class Writable:
    """A swap area in use that this process may write to until `close`; takes no slots."""

    def __init__(self, device: int, first_block: int) -> None:
        """The area on ``device`` (st_rdev) whose first block lies at byte ``first_block`` of it.

        Raises `NoSnapshotDevice`, `TargetInUse` if another program hibernates, `TargetMissing`
        if the area is no longer in use.
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
            if error.errno == errno.EPERM:  # swsusp_swap_in_use(): another program's slots
                raise TargetInUse("Another program holds slots of the swap area.") from error
            raise TargetMissing(
                f"The kernel does not know the swap area: {error.strerror}.",
                advice="Switch it on (swapon), or choose another target.",
            ) from error

    def close(self) -> None:
        """Release everything that is held, including slots."""
        if self._fd >= 0:
            try:
                fcntl.ioctl(self._fd, FREE_SWAP_PAGES)
            except OSError:
                pass  # closing releases them as well
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Slots(Writable):
    """Slots that are ours until `close`."""

    def __init__(self, device: int, first_block: int, pages: int) -> None:
        """Take up to ``pages`` slots.  `spans`: where they are, in bytes of the device.

        Raises the errors of `Writable`, and `TargetTooSmall` if no slot is free.
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
            raise TargetMissing(f"The kernel refused to allocate swap: {os.strerror(-count)}.")
        if count == 0:
            raise TargetTooSmall("No swap is free.", advice="Add swap, or close programs.")
        return longest(out, count)


def longest(pairs: ctypes.Array[ctypes.c_uint64], count: int, most: int = MOST) -> list[Span]:
    """The ``most`` longest of ``count`` pieces, ascending, with neighbours joined.

    ``pairs``: offset and length of each piece; it is overwritten.
    """
    count = int(_longest(pairs, count, most))
    values = pairs[: 2 * count]
    return list(zip(values[0::2], values[1::2], strict=True))

# SPDX-License-Identifier: GPL-2.0-or-later
"""What of taking swap slots can be told without a kernel that gives any."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from kjump.errors import NoSnapshotDevice
from kjump.machine import swap


def request(direction: int, number: int, size: int) -> int:
    """_IOC() of asm-generic/ioctl.h with the magic of suspend_ioctls.h."""
    return direction << 30 | size << 16 | ord("3") << 8 | number


def test_the_requests() -> None:
    assert request(0, 9, 0) == swap.FREE_SWAP_PAGES
    assert swap.AREA.size == 12  # packed
    assert request(1, 13, swap.AREA.size) == swap.SET_SWAP_AREA


def test_a_device_number_as_the_kernel_decodes_it() -> None:
    """new_decode_dev() of linux/kdev_t.h."""
    for major, minor in ((254, 5), (8, 0), (259, 300), (4095, (1 << 20) - 1)):
        dev = swap.encoded_device(os.makedev(major, minor))
        assert (dev & 0xFFF00) >> 8 == major
        assert (dev & 0xFF) | ((dev >> 12) & 0xFFF00) == minor


def test_a_descriptor_that_gives_no_slots_is_an_error() -> None:
    out = (ctypes.c_uint64 * 8)()
    taken = ctypes.c_uint64(9)
    with open("/dev/null", "rb") as file:
        count = swap._take_slots(file.fileno(), 5, out, 4, ctypes.byref(taken))
    assert (count, taken.value) == (-errno.ENOTTY, 0)
    assert swap._take_slots(-1, 0, out, 4, ctypes.byref(taken)) == 0


def test_no_snapshot_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setattr(swap, "DEVICE", Path("/nonexistent/snapshot"))
    with pytest.raises(NoSnapshotDevice):
        swap.Slots(os.makedev(8, 1), 0, 1)

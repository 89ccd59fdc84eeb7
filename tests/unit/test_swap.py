# SPDX-License-Identifier: GPL-2.0-or-later
"""What of taking swap slots can be told without a kernel that gives any."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import NoSnapshotDevice
from kjump.image import locator
from kjump.machine import swap
from kjump.machine.native import LIBRARY


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
        count = LIBRARY.kj_take_slots(file.fileno(), 5, out, 4, ctypes.byref(taken))
    assert (count, taken.value) == (-errno.ENOTTY, 0)
    assert LIBRARY.kj_take_slots(-1, 0, out, 4, ctypes.byref(taken)) == 0


def test_no_snapshot_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setattr(swap, "SNAPSHOT_DEVICE", Path("/nonexistent/snapshot"))
    with pytest.raises(NoSnapshotDevice):
        swap.Slots(os.makedev(8, 1), 0, 1)


def packed(spans: list[swap.Span]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * (2 * len(spans) or 1))(*(x for span in spans for x in span))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=30),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_longest_pieces_are_used(
    parts: list[tuple[int, int]], most: int, rng: random.Random
) -> None:
    spans, at = [], 0
    for gap, length in parts:
        spans.append((at + gap, length))
        at += gap + length
    joined = locator.merged(spans)
    rng.shuffle(spans)
    found = swap.longest(packed(spans), len(spans), most)
    assert found == sorted(sorted(joined, key=lambda span: (-span[1], span[0]))[:most])


def test_scattered_swap_does_not_take_memory_that_is_short() -> None:
    """Every second page is free: as many pieces as are looked at, and more than a map holds."""
    assert swap.MOST == locator.MOST_SPANS
    pairs = (ctypes.c_uint64 * (2 * swap.ROOM))()
    view = memoryview(pairs).cast("B").cast("Q")
    for n in range(swap.ROOM):
        view[2 * n], view[2 * n + 1] = n * 8192, 4096
    view[2 * (swap.ROOM - 1) + 1] = 8192
    tracemalloc.start()
    found = swap.longest(pairs, swap.ROOM)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == swap.MOST and found[-1] == ((swap.ROOM - 1) * 8192, 8192)
    assert peak < 32 << 20

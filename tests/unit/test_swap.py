# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking swap slots, from a kernel that is played."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import (
    KjumpError,
    NoSnapshotDevice,
    TargetInUse,
    TargetMissing,
    TargetTooSmall,
)
from kjump.image import locator
from kjump.machine import swap
from kjump.machine.native import LIBRARY
from kjump.machine.ranges import PAGE

from .descriptors import held
from .played_swap import Snapshot


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


DISK = os.makedev(254, 5)


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Snapshot:
    return Snapshot(monkeypatch, tmp_path)


def test_slots_beside_each_other_are_one_piece(snapshot: Snapshot) -> None:
    snapshot.offer([10, 11, 12, 20, 5, 6, 21])
    with swap.Slots(DISK, 3 * PAGE, 100) as slots:
        assert slots.spans == [(5 * PAGE, 2 * PAGE), (10 * PAGE, 3 * PAGE), (20 * PAGE, 2 * PAGE)]
        assert snapshot.area == (swap.encoded_device(DISK), 3)  # in pages
        assert (len(snapshot.open), snapshot.freed) == (1, 0)
    assert (len(snapshot.open), snapshot.freed) == (0, 1)


def test_no_more_slots_are_taken_than_asked_for(snapshot: Snapshot) -> None:
    snapshot.offer(range(100, 200))
    slots = swap.Slots(DISK, 0, 30)
    assert slots.spans == [(100 * PAGE, 30 * PAGE)] and snapshot.given == 30
    slots.close()
    slots.close()  # twice does no harm
    assert snapshot.freed == 1


def test_if_no_slot_is_free_nothing_is_held(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(TargetTooSmall):
        swap.Slots(DISK, 0, 30)
    assert snapshot.freed == 1 and not held(tmp_path)


def test_a_kernel_that_fails_to_give_slots_is_named(snapshot: Snapshot, tmp_path: Path) -> None:
    snapshot.refuse_slots(errno.EIO)
    with pytest.raises(TargetMissing, match=os.strerror(errno.EIO)):
        swap.Slots(DISK, 0, 30)
    assert snapshot.freed == 1 and not held(tmp_path)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EPERM, TargetInUse), (errno.ENODEV, TargetMissing), (errno.EINVAL, TargetMissing)],
)
def test_an_area_that_the_kernel_does_not_take_is_named(
    snapshot: Snapshot, tmp_path: Path, number: int, error: type[KjumpError]
) -> None:
    snapshot.refuse[swap.SET_SWAP_AREA] = number
    snapshot.refuse[swap.FREE_SWAP_PAGES] = errno.ENODEV
    with pytest.raises(error):
        swap.Writable(DISK, 0)
    with pytest.raises(error):
        swap.Slots(DISK, 0, 1)
    assert not held(tmp_path) and not snapshot.given


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EBUSY, TargetInUse), (errno.EACCES, NoSnapshotDevice)]
)
def test_a_hibernation_that_is_under_way_is_not_disturbed(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, number: int, error: type[KjumpError]
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(error):
        swap.Writable(DISK, 0)
    assert snapshot.area is None

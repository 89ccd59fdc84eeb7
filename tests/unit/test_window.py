# SPDX-License-Identifier: GPL-2.0-or-later
"""Choosing the window: never over what is looked at while the helper runs."""

from __future__ import annotations

import mmap
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import NoWindow
from kjump.machine import pages
from kjump.machine.memory import parse_iomem
from kjump.machine.ranges import PAGE, overlaps
from kjump.session.staging import window

MIB = 1 << 20


def iomem(kernel: int) -> str:
    return (
        "00001000-0009fbff : System RAM\n"
        "00100000-3ffdefff : System RAM\n"
        f"  {kernel:08x}-{kernel + 28 * MIB - 1:08x} : Kernel code\n"
        f"  {kernel + 28 * MIB:08x}-{kernel + 36 * MIB - 1:08x} : Kernel bss\n"
        "100000000-13fffffff : System RAM\n"
    )


def flags(immovable: set[int]) -> window.ReadFlags:
    def read(first: int, count: int) -> bytes:
        return b"".join(
            struct.pack("<Q", 1 << window.KPF_RESERVED if pfn in immovable else 0)
            for pfn in range(first, first + count)
        )

    return read


@pytest.mark.parametrize("kernel", [0x1000000, 0x12000000, 0x2B800000, 0x3D000000])
def test_never_over_the_kernel_wherever_kaslr_put_it(kernel: int) -> None:
    found = window.choose(192 * MIB, parse_iomem(iomem(kernel)), flags(set()))
    assert not overlaps(found.range, [(kernel, kernel + 36 * MIB)])
    assert found.start % (2 * MIB) == 0 and found.end <= 0x3FFDF000
    assert found.low == ((0x1000, 0x9F000),)


def test_never_over_anything_immovable_or_avoided() -> None:
    rng = random.Random(5)
    resources = parse_iomem(iomem(0x1000000))
    for _ in range(10):
        bad = {rng.randrange(0x100, 0x3FFDF) for _ in range(6)}
        avoid = rng.randrange(0x10000, 0x3FFDF) * PAGE
        found = window.choose(64 * MIB, resources, flags(bad), avoid=[(avoid, avoid + PAGE)])
        assert not bad & set(range(found.start // PAGE, found.end // PAGE))
        assert not overlaps(found.range, [(avoid, avoid + PAGE)])


def test_no_window_tells_the_longest_run() -> None:
    bad = set(range(0, 0x40000, 0x8000))  # one page every 128 MiB
    with pytest.raises(NoWindow, match="192 MiB"):
        window.choose(192 * MIB, parse_iomem(iomem(0x1000000)), flags(bad))


def test_memory_above_4_gib_is_not_taken() -> None:
    with pytest.raises(NoWindow):
        window.choose(1023 * MIB, parse_iomem(iomem(0x1000000)), flags(set()))


def test_what_came_into_the_window_differs_from_what_kexec_put_there() -> None:
    own = struct.pack("<3Q", 1 << window.KPF_RESERVED, 1 << 12, 0)
    assert not window.came_in(own, own)
    assert not window.came_in(own, struct.pack("<3Q", 0, 0, 1 << window.KPF_PGTABLE))
    # Where kexec's own is, nothing else can have come; elsewhere it counts.
    for flag in (window.KPF_RESERVED, window.KPF_HWPOISON, window.KPF_OFFLINE, window.KPF_NOPAGE):
        assert window.came_in(own, struct.pack("<3Q", 1 << window.KPF_RESERVED, 0, 1 << flag))
    with pytest.raises(ValueError):
        window.came_in(own, own[8:])


def test_while_a_helper_rests_page_tables_may_come_into_its_window() -> None:
    """Those of new processes; nothing else that must not lie there may."""
    for flag in range(64):
        page = struct.pack("<Q", 1 << flag)
        movable = not window.came_in(bytes(8), page, window.IMMOVABLE)
        fits = not window.came_in(bytes(8), page)
        assert fits == (movable or flag == window.KPF_PGTABLE)
    assert window.came_in(bytes(8), struct.pack("<Q", 1 << 26), window.IMMOVABLE)


def test_the_best_window_has_the_fewest_pages_that_are_given_out_next() -> None:
    resources = parse_iomem(iomem(0x1000000))
    likely = [0] * 2048
    likely[300:511] = [7] * 211
    likely[200] = 1
    found = window.choose(128 * MIB, resources, flags(set()), likely=likely)
    assert found.end == 300 * window.ALIGNMENT
    likely[40:511] = [9] * 471
    likely[100:164] = [3] * 64
    found = window.choose(128 * MIB, resources, flags(set()), likely=likely)
    assert found.start == 100 * window.ALIGNMENT


@given(
    st.lists(st.booleans(), min_size=64, max_size=64),
    st.lists(st.integers(0, 5), min_size=64, max_size=64),
    st.integers(1, 20),
)
def test_choose_is_what_trying_all_would_find(
    bad: list[bool], likely: list[int], wanted: int
) -> None:
    blocks = 64
    resources = parse_iomem(f"{16 * MIB:x}-{(16 + 2 * blocks) * MIB - 1:x} : System RAM\n")
    first = 8
    immovable = {(first + n) * 512 + 17 for n in range(blocks) if bad[n]}
    costs = {
        at: sum(likely[at : at + wanted])
        for at in range(blocks - wanted + 1)
        if not any(bad[at : at + wanted])
    }
    size = wanted * window.ALIGNMENT
    counts = [0] * first + likely
    if not costs:
        with pytest.raises(NoWindow):
            window.choose(size, resources, flags(immovable), likely=counts)
        return
    found = window.choose(size, resources, flags(immovable), likely=counts)
    at = found.start // window.ALIGNMENT - first
    assert at == max(n for n in costs if costs[n] == min(costs.values()))


def test_counting_pages_by_block() -> None:
    present = 1 << 63
    entries = struct.pack("<5Q", present | 511, present | 512, 513, present | 1023, present | 9999)
    assert pages.count_blocks(entries, 9, 3) == [1, 2, 0]


def test_a_kernel_without_huge_pages_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Small)
    monkeypatch.setattr(window, "HIGHEST", 1 << 42)  # this machine may have more than 4 GiB
    assert sum(window.sample_allocations(1 << 20)) == 256


@given(
    st.lists(st.booleans(), min_size=64, max_size=64),
    st.integers(1, 20),
)
def test_readiness_finds_what_staging_finds(bad: list[bool], wanted: int) -> None:
    resources = parse_iomem(f"{16 * MIB:x}-{(16 + 2 * 64) * MIB - 1:x} : System RAM\n")
    read = flags({(8 + n) * 512 + 17 for n in range(64) if bad[n]})
    avoid = [(60 * MIB, 60 * MIB + PAGE)]
    size = wanted * window.ALIGNMENT
    found = window.find_out(size, resources, read, avoid)
    try:
        window.choose(size, resources, read, avoid)
    except NoWindow as error:
        assert found is not None and found.what == error.what
    else:
        assert found is None


def test_few_flags_are_read_if_there_is_a_window() -> None:
    reads: list[int] = []

    def read(first: int, count: int) -> bytes:
        reads.append(count)
        return bytes(8 * count)

    resources = parse_iomem("01000000-bfffffff : System RAM\n")
    assert window.find_out(160 * MIB, resources, read) is None
    assert sum(reads) <= 2 * window.STEP * 512

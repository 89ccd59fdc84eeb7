# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory in large parts, for threads that work near one another."""

from __future__ import annotations

import mmap
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import MemoryUnreadable
from kjump.helper.session_memory import gatherer
from kjump.helper.states import PageSpan
from kjump.machine import maps, pages
from kjump.machine.maps import Maps
from kjump.machine.ranges import PAGE, Range, merge


class View(mmap.mmap):
    """A mapping that is recognized when it is gone."""


class Memory:
    """Counts its mappings; each begins a page early, so that offsets count."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.views: list[weakref.ref[View]] = []

    def map(self, start: int, size: int) -> tuple[mmap.mmap, int]:
        self.asked.append((start, size))
        view = View(-1, size + PAGE)
        self.views.append(weakref.ref(view))
        return view, PAGE

    @property
    def alive(self) -> int:
        return sum(view() is not None for view in self.views)


RANGES = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 40)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=8,
)


@given(RANGES, st.integers(0, 320), st.integers(0, 320), st.integers(1, 16))
def test_all_that_may_be_mapped_is_and_nothing_else(
    ranges: list[Range], first: int, last: int, size: int
) -> None:
    memory = Memory()
    before, maps.PART = maps.PART, size
    try:
        shared = Maps(memory.map, ranges)
        found = list(shared.over(first, last))
    finally:
        maps.PART = before
    allowed = {pfn for start, end in merge(ranges) for pfn in range(start, end)}
    assert [pfn for at, count, _ in found for pfn in range(at, at + count)] == sorted(
        allowed & set(range(first, last))
    )
    for at, count, part in found:
        assert part.first <= at and at + count <= part.last
        assert part.at(part.first) == PAGE and part.at(at) + count * PAGE <= len(part.view)
    for start, length in memory.asked:
        assert length <= size * PAGE
        assert set(range(start // PAGE, (start + length) // PAGE)) <= allowed


def test_spans_in_order_map_each_part_once() -> None:
    memory = Memory()
    shared = Maps(memory.map, [(0, 4 * maps.PART)])
    for at in range(0, 4 * maps.PART, 512):
        list(shared.over(at, at + 512))
    assert len(memory.asked) == 4
    assert memory.alive == maps.KEPT


def test_what_is_in_use_stays() -> None:
    memory = Memory()
    shared = Maps(memory.map, [(0, 20 * maps.PART)])
    used = shared.part(0)
    for number in range(20):
        shared.part(number * maps.PART)
    assert used is not None and used.view[used.offset] == 0
    assert memory.alive == maps.KEPT + 1
    del used
    assert memory.alive == maps.KEPT
    shared.close()
    assert memory.alive == 0


def test_threads_share_them() -> None:
    memory = Memory()
    shared = Maps(memory.map, [(0, 2 * maps.PART)])

    def work() -> None:
        for at in range(0, 2 * maps.PART, 1024):
            list(shared.over(at, at + 1024))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory.asked) == 2


def test_a_page_that_is_not_there_is_never_left_out_in_silence() -> None:
    class Core(Memory):
        def readable(self) -> list[Range]:
            return [(0, 3), (4, 8)]

    gather = gatherer(Core())  # type: ignore[arg-type]
    bundle, buffer = pages.Bundle(8), mmap.mmap(-1, 8 * PAGE)
    kinds = bytearray([pages.SAVE] * 8)
    kinds[3] = pages.FREE
    bundle.into(buffer, 0)
    gather(PageSpan(pages.Kinds(kinds), 0, 0, 8), bundle)
    assert bundle.used + bundle.zeros == 7
    bundle.into(buffer, 0)
    with pytest.raises(MemoryUnreadable):
        gather(PageSpan(pages.Kinds(bytearray(8)), 0, 0, 8), bundle)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory, mapped in large parts that all threads share.

Runs in the helper and in the restorer.  Removing a mapping interrupts every processor, so a mapping
for each chunk cost more than copying the chunk.  One mapping of all memory would need more page
tables than a small helper has room for.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kjump.machine.ranges import PAGE, Range, merge

PART = 16384
"""Pages in one mapping: 64 MiB, whose page tables take 128 KiB."""
KEPT = 3
"""Mappings that are kept for other threads: threads work near one another, but not on one part."""


@dataclass(frozen=True)
class Part:
    """Pages [first, last), whose bytes begin at ``offset`` of ``view``."""

    first: int
    last: int
    view: mmap.mmap
    offset: int

    def at(self, pfn: int) -> int:
        """Where this page's bytes begin in the view."""
        return self.offset + (pfn - self.first) * PAGE


class Maps:
    """Mappings of the ranges that may be mapped, and of nothing else; for any number of threads.

    A mapping that is in use stays until its last user drops it.
    """

    def __init__(
        self, mapped: Callable[[int, int], tuple[mmap.mmap, int]], ranges: Sequence[Range]
    ) -> None:
        """``mapped(address, size)``: maps ``size`` bytes at a physical address, and returns the
        mapping and their offset in it; ``ranges``: what may be mapped, in pfns."""
        self._mapped = mapped
        self._parts = [
            (at, min(at + PART, end))
            for start, end in merge(ranges)
            for at in range(start, end, PART)
        ]
        self._starts = [start for start, _ in self._parts]
        self._kept: OrderedDict[int, Part] = OrderedDict()
        self._lock = threading.Lock()

    def part(self, pfn: int) -> Part | None:
        """The part that holds this page; None if it may not be mapped.  Raises what ``mapped``
        raises."""
        number = bisect_right(self._starts, pfn) - 1
        if number < 0 or pfn >= self._parts[number][1]:
            return None
        with self._lock:
            found = self._kept.get(number)
            if found is None:
                first, last = self._parts[number]
                found = Part(first, last, *self._mapped(first * PAGE, (last - first) * PAGE))
                self._kept[number] = found
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(number)
            return found

    def over(self, first: int, last: int) -> Iterator[tuple[int, int, Part]]:
        """Pages [first, last), as far as they may be mapped: (pfn, pages, part), ascending."""
        at = first
        while at < last:
            found = self.part(at)
            if found is None:
                number = bisect_right(self._starts, at)
                if number == len(self._starts):
                    return
                at = self._starts[number]
                continue
            end = min(last, found.last)
            yield at, end - at, found
            at = end

    def close(self) -> None:
        """Drop all mappings; those in use stay as long as they are in use."""
        with self._lock:
            self._kept.clear()

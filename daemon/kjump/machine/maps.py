# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory, mapped a large part at a time for all threads together.

Runs in the helper and in the restorer.  Taking a mapping away interrupts every processor, so one
for each chunk cost more than copying the chunk did; and one of everything would cost page tables
that a small helper does not have.
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
"""Pages mapped at a time, 64 MiB; their page tables take 128 KiB."""
KEPT = 3
"""Mappings that are kept for who comes next: threads work near one another, not on the same one."""


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

    One that is in use stays until its last user lets go of it.
    """

    def __init__(
        self, mapped: Callable[[int, int], tuple[mmap.mmap, int]], ranges: Sequence[Range]
    ) -> None:
        """``mapped``: maps so many bytes from a physical address on, and says where in the mapping
        they begin; ``ranges``: what may be mapped, in pfns."""
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
        """The part that this page lies in; None where it may not be mapped.  Raises what mapping
        it does."""
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
        """Keep none; those in use stay until they no longer are."""
        with self._lock:
            self._kept.clear()

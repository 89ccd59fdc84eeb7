# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of every page of the session, determined before the first page is copied.

Runs in the helper; only reads the session's memory.  One byte a page (1.3 MB for 5 GiB), which
native code fills from the session's struct pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kjump.machine import pages
from kjump.machine.ranges import PAGE, Range, intersect
from kjump.machine.structpage import AddressSpace, MemoryMap, layout
from kjump.machine.vmcore import Vmcore

WINDOW = 6
NAMES = (*pages.NAMES, "window")
CELLS = 128
SHARES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The digits for shares in the report's map."""
STEP = 32768
"""Pages classified at a time: 128 MiB, within one memory section."""


@dataclass(frozen=True)
class PageSpan:
    """Pages [first, last) of one RAM range, for one chunk: ``at`` is the first's index in
    ``kinds``."""

    kinds: pages.Kinds
    at: int
    first: int
    last: int


class States:
    """Kinds of the pages of each RAM range; ranges are in pfns."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.ranges = [(start, end, bytearray(end - start)) for start, end in ranges]

    def spans(self, most: int) -> Iterator[PageSpan]:
        """All of memory, ascending, in spans with at most ``most`` pages to save."""
        for start, end, kinds in self.ranges:
            held = pages.Kinds(kinds)
            at = 0
            while at < end - start:
                count = held.span(at, end - start, most)
                yield PageSpan(held, at, start + at, start + at + count)
                at += count

    def mark(self, hidden: Iterable[Range], kind: int) -> None:
        """Give every page of the pfn ranges this kind."""
        hidden = list(hidden)  # the loop goes through it once for each range of RAM
        for start, end, kinds in self.ranges:
            for a, b in intersect([(start, end)], hidden):
                kinds[a - start : b - start] = bytes([kind]) * (b - a)

    def free_is_zero(self) -> None:
        """Mark free pages as zeros: a kernel that trusts them to hold zeros needs that after a
        restore."""
        table = bytearray(range(256))
        table[pages.FREE] = pages.ZERO
        self.ranges = [(s, e, kinds.translate(table)) for s, e, kinds in self.ranges]

    def coarse(self, cells: int = CELLS) -> dict[str, int | str]:
        """A coarse map of where in memory the pages of each kind lie.

        It divides physical memory from page 0 to the end of RAM into ``cells`` parts of
        ``cell_pages`` pages each (the last ones may be empty).  For each kind that exists, it has a
        digit for each part: the share of the part's pages that are of this kind, in 61ths
        (`SHARES`); "0" means none at all.  If the shares of a part do not add up to the whole, the
        rest is not RAM.
        """
        end = max((end for _, end, _ in self.ranges), default=0)
        size = max(1, -(-end // cells))
        # Searching for an absent byte is fast, but counting is not.
        there = [
            (kind, name)
            for kind, name in enumerate(NAMES)
            if any(kind in kinds for _, _, kinds in self.ranges)
        ]
        found = {name: [0] * cells for _, name in there}
        for first, last, kinds in self.ranges:
            for cell in range(first // size, -(-last // size)):
                a, b = max(first, cell * size), min(last, (cell + 1) * size)
                for kind, name in there:
                    found[name][cell] += kinds.count(kind, a - first, b - first)
        top = len(SHARES) - 1
        return {
            "cell_pages": size,
            **{
                name: "".join(SHARES[-(-count * top // size)] for count in counts)
                for name, counts in found.items()
            },
        }

    def counts(self) -> dict[str, int]:
        """Pages of each kind, by name."""
        return {
            name: sum(kinds.count(kind) for _, _, kinds in self.ranges)
            for kind, name in enumerate(NAMES)
        }


def classify(
    core: Vmcore, facts: Mapping[str, str], ram: Sequence[Range], hidden: Iterable[Range]
) -> States:
    """The states of all pages of ``ram``; pages in ``hidden`` become `WINDOW`.

    Both are physical bytes in whole pages.  ``facts`` is VMCOREINFO.  Raises `MemoryUnreadable`.
    """
    found = layout(facts)
    space = AddressSpace(facts, core.read)
    where = MemoryMap(facts, space, core.read)
    states = States((a // PAGE, b // PAGE) for a, b in ram)
    classifier = pages.Classifier(found)
    for start, end, kinds in states.ranges:
        classifier.restart()
        at = start
        while at < end:
            count = min(end, (at // STEP + 1) * STEP) - at
            structs = list(space.spans(where.struct_page(at), count * found.size))
            if all(size % found.size == 0 for _, size in structs):
                done = 0
                for physical, size in structs:
                    view, offset = core.map(physical, size)
                    with view:
                        n = size // found.size
                        classifier.classify(view, offset, n, kinds, at - start + done)
                        done += n
            else:
                whole = b"".join(core.read(physical, size) for physical, size in structs)
                classifier.classify(whole, 0, count, kinds, at - start)
            at += count
    states.mark(((a // PAGE, b // PAGE) for a, b in hidden), WINDOW)
    return states

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the window's content is: the jump swapped it with other pages of the session.

Pure; ``kjumpctl image export`` uses it.  A kexec image has a list that assigns a source page to
each destination page.  The jump swaps each pair, so the content that the session had in the window
lies in the source pages, and those are in the image.  The list is found without symbols:
relocate_kernel() keeps its physical address for the way back, in the page of code through which it
returns (arch/x86/kernel/relocate_kernel_64.S; CP_PA_BACKUP_PAGES_MAP in 6.1 and 6.12).  Kernels
keep it at different offsets, so every word of that page is tried: it is the right one only if its
list names every wanted page, each exactly once, and no other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from kjump.machine.ranges import PAGE, Range

# The lowest bits of an entry (include/linux/kexec.h); the rest is a physical address.
DESTINATION, INDIRECTION, DONE, SOURCE = 1, 2, 4, 8
FLAGS = PAGE - 1
WORDS = struct.Struct(f"<{PAGE // 8}Q")

ReadPage = Callable[[int], bytes]
"""The page of a pfn; zeros, or fewer bytes, if there is none."""


def pairs(read: ReadPage, jump_back: int, wanted: Iterable[Range]) -> dict[int, int] | None:
    """Source pfn of each destination pfn, or None if no list is found.

    ``read``: the memory in the image; ``jump_back``: physical address at which the session
    continues; ``wanted``: the destinations, in pfns.
    """
    expected = {pfn for start, end in wanted for pfn in range(start, end)}
    for word in _words(read, jump_back // PAGE):
        if word & FLAGS == INDIRECTION:
            found = _walk(read, word, expected)
            if found is not None:
                return found
    return None


def _words(read: ReadPage, pfn: int) -> tuple[int, ...]:
    data = read(pfn)
    return WORDS.unpack(data) if len(data) == PAGE else ()


def _walk(read: ReadPage, entry: int, expected: set[int]) -> dict[int, int] | None:
    found: dict[int, int] = {}
    visited: set[int] = set()
    words: tuple[int, ...] = ()
    at = destination = 0
    while entry & FLAGS != DONE:
        kind, pfn = entry & FLAGS, entry // PAGE
        if kind == INDIRECTION:
            if pfn in visited or pfn in expected:
                return None
            visited.add(pfn)
            words, at = _words(read, pfn), 0
        elif kind == DESTINATION:
            destination = pfn
        elif kind == SOURCE:
            if destination not in expected or destination in found:
                return None
            found[destination] = pfn
            destination += 1
        else:
            return None
        if at == len(words):
            return None
        entry = words[at]
        at += 1
    return found if found.keys() == expected else None

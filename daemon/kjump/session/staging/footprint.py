# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks whether the loaded kexec image is still the one that kjump loaded.

Runs in the session.  It only reads.  The kernel shows only that some image is loaded
(/sys/kernel/kexec_loaded).  But it marks the pages of an image as reserved as long as the image is
loaded (kernel/kexec_core.c, kimage_alloc_pages).  When another image replaces it, the kernel frees
them.  So this compares pages before and after loading: those that became reserved in between belong
to the image.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence

from kjump.machine.ranges import PAGE, Range
from kjump.session.staging.window import KPF_RESERVED

BLOCK = 512
"""The kernel takes memory in runs: one page in 2 MiB is a sufficient sample."""
MOST = 1 << 15
"""Most pages that are examined; they take about 50 ms."""
ENOUGH = 64
"""Pages of the image that are remembered."""

ReadReserved = Callable[[Sequence[int]], list[int]]
"""Returns the pfns whose page is reserved.  Raises OSError."""


def read_reserved(pfns: Sequence[int]) -> list[int]:
    """The reserved pages, according to /proc/kpageflags.  Raises OSError."""
    out = []
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for pfn in pfns:
            flags = int.from_bytes(os.pread(file.fileno(), 8, pfn * 8), "little")
            if flags >> KPF_RESERVED & 1:
                out.append(pfn)
    return out


def sample(ram: Iterable[Range], most: int = MOST) -> list[int]:
    """A random page of each block of memory, or of fewer blocks if there are too many.

    ``ram``: physical bytes, whole pages.
    """
    blocks = [
        (first, min(first + BLOCK, end // PAGE))
        for start, end in ram
        for first in range(start // PAGE, end // PAGE, BLOCK)
    ]
    step = -(-len(blocks) // most)
    return [random.randrange(first, end) for first, end in blocks[:: step or 1]]


class Footprint:
    """Some of the pages in which the kernel keeps the image that is loaded here.

    Make it before the image is loaded, and call `settle` after.
    """

    def __init__(self, ram: Iterable[Range], read: ReadReserved = read_reserved) -> None:
        """``ram``: the session's, physical bytes."""
        self._read = read
        self._pages: list[int] = []
        pfns = sample(ram)
        try:
            known = frozenset(read(pfns))
        except OSError:
            pfns, known = [], frozenset()  # then nothing is known about the image
        self._free = [pfn for pfn in pfns if pfn not in known]

    def settle(self) -> None:
        """Find the image's pages; call this after the image was loaded."""
        try:
            self._pages = self._read(self._free)[:ENOUGH]
        except OSError:
            self._pages = []
        self._free = []

    def is_there(self) -> bool:
        """Whether that image is still loaded; true if nothing is known about it.

        The image's pages stay reserved until it is unloaded.  A majority of them decides, because a
        driver may have reserved one of the sampled pages at the same moment.
        """
        try:
            return not self._pages or 2 * len(self._read(self._pages)) > len(self._pages)
        except OSError:
            return True

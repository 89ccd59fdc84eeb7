"""The window: the contiguous RAM that becomes the helper's whole world.

Runs in the session; reads /proc/iomem and /proc/kpageflags, changes nothing.

The kernel swaps the window's content with the staged pages at the jump and back at the return,
so whatever the session has there survives.  But while the helper runs it is elsewhere, so nothing
that is *looked at* meanwhile may lie in it: not the kernel's image, not struct page and page
tables (the helper walks them), not per-cpu areas (parked CPUs may wait on them with MWAIT), not the
report page, not VMCOREINFO.  Boot-time allocations of the kernel are all marked reserved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kjump.errors import NoWindow
from kjump.machine.memory import Resource, system_ram
from kjump.machine.ranges import (
    PAGE,
    Range,
    align_down,
    align_up,
    intersect,
    subtract,
    whole_pages,
)

ALIGNMENT = 2 << 20
LOWEST = 16 << 20
HIGHEST = 1 << 32
"""Above 4 GiB the helper would have no memory for 32-bit DMA."""
LOW_END = 1 << 20

# include/uapi/linux/kernel-page-flags.h
KPF_HWPOISON, KPF_NOPAGE, KPF_OFFLINE, KPF_PGTABLE, KPF_RESERVED = 19, 20, 23, 26, 32
IMMOVABLE = (
    1 << KPF_HWPOISON | 1 << KPF_NOPAGE | 1 << KPF_OFFLINE | 1 << KPF_PGTABLE | 1 << KPF_RESERVED
)
RESTING = IMMOVABLE & ~(1 << KPF_PGTABLE)
"""What must not have come into a window while a warm helper rests.  Page tables do come: every new
process has some, and they are wherever memory is free.  Nobody looks at those while the session
stands still.  The tables that the helper walks are from the boot, and reserved."""

ReadFlags = Callable[[int, int], bytes]
"""(first pfn, pages) to 8 bytes a page, as /proc/kpageflags gives them."""


@dataclass(frozen=True)
class Window:
    """Physical bytes [start, start + size), and the low ranges below 1 MiB staged with it."""

    start: int
    size: int
    low: tuple[Range, ...]

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def range(self) -> Range:
        return self.start, self.end


def low_ranges(resources: Iterable[Resource]) -> tuple[Range, ...]:
    """Whole pages of RAM below 1 MiB: the helper needs some for its real-mode trampoline."""
    return tuple(intersect(whole_pages(system_ram(resources)), [(PAGE, LOW_END)]))


def last_immovable(flags: bytes, mask: int = IMMOVABLE) -> int | None:
    """Index of the last page that must not lie in the window, or None.  ``mask``: by which of
    its flags."""
    words = memoryview(flags).cast("Q")
    for index in range(len(words) - 1, -1, -1):
        if words[index] & mask:
            return index
    return None


def choose(
    size: int, resources: list[Resource], read_flags: ReadFlags, avoid: Iterable[Range] = ()
) -> Window:
    """The highest window of ``size`` bytes below 4 GiB without anything immovable.

    ``avoid``: physical ranges it must not touch.  Raises `NoWindow`.
    """
    kernel = [(r.start, r.end) for r in resources if r.name.startswith(("Kernel ", "Crash kernel"))]
    holes = [*avoid, *((align_down(s, ALIGNMENT), align_up(e, ALIGNMENT)) for s, e in kernel)]
    rooms = subtract(intersect(system_ram(resources), [(LOWEST, HIGHEST)]), holes)
    largest = 0
    for room_start, room_end in reversed(rooms):
        end = align_down(room_end, ALIGNMENT)
        start = end - size
        clear_from = end  # [clear_from, end) is known to be clear
        while start >= align_up(room_start, ALIGNMENT):
            flags = read_flags(start // PAGE, (clear_from - start) // PAGE)
            bad = last_immovable(flags)
            if bad is None:
                return Window(start, size, low_ranges(resources))
            largest = max(largest, end - (start + (bad + 1) * PAGE))
            end = clear_from = align_down(start + bad * PAGE, ALIGNMENT)
            start = end - size
    raise NoWindow(
        f"There is no run of {size >> 20} MiB below 4 GiB without memory of the kernel's own"
        f" (the longest seen has {largest >> 20} MiB)."
    )


def read_kpageflags(first: int, count: int) -> bytes:
    """/proc/kpageflags of ``count`` pages from pfn ``first`` on.  Raises OSError."""
    fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    try:
        out = b""
        while len(out) < count * 8:
            piece = os.pread(fd, count * 8 - len(out), first * 8 + len(out))
            if not piece:
                raise OSError(f"/proc/kpageflags ends before page {first + count}")
            out += piece
        return out
    finally:
        os.close(fd)

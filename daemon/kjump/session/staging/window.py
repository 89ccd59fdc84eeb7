# SPDX-License-Identifier: GPL-2.0-or-later
"""Choosing the window: the contiguous RAM in which the helper lives.

Runs in the session; reads /proc/iomem and /proc/kpageflags, changes nothing.

The kernel swaps the window's content with the staged pages at the jump, and swaps it back at the
return, so the session's content there survives.  But while the helper runs, that content is
elsewhere.  So the window must not contain anything that is *read* meanwhile: the kernel's image,
struct page and page tables (the helper walks them), per-cpu areas (parked CPUs may wait on them
with MWAIT), the report page, or VMCOREINFO.  All boot-time allocations of the kernel are marked
reserved.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kjump.errors import NoWindow
from kjump.machine.memory import LOW_END, Resource, system_ram
from kjump.machine.native import address_of
from kjump.machine.pages import count_blocks, flagged_blocks
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
STEP = 64
"""Number of 2 MiB blocks whose flags are read at a time."""

# include/uapi/linux/kernel-page-flags.h
KPF_HWPOISON, KPF_NOPAGE, KPF_OFFLINE, KPF_PGTABLE, KPF_RESERVED = 19, 20, 23, 26, 32
IMMOVABLE = (
    1 << KPF_HWPOISON | 1 << KPF_NOPAGE | 1 << KPF_OFFLINE | 1 << KPF_PGTABLE | 1 << KPF_RESERVED
)
RESTING = IMMOVABLE & ~(1 << KPF_PGTABLE)
"""Flags that must not appear in a window while a warm helper rests.  Page tables may: every new
process has some, wherever memory is free, and nobody reads them while the session stands still.
The tables that the helper walks exist since the boot, and are reserved."""

ReadFlags = Callable[[int, int], bytes | bytearray]
"""Maps (first pfn, pages) to 8 bytes a page, in the form of /proc/kpageflags."""


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
    """Whole pages of RAM below 1 MiB; the helper needs some for its real-mode trampoline."""
    return tuple(intersect(whole_pages(system_ram(resources)), [(PAGE, LOW_END)]))


def came_in(before: bytes | bytearray, now: bytes | bytearray, mask: int = RESTING) -> bool:
    """Whether a page has a flag of ``mask`` that it did not have before.

    Both are flags of the window's pages.  Just after staging, some may be reserved, and that is
    fine: if kexec_load happens to allocate a page of the window itself, that page becomes its own
    source and is already in place (kimage_alloc_page in kernel/kexec_core.c).  This is common if
    memory is full.
    """
    if len(before) != len(now):
        raise ValueError("flags of another window")
    came = int.from_bytes(now, "little") & ~int.from_bytes(before, "little")
    return bool(came & int.from_bytes(mask.to_bytes(8, "little") * (len(now) // 8), "little"))


def choose(
    size: int,
    resources: list[Resource],
    read_flags: ReadFlags,
    avoid: Iterable[Range] = (),
    likely: Sequence[int] = (),
) -> Window:
    """The best window of ``size`` bytes below 4 GiB without anything immovable.

    ``avoid``: physical ranges it must not touch.  ``likely``: for each 2 MiB of memory how many
    pages the kernel is likely to allocate next; the best window has the fewest of
    them, and is the highest of those.  Raises `NoWindow`.
    """
    wanted = size // ALIGNMENT
    largest = 0
    best: tuple[int, int] | None = None
    for first, last in _rooms(resources, avoid):
        run = cost = 0
        for block, bad in enumerate(_bad_blocks(first, last, read_flags), first):
            if bad:
                run = cost = 0
                continue
            run += 1
            cost += _at(likely, block)
            if run > wanted:
                cost -= _at(likely, block - wanted)
            largest = max(largest, run)
            if run >= wanted and (best is None or cost <= best[0]):
                best = cost, block + 1 - wanted
    if best is None:
        raise no_window(size, largest * ALIGNMENT)
    return Window(best[1] * ALIGNMENT, size, low_ranges(resources))


def no_window(size: int, largest: int) -> NoWindow:
    """The error that there is no window of ``size`` bytes; ``largest``: the longest run, in
    bytes."""
    return NoWindow(
        f"There is no run of {size >> 20} MiB below 4 GiB that is free of the kernel's own memory"
        f" (the longest has {largest >> 20} MiB)."
    )


def find_out(
    size: int, resources: list[Resource], read_flags: ReadFlags, avoid: Iterable[Range] = ()
) -> NoWindow | None:
    """Whether `choose` would find a window now, as its error or None.

    It stops at the first run that is long enough, so on most machines it reads few flags.
    """
    wanted = size // ALIGNMENT
    largest = 0
    for first, last in _rooms(resources, avoid):
        run = 0
        for bad in _bad_blocks(first, last, read_flags):
            run = 0 if bad else run + 1
            largest = max(largest, run)
            if run >= wanted:
                return None
    return no_window(size, largest * ALIGNMENT)


def _rooms(resources: list[Resource], avoid: Iterable[Range]) -> list[tuple[int, int]]:
    """Where windows may lie, as [first, last) in blocks of 2 MiB."""
    kernel = [(r.start, r.end) for r in resources if r.name.startswith(("Kernel ", "Crash kernel"))]
    holes = [(align_down(s, ALIGNMENT), align_up(e, ALIGNMENT)) for s, e in (*kernel, *avoid)]
    return [
        (align_up(start, ALIGNMENT) // ALIGNMENT, align_down(end, ALIGNMENT) // ALIGNMENT)
        for start, end in subtract(intersect(system_ram(resources), [(LOWEST, HIGHEST)]), holes)
    ]


def _at(counts: Sequence[int], block: int) -> int:
    return counts[block] if block < len(counts) else 0


def _bad_blocks(first: int, last: int, read_flags: ReadFlags) -> Iterator[int]:
    """For each block of 2 MiB whether it holds anything immovable."""
    pages = ALIGNMENT // PAGE
    for at in range(first, last, STEP):
        count = min(STEP, last - at)
        yield from flagged_blocks(read_flags(at * pages, count * pages), pages, IMMOVABLE)


def read_kpageflags(first: int, count: int) -> bytearray:
    """/proc/kpageflags of ``count`` pages from pfn ``first`` on.  Raises OSError."""
    out = bytearray(count * 8)
    done = 0
    with open("/proc/kpageflags", "rb", buffering=0) as file, memoryview(out) as view:
        file.seek(first * 8)
        while done < len(out):
            got = file.readinto(view[done:])
            if not got:
                raise OSError(f"/proc/kpageflags ends before page {first + count}")
            done += got
    return out


def sample_allocations(size: int) -> list[int]:
    """Find out where the kernel currently allocates memory: allocate ``size`` bytes, look, and free
    them.  Returns the number of pages in each 2 MiB below 4 GiB.

    kexec_load allocates a source page for each page of the window.  If such a page happens to lie
    in the window itself, the kernel puts it on a list, and searches that list for every further
    page (kimage_alloc_page in kernel/kexec_core.c), so the time grows with the square of their
    number.  Memory that was just freed is mostly what the kernel allocates next.  Needs
    CAP_SYS_ADMIN; raises OSError.
    """
    blocks = HIGHEST // ALIGNMENT
    with mmap.mmap(-1, size) as memory:
        # kexec_load allocates single pages.  A kernel without huge pages does not know this advice.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[::PAGE] = bytes([1]) * (size // PAGE)  # touches each page
        entries = bytearray(size // PAGE * 8)
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap, memoryview(entries) as view:
            pagemap.seek(address_of(memory) // PAGE * 8)
            done = 0
            while done < len(entries):
                got = pagemap.readinto(view[done:])
                if not got:
                    break
                done += got
    return count_blocks(entries, (ALIGNMENT // PAGE).bit_length() - 1, blocks)

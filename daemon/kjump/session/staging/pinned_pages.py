# SPDX-License-Identifier: GPL-2.0-or-later
"""The session's pages that another kernel reads or writes: memory with a fixed physical address.

Runs in the session.  If the kernel provides pages of its own, those never move.  Otherwise pages
are locked.  Compaction may still migrate locked pages: over the days that a warm helper rests, or
within a second if memory is full and staging needs much of it.  So their physical addresses are
read again just before the jump, and the other side checks the nonce.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from kjump.errors import StagingFailed
from kjump.handoff import report, request
from kjump.handoff.cell import NONCE_SIZE
from kjump.machine.ranges import PAGE, Range
from kjump.machine.syscalls import bpf, mlock

PRESENT = 1 << 63
PFN = (1 << 55) - 1
BPF_MAP_CREATE, MAP_ARRAY, MAP_MMAPABLE = 0, 2, 1 << 10
MAP = struct.Struct("<5I")
"""uapi/linux/bpf.h, ``union bpf_attr``: type, sizes of key and value, entries, flags."""


def physical_address(address: int) -> int:
    """Physical address of a virtual address of this process (/proc/self/pagemap).

    Raises `StagingFailed` if the page is not in memory, or if CAP_SYS_ADMIN is missing.
    """
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    if not entry & PRESENT or not entry & PFN:
        raise StagingFailed("The kernel does not show the physical address of a locked page.")
    return int((entry & PFN) * PAGE + address % PAGE)


def kernel_pages(count: int) -> mmap.mmap:
    """Writable pages that no compaction moves.  Raises OSError.

    The kernel has no system call for that.  But a mappable BPF array map (bpf(2); "bpf: Add mmap()
    support for BPF_MAP_TYPE_ARRAY", v5.5) consists of such pages: they are the kernel's own
    (kernel/bpf/arraymap.c), and nobody else knows of them.  Needs only CAP_SYS_ADMIN.
    """
    descriptor = bpf(BPF_MAP_CREATE, MAP.pack(MAP_ARRAY, 4, PAGE, count, MAP_MMAPABLE))
    try:
        return mmap.mmap(descriptor, count * PAGE)
    finally:
        os.close(descriptor)


class LockedPages:
    """Zeroed pages that stay in memory, with the physical address that each had at first."""

    def __init__(self, count: int) -> None:
        """Uses pages that the kernel never moves, if it can provide them."""
        self.are_the_kernels = True
        try:
            self.memory = kernel_pages(count)
        except OSError:
            self.are_the_kernels = False
            self.memory = mmap.mmap(-1, count * PAGE)
        self.memory[:] = bytes(count * PAGE)
        self._view = (ctypes.c_char * (count * PAGE)).from_buffer(self.memory)
        try:
            if not self.are_the_kernels:
                mlock(ctypes.addressof(self._view), count * PAGE)
        except OSError as error:
            raise StagingFailed(f"A page cannot be locked: {error.strerror}.") from error
        self.addresses = self.physical_addresses()

    def physical_addresses(self) -> tuple[int, ...]:
        """The physical addresses of the pages now."""
        start = ctypes.addressof(self._view)
        return tuple(
            physical_address(start + offset) for offset in range(0, len(self.memory), PAGE)
        )

    def moved(self) -> bool:
        """Whether a page has moved since its creation."""
        return self.physical_addresses() != self.addresses

    @property
    def ranges(self) -> list[Range]:
        """The physical bytes of the pages."""
        return [(address, address + PAGE) for address in self.addresses]

    def close(self) -> None:
        del self._view
        self.memory.close()


class ReportPage:
    """One page that stays in memory, with a fresh nonce.  Close it after reading the report."""

    def __init__(self) -> None:
        self.nonce = os.urandom(NONCE_SIZE)
        self._page = LockedPages(1)
        self.physical = self._page.addresses[0]
        self.blank()

    @property
    def range(self) -> Range:
        """Its physical bytes."""
        return self._page.ranges[0]

    def blank(self) -> None:
        """Clear the page: nobody has reported yet."""
        self._page.memory[:] = report.blank(self.nonce)

    def moved(self) -> bool:
        """Whether the page has moved from the address in the handoff."""
        return self._page.moved()

    def read(self) -> report.Report | None:
        """The report on the page, or None."""
        return report.unpack(bytes(self._page.memory), self.nonce)

    def close(self) -> None:
        self._page.close()


class RequestPages:
    """The request page and the pages for a request (`kjump.handoff.request`), in one mapping."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._pages = LockedPages(1 + request.PAGES)
        self.physical = self._pages.addresses[0]
        self._pages.memory[:PAGE] = request.blank(nonce)

    @property
    def ranges(self) -> list[Range]:
        """The physical bytes of all these pages."""
        return self._pages.ranges

    def moved(self) -> bool:
        """Whether a page has moved: it may be in the window now."""
        return self._pages.moved()

    def write(self, data: bytes) -> None:
        """Write a request.  ``data``: from `kjump.handoff.request.pack`."""
        count = -(-len(data) // PAGE)
        self._pages.memory[PAGE : PAGE + len(data)] = data
        addresses = self._pages.addresses[1 : 1 + count]
        self._pages.memory[:PAGE] = request.pack_page(self._nonce, addresses, len(data))

    def close(self) -> None:
        self._pages.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Loading memory through the kernel's /dev/snapshot.

Runs in the boot kernel.  The stream is a header page, pages of page frame numbers (512 each, ~0
ends the list), then the data pages in ascending order.  The kernel checks magic, memory map and
page count, but no version (kernel/power/snapshot.c, arch/x86/power/hibernate.c).  The offsets in
the header are the same in 6.1, 6.12 and 7.2:

====== ==== ==================================================
offset size field
====== ==== ==================================================
0      8    jump address (virtual; the physical one works as well)
8      8    jump address (physical)
16     8    cr3 that the kernel loads for the jump
24     8    magic 0x23456789abcdef02
32     4    CRC-32 of the firmware's memory map
392    4    kernel version code
400    8    num_physpages
408    4    cpus
416    8    data pages
424    8    number of all pages: header, numbers, data
432    8    size of all pages in bytes
====== ==== ==================================================
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kjump.errors import NoSnapshotDevice, RestoreFailed, RestoreNoMemory
from kjump.image.extents import Extents
from kjump.image.layout import DATA, Extent
from kjump.image.read import Chunk
from kjump.machine.native import INT, INT_OUT, LIBRARY, POINTER, U64, address_of
from kjump.machine.ranges import PAGE, align_up, overlaps, subtract
from kjump.machine.swap import SNAPSHOT_DEVICE

MAGIC = 0x23456789ABCDEF02
END = (1 << 64) - 1
NUMBERS = PAGE // 8
VECTOR = 512
"""Number of zero pages that are kept ready."""

_restore = LIBRARY.kj_restore
_restore.argtypes = (INT,)
_restore.restype = INT
_feed = LIBRARY.kj_feed
_feed.argtypes = (INT, POINTER, U64, INT_OUT)
_feed.restype = U64


@dataclass(frozen=True)
class Insert:
    """Pages that are not in the image: ``data`` from ``pfn`` on."""

    pfn: int
    data: bytes

    @property
    def pages(self) -> int:
        return len(self.data) // PAGE


@dataclass(frozen=True)
class Plan:
    """What to load: the extents of all pages, including the inserts."""

    extents: Extents
    inserts: Sequence[Insert]

    @property
    def pages(self) -> int:
        return self.extents.pages

    def numbers(self) -> Any:
        """All page frame numbers (u64), ascending; ~0 ends them, and zeros fill the last page."""
        out = self.extents.numbers(align_up(self.pages + 1, NUMBERS))
        out[self.pages] = END
        return out


def plan(extents: Extents, inserts: Sequence[Insert]) -> Plan:
    """The image's pages and the inserts, which replace the image's pages at their place.

    Each page comes with data.  (Since 6.6, commit 005e8dddd497, "PM: hibernate: don't store zero
    pages in the image file", the kernel accepts pages of zeros without data; but it allocates
    memory for them as for any other page.)
    """
    for insert in inserts:
        extents = extents.replaced(insert.pfn, insert.pages, Extent(insert.pfn, insert.pages, DATA))
    return Plan(extents, sorted(inserts, key=lambda i: i.pfn))


def header(
    *, jump: int, tables: int, map_checksum: int, page_count: int, data_pages: int, meta_pages: int
) -> bytes:
    """The header page.  ``jump`` and ``tables``: physical addresses of code and page tables."""
    page = bytearray(PAGE)
    struct.pack_into("<QQQQQ", page, 0, jump, jump, tables, MAGIC, map_checksum)
    total = 1 + meta_pages + data_pages
    struct.pack_into(
        "<IxxxxQixxxxQQQ", page, 392, 0, page_count, 0, data_pages, total, total * PAGE
    )
    return bytes(page)


Piece = tuple[Any, int, int]
"""Bytes to load: a buffer, an offset in it, and a length; whole pages."""


def stream(chunks: Iterable[Chunk], plan: Plan) -> Iterator[Piece]:
    """The pages in the order of the plan's numbers.

    ``chunks``: the image's; their pages that an insert replaces are left out.
    """
    blank = bytes(VECTOR * PAGE)
    waiting: list[tuple[int, int, bytes | None]] = [(i.pfn, i.pages, i.data) for i in plan.inserts]
    waiting += [(e.pfn, e.pages, None) for e in plan.extents.zeros]
    waiting.sort(key=lambda item: item[0], reverse=True)

    def before(pfn: int) -> Iterator[Piece]:
        while waiting and waiting[-1][0] < pfn:
            _, pages, data = waiting.pop()
            if data is not None:
                yield data, 0, pages * PAGE
                continue
            for done in range(0, pages, VECTOR):
                yield blank, 0, min(VECTOR, pages - done) * PAGE

    cuts = [(i.pfn, i.pfn + i.pages) for i in plan.inserts]
    for chunk in chunks:
        first, end = chunk.extents[0].pfn, chunk.extents.end
        if not (waiting and waiting[-1][0] < end) and not overlaps((first, end), cuts):
            yield chunk.data, 0, chunk.pages * PAGE
            continue
        at = 0
        for extent in chunk.extents:
            for low, high in subtract([(extent.pfn, extent.pfn + extent.pages)], cuts):
                yield from before(low)
                yield chunk.data, at + (low - extent.pfn) * PAGE, (high - low) * PAGE
            at += extent.pages * PAGE
    yield from before(END)


class Snapshot:
    """The open device.  `load`, then `restore`, which does not return."""

    def __init__(self) -> None:
        """Raises `NoSnapshotDevice`, `RestoreFailed`."""
        try:
            self._fd = os.open(SNAPSHOT_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EPERM):
                raise NoSnapshotDevice(
                    f"The boot kernel's {SNAPSHOT_DEVICE} cannot be used: {error.strerror}."
                ) from error
            raise RestoreFailed(f"{SNAPSHOT_DEVICE}: {error.strerror}.") from error

    def write_page(self, page: bytes | memoryview) -> None:
        """Write one page; the device accepts no more in a plain write.  Raises OSError."""
        os.write(self._fd, page)

    def write_pages(self, buffer: Any, offset: int, length: int) -> None:
        """Write any number of whole pages from a buffer; ``offset`` and ``length`` in bytes.

        Raises `RestoreNoMemory`, `RestoreFailed`.
        """
        if offset + length > len(buffer) or length % PAGE:
            raise ValueError("out of bounds")
        error = ctypes.c_int()
        count = length // PAGE
        taken = _feed(self._fd, address_of(buffer) + offset, count, ctypes.byref(error))
        if error.value:
            raise _failed("loading a page", OSError(error.value, os.strerror(error.value)))
        if taken != count:
            raise RestoreFailed(f"The kernel took {taken} of {count} pages.")

    def restore(self) -> None:
        """Freeze and jump.  Raises `RestoreFailed` if the kernel did not jump."""
        number = _restore(self._fd)
        if number == errno.ECANCELED:
            raise RestoreFailed("The kernel did not jump.")
        raise _failed("restoring", OSError(number, os.strerror(number)))

    def close(self) -> None:
        """Discard everything that was loaded."""
        os.close(self._fd)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failed(what: str, error: OSError) -> RestoreFailed | RestoreNoMemory:
    if error.errno == errno.ENOMEM:
        return RestoreNoMemory(f"There was not enough memory for {what}.")
    return RestoreFailed(f"The kernel refused {what}: {error.strerror}.")

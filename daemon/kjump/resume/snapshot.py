"""Loading memory through the kernel's /dev/snapshot.

Runs in the boot kernel.  The stream is a header page, pages of page frame numbers (512 each, ~0
ends the list), then the data pages in ascending order; the kernel checks magic, memory map and
page count, nothing of versions (kernel/power/snapshot.c, arch/x86/power/hibernate.c).  Offsets in
the header, the same in 6.1, 6.12 and 7.2:

====== ==== ==================================================
offset size field
====== ==== ==================================================
0      8    jump address (virtual; the physical one will do)
8      8    jump address (physical)
16     8    cr3 the kernel is to jump with
24     8    magic 0x23456789abcdef02
32     4    CRC-32 of the firmware's memory map
392    4    kernel version code
400    8    num_physpages
408    4    cpus
416    8    data pages
424    8    all pages: header, numbers, data
432    8    their bytes
====== ==== ==================================================
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import NoSnapshotDevice, RestoreFailed, RestoreNoMemory
from kjump.image.layout import DATA, Extent
from kjump.machine.ranges import PAGE

DEVICE = Path("/dev/snapshot")
FREEZE, UNFREEZE, ATOMIC_RESTORE = 0x3301, 0x3302, 0x3304
MAGIC = 0x23456789ABCDEF02
ZERO_PAGE = 1 << 63
"""A number with this bit is a page of zeros without data; since 6.6 (commit 005e8dddd497, "PM:
hibernate: don't store zero pages in the image file").  An older kernel answers EFAULT."""
END = (1 << 64) - 1
NUMBERS = PAGE // 8
VECTOR = 512
"""Pages given to one writev."""


@dataclass(frozen=True)
class Insert:
    """Pages that are not in the image: ``data`` from ``pfn`` on."""

    pfn: int
    data: bytes

    @property
    def pages(self) -> int:
        return len(self.data) // PAGE


def numbers(
    extents: Sequence[Extent], inserts: Sequence[Insert], *, zero_pages: bool
) -> array[int]:
    """All page frame numbers, ascending, ended by ~0 and filled up to whole pages.

    ``zero_pages``: the kernel knows pages of zeros without data; otherwise they are listed as
    data.  The last page never is one without data: some kernels lose those at the end.
    """
    spans: list[tuple[int, int, bool]] = [
        (e.pfn, e.pages, e.kind != DATA and zero_pages) for e in extents
    ]
    spans += [(i.pfn, i.pages, False) for i in inserts]
    spans.sort()
    out = array("Q")
    for pfn, pages, zero in spans:
        flag = ZERO_PAGE if zero else 0
        out.extend(range(pfn | flag, (pfn | flag) + pages))
    if out and out[-1] & ZERO_PAGE:
        out[-1] &= ~ZERO_PAGE
    out.append(END)
    out.extend([0] * (-len(out) % NUMBERS))
    return out


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


def stream(
    chunks: Iterable[tuple[list[Extent], bytes]],
    extents: Sequence[Extent],
    inserts: Sequence[Insert],
    *,
    zero_pages: bool,
) -> Iterator[bytes | memoryview]:
    """The data pages in the order of `numbers`, in pieces of whole pages."""
    zeros = [e for e in extents if e.kind != DATA]
    if zero_pages:  # then only the very last page may be one of zeros that wants data
        last = max([e.pfn + e.pages for e in extents] + [i.pfn + i.pages for i in inserts])
        zeros = [Extent(last - 1, 1) for e in zeros[-1:] if e.pfn + e.pages == last]
    blank = bytes(VECTOR * PAGE)
    waiting: list[tuple[int, bytes, int]] = [(i.pfn, i.data, 1) for i in inserts]
    for extent in zeros:
        waiting.append((extent.pfn, blank, extent.pages // VECTOR))
        rest = extent.pages % VECTOR
        waiting.append((extent.pfn + extent.pages - rest, blank[: rest * PAGE], 1))
    waiting.sort(key=lambda item: item[0], reverse=True)

    def before(pfn: int) -> Iterator[bytes]:
        while waiting and waiting[-1][0] < pfn:
            _, data, times = waiting.pop()
            for _ in range(times):
                yield data

    for chunk, data in chunks:
        view = memoryview(data)
        start = at = 0
        for extent in chunk:
            if waiting and waiting[-1][0] < extent.pfn:
                yield view[start:at]
                yield from before(extent.pfn)
                start = at
            at += extent.pages * PAGE
        yield view[start:at]
    yield from before(END)


class Snapshot:
    """The open device.  `load`, then `restore`, which does not return."""

    def __init__(self) -> None:
        """Raises `NoSnapshotDevice`, `RestoreFailed`."""
        try:
            self._fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EPERM):
                raise NoSnapshotDevice(
                    f"The boot kernel's {DEVICE} cannot be used: {error.strerror}."
                ) from error
            raise RestoreFailed(f"{DEVICE}: {error.strerror}.") from error

    def write_page(self, page: bytes | memoryview) -> None:
        """One page; the device takes no more in a plain write.  Raises OSError."""
        os.write(self._fd, page)

    def write_pages(self, data: bytes | memoryview) -> None:
        """Any number of whole pages.  Raises `RestoreNoMemory`, `RestoreFailed`."""
        view = memoryview(data)
        for first in range(0, len(view), VECTOR * PAGE):
            part = view[first : first + VECTOR * PAGE]
            vector = [part[i : i + PAGE] for i in range(0, len(part), PAGE)]
            try:
                written = os.writev(self._fd, vector)
            except OSError as error:
                raise _failed("loading a page", error) from error
            if written != len(part):
                raise RestoreFailed(f"The kernel took {written} of {len(part)} bytes.")

    def restore(self) -> None:
        """Freeze and jump.  Raises `RestoreFailed` if the kernel did not."""
        try:
            fcntl.ioctl(self._fd, FREEZE)
            try:
                fcntl.ioctl(self._fd, ATOMIC_RESTORE)
            finally:
                fcntl.ioctl(self._fd, UNFREEZE)
        except OSError as error:
            raise _failed("restoring", error) from error
        raise RestoreFailed("The kernel did not jump.")

    def close(self) -> None:
        """Drops what was loaded."""
        os.close(self._fd)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failed(what: str, error: OSError) -> RestoreFailed | RestoreNoMemory:
    if error.errno == errno.ENOMEM:
        return RestoreNoMemory(f"There was not enough memory for {what}.")
    return RestoreFailed(f"The kernel refused {what}: {error.strerror}.")

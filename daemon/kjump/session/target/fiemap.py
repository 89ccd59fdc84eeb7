# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a file's bytes lie in its file system, as FIEMAP reports them.

Runs in the session; changes nothing.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

LAST, UNKNOWN, DELALLOC, ENCODED, ENCRYPTED = 0x1, 0x2, 0x4, 0x8, 0x80
NOT_ALIGNED, INLINE, TAIL, UNWRITTEN, MERGED, SHARED = 0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000
"""Flags of ``struct fiemap_extent`` (include/uapi/linux/fiemap.h)."""
FIEMAP = 0xC020660B


FIEMAP_SYNC = 0x1


FIEMAP_HEADER = struct.Struct("<QQIIII")


FIEMAP_EXTENT = struct.Struct("<QQQ16xI12x")


FIEMAP_AT_ONCE = 512


@dataclass(frozen=True)
class FileExtent:
    """A piece of a file, in bytes: where in it, where on the device (or, of btrfs, in its own
    address space), how long, with which flags."""

    logical: int
    physical: int
    length: int
    flags: int


def unpack_extents(data: bytes) -> list[FileExtent]:
    """The extents in FIEMAP's answer."""
    mapped = FIEMAP_HEADER.unpack_from(data)[3]
    end = FIEMAP_HEADER.size + mapped * FIEMAP_EXTENT.size
    return [
        FileExtent(*values) for values in FIEMAP_EXTENT.iter_unpack(data[FIEMAP_HEADER.size : end])
    ]


def fiemap(fd: int) -> list[FileExtent]:
    """All extents of an open file; written out first.  Raises OSError."""
    out: list[FileExtent] = []
    at = 0
    while True:
        head = FIEMAP_HEADER.pack(at, (1 << 64) - 1 - at, FIEMAP_SYNC, 0, FIEMAP_AT_ONCE, 0)
        buffer = bytearray(head) + bytes(FIEMAP_AT_ONCE * FIEMAP_EXTENT.size)
        fcntl.ioctl(fd, FIEMAP, buffer)
        part = unpack_extents(bytes(buffer))
        out += part
        if not part or part[-1].flags & LAST:
            return out
        at = part[-1].logical + part[-1].length

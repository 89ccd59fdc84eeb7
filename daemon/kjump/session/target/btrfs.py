# SPDX-License-Identifier: GPL-2.0-or-later
"""btrfs's chunk tree: from the file system's logical addresses to bytes of a device.

Runs in the session; changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kjump.errors import UnsuitableFile
from kjump.session.target.fiemap import FileExtent

FS_INFO, DEV_INFO, TREE_SEARCH = 0x8400941F, 0xD000941E, 0xD0009411
CHUNK_TREE, CHUNK_OBJECT, CHUNK_ITEM = 3, 256, 228


SEARCH_KEY = struct.Struct("<QQQQQQQIIII32x")


SEARCH_HEADER = struct.Struct("<QQQII")


SEARCH_SIZE = 4096


CHUNK = struct.Struct("<QQQQIIIHH")


STRIPE = struct.Struct("<QQ16s")


PROFILES = 0x7F8
"""Bits of a chunk's type that are no SINGLE: RAID0, RAID1, DUP, RAID10, RAID5, RAID6, RAID1C3,
RAID1C4 (include/uapi/linux/btrfs_tree.h)."""


@dataclass(frozen=True)
class BtrfsChunk:
    """A chunk of btrfs: bytes of its address space, and where they are."""

    start: int
    length: int
    kind: int
    stripes: tuple[tuple[int, int], ...]
    """(device id, byte offset)."""


def unpack_chunks(data: bytes, count: int) -> list[BtrfsChunk]:
    """The chunks in an answer of the tree search with ``count`` items.

    Raises `UnsuitableFile` for an answer that is cut short.
    """
    out = []
    at = 0
    try:
        for _ in range(count):
            _transid, _object, start, kind, length = SEARCH_HEADER.unpack_from(data, at)
            at += SEARCH_HEADER.size
            item = data[at : at + length]
            at += length
            if kind != CHUNK_ITEM:
                continue
            size, _owner, _stripe, profile, _a, _w, _s, stripes, _sub = CHUNK.unpack_from(item)
            places = tuple(
                STRIPE.unpack_from(item, CHUNK.size + n * STRIPE.size)[:2] for n in range(stripes)
            )
            out.append(BtrfsChunk(start, size, profile, places))
    except struct.error as error:
        raise UnsuitableFile("The chunk tree of the file system cannot be read.") from error
    return out


def translate(
    extents: Sequence[FileExtent], chunks: Sequence[BtrfsChunk], device: int
) -> list[FileExtent]:
    """Extents of btrfs with their places on the one device (its id in the file system).

    Raises `UnsuitableFile`.
    """
    out = []
    for extent in extents:
        at, end, logical = extent.physical, extent.physical + extent.length, extent.logical
        while at < end:
            chunk = next((c for c in chunks if c.start <= at < c.start + c.length), None)
            if chunk is None:
                raise UnsuitableFile("A block of the file is in no chunk of its file system.")
            if chunk.kind & PROFILES or len(chunk.stripes) != 1 or chunk.stripes[0][0] != device:
                raise UnsuitableFile("The file is on btrfs with a profile other than single.")
            count = min(end, chunk.start + chunk.length) - at
            place = chunk.stripes[0][1] + at - chunk.start
            out.append(FileExtent(logical, place, count, extent.flags))
            at, logical = at + count, logical + count
    return out


def read_chunks(fd: int) -> list[BtrfsChunk]:
    """All chunks, by BTRFS_IOC_TREE_SEARCH of the chunk tree.  Raises OSError."""
    out: list[BtrfsChunk] = []
    start, most = 0, (1 << 64) - 1
    while True:
        key = SEARCH_KEY.pack(
            CHUNK_TREE,
            CHUNK_OBJECT,
            CHUNK_OBJECT,
            start,
            most,
            0,
            most,
            CHUNK_ITEM,
            CHUNK_ITEM,
            1 << 30,
            0,
        )
        buffer = bytearray(key.ljust(SEARCH_SIZE, b"\0"))
        fcntl.ioctl(fd, TREE_SEARCH, buffer)
        (count,) = struct.unpack_from("<I", buffer, 64)
        part = unpack_chunks(bytes(buffer[SEARCH_KEY.size :]), count)
        if not part:
            return out
        out += part
        start = part[-1].start + 1


def device_of(fd: int) -> tuple[int, int]:
    """(id in the file system, st_rdev) of the one device.  Raises `UnsuitableFile`, OSError."""
    info = bytearray(1024)
    fcntl.ioctl(fd, FS_INFO, info)
    highest, count = struct.unpack_from("<QQ", info)
    if count != 1:
        raise UnsuitableFile("The file is on btrfs with more than one device.")
    for number in range(1, highest + 1):
        args = bytearray(struct.pack("<Q", number).ljust(4096, b"\0"))
        try:
            fcntl.ioctl(fd, DEV_INFO, args)
        except OSError as error:
            if error.errno == errno.ENODEV:
                continue
            raise
        path = bytes(args[3072:]).split(b"\0", 1)[0]
        return number, os.stat(path).st_rdev
    raise UnsuitableFile("Cannot find out which device the btrfs file system is on.")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a file lie on its device, and whether an image may be written there.

Runs in the session.  It only asks: FIEMAP of the file system, on btrfs the chunk tree besides, as
its FIEMAP speaks of addresses that are the file system's own.  What cannot be told for sure is
refused: a wrong answer would put the image over somebody's data.  Parsing is pure.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import TargetMapped, TargetMissing, UnsuitableFile
from kjump.image.device import Span
from kjump.image.layout import BLOCK

EXT4, XFS, BTRFS = 0xEF53, 0x58465342, 0x9123683E
NAMES = {EXT4: "ext4", XFS: "xfs", BTRFS: "btrfs"}
"""statfs(2)'s f_type of the file systems whose FIEMAP tells where on one device a block lies."""

FIEMAP = 0xC020660B
FIEMAP_SYNC = 0x1
FIEMAP_HEADER = struct.Struct("<QQIIII")
FIEMAP_EXTENT = struct.Struct("<QQQ16xI12x")
FIEMAP_AT_ONCE = 512
LAST, UNKNOWN, DELALLOC, ENCODED, ENCRYPTED = 0x1, 0x2, 0x4, 0x8, 0x80
NOT_ALIGNED, INLINE, TAIL, UNWRITTEN, MERGED, SHARED = 0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000
"""Flags of ``struct fiemap_extent`` (include/uapi/linux/fiemap.h)."""
REFUSED = {
    UNKNOWN | DELALLOC: "has blocks without a place on the disk yet",
    ENCODED: "is compressed",
    ENCRYPTED: "is encrypted",
    NOT_ALIGNED | INLINE | TAIL: "lies among other data",
    SHARED: "shares blocks with a copy or snapshot",
}

GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
NOCOW, IMMUTABLE = 0x00800000, 0x10
GET_XATTR = 0x801C581F
XATTR = struct.Struct("<IIIII8x")
REALTIME = 0x1
"""FS_XFLAG_REALTIME: blocks of an xfs file on another device."""

TREE_SEARCH = 0xD0009411
SEARCH_KEY = struct.Struct("<QQQQQQQIIII32x")
SEARCH_HEADER = struct.Struct("<QQQII")
SEARCH_SIZE = 4096
CHUNK_TREE, CHUNK_OBJECT, CHUNK_ITEM = 3, 256, 228
CHUNK = struct.Struct("<QQQQIIIHH")
STRIPE = struct.Struct("<QQ16s")
PROFILES = 0x7F8
"""Bits of a chunk's type that are no SINGLE: RAID0, RAID1, DUP, RAID10, RAID5, RAID6, RAID1C3,
RAID1C4 (include/uapi/linux/btrfs_tree.h)."""
FS_INFO, DEV_INFO = 0x8400941F, 0xD000941E


@dataclass(frozen=True)
class Extent:
    """A piece of a file, in bytes: where in it, where on the device (or, of btrfs, in its own
    address space), how long, with which flags."""

    logical: int
    physical: int
    length: int
    flags: int


@dataclass(frozen=True)
class Chunk:
    """A chunk of btrfs: bytes of its address space, and where they lie."""

    start: int
    length: int
    kind: int
    stripes: tuple[tuple[int, int], ...]
    """(device id, byte offset)."""


@dataclass(frozen=True)
class Blocks:
    """A file's blocks on its device, in bytes."""

    device: int
    """st_rdev of the block device."""
    spans: tuple[Span, ...]
    """In the order of the file."""
    written: bool
    """Whether anything was ever written to it through the file system."""

    @property
    def size(self) -> int:
        return sum(length for _, length in self.spans)

    @property
    def first(self) -> int:
        """Byte offset of the file's first block on the device."""
        return self.spans[0][0]


# -- deciding --------------------------------------------------------------------------------------


def unpack_extents(data: bytes) -> list[Extent]:
    """The extents in FIEMAP's answer."""
    mapped = FIEMAP_HEADER.unpack_from(data)[3]
    end = FIEMAP_HEADER.size + mapped * FIEMAP_EXTENT.size
    return [Extent(*values) for values in FIEMAP_EXTENT.iter_unpack(data[FIEMAP_HEADER.size : end])]


def unpack_chunks(data: bytes, count: int) -> list[Chunk]:
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
            out.append(Chunk(start, size, profile, places))
    except struct.error as error:
        raise UnsuitableFile("The chunk tree of the file system cannot be read.") from error
    return out


def translate(extents: Sequence[Extent], chunks: Sequence[Chunk], device: int) -> list[Extent]:
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
                raise UnsuitableFile("The file lies in a btrfs with another profile than single.")
            count = min(end, chunk.start + chunk.length) - at
            place = chunk.stripes[0][1] + at - chunk.start
            out.append(Extent(logical, place, count, extent.flags))
            at, logical = at + count, logical + count
    return out


def check(extents: Sequence[Extent], size: int, name: str) -> tuple[list[Span], bool]:
    """(spans in the order of the file, whether it was written to) of a file of ``size`` bytes.

    Every whole block of it must lie somewhere, and be its alone.  Raises `UnsuitableFile`.
    """
    end = size // BLOCK * BLOCK
    at = 0
    spans: list[Span] = []
    written = False
    for extent in sorted(extents, key=lambda e: e.logical):
        if at >= end:
            break  # blocks beyond its end
        for flags, words in REFUSED.items():
            if extent.flags & flags:
                raise UnsuitableFile(f"{name} {words}.")
        if extent.logical != at:
            raise UnsuitableFile(f"{name} has holes.")
        length = min(extent.length, end - at)
        if extent.physical % BLOCK or length % BLOCK or extent.physical == 0:
            raise UnsuitableFile(f"{name} does not lie in whole blocks of {BLOCK} bytes.")
        written = written or not extent.flags & UNWRITTEN
        if spans and spans[-1][0] + spans[-1][1] == extent.physical:
            spans[-1] = (spans[-1][0], spans[-1][1] + length)
        else:
            spans.append((extent.physical, length))
        at += length
    if at < end:
        raise UnsuitableFile(f"{name} has holes.")
    if not spans:
        raise UnsuitableFile(f"{name} is empty.")
    return spans, written


def stacked(sys_path: str, dm_uuid: str = "") -> str:
    """What kind of mapped device it is by its real path in /sys, or the empty string.

    Devices that stand for others, or for memory, are all below /sys/devices/virtual/block, with
    their partitions.
    """
    _, found, tail = sys_path.partition("/devices/virtual/block/")
    if not found:
        return ""
    name = tail.split("/", maxsplit=1)[0]
    if name.startswith("dm-"):
        kind = dm_uuid.partition("-")[0]
        return {"CRYPT": "encrypted (dm-crypt)", "LVM": "a logical volume (LVM)"}.get(
            kind, "mapped (device mapper)"
        )
    for prefix, words in (
        ("md", "an array (md)"),
        ("loop", "a loop device"),
        ("zram", "memory itself (zram)"),
    ):
        if name.startswith(prefix):
            return words
    return "a virtual device"


def refuse_mapped(device: int, what: str) -> None:
    """Raises `TargetMapped` for a device (st_rdev) that the helper could not open by itself."""
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        dm_uuid = (folder / "dm/uuid").read_text()
    except OSError:
        dm_uuid = ""
    kind = stacked(os.path.realpath(folder), dm_uuid)
    if kind:
        raise TargetMapped(
            f"{what} lies on {os.path.realpath(folder).rpartition('/')[2]}, which is {kind}."
        )


# -- asking ----------------------------------------------------------------------------------------


class _Statfs(ctypes.Structure):
    """The beginning of ``struct statfs``; more room than any of them has."""

    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_long * 32))


def file_system(fd: int) -> int:
    """statfs(2)'s magic of the file system of an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = _Statfs()
    if libc.fstatfs(fd, ctypes.byref(found)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(found.f_type) & 0xFFFFFFFF


def fiemap(fd: int) -> list[Extent]:
    """All extents of an open file; written out first.  Raises OSError."""
    out: list[Extent] = []
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


def _btrfs_chunks(fd: int) -> list[Chunk]:
    """All chunks, by BTRFS_IOC_TREE_SEARCH of the chunk tree.  Raises OSError."""
    out: list[Chunk] = []
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


def _btrfs_device(fd: int) -> tuple[int, int]:
    """(id in the file system, st_rdev) of the one device.  Raises `UnsuitableFile`, OSError."""
    info = bytearray(1024)
    fcntl.ioctl(fd, FS_INFO, info)
    highest, count = struct.unpack_from("<QQ", info)
    if count != 1:
        raise UnsuitableFile("The file lies in a btrfs of more than one device.")
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
    raise UnsuitableFile("The device of the btrfs is not told.")


def blocks_of(path: Path, *, swap: bool = False) -> Blocks:
    """Where the file lies.  ``swap``: it is an active swap area, whose first block is asked for.

    Raises `TargetMissing`, `UnsuitableFile`, `TargetMapped`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise TargetMissing(f"The target {path} cannot be opened: {error.strerror}.") from error
    try:
        return _blocks(fd, str(path), swap=swap)
    except OSError as error:
        raise UnsuitableFile(f"Where {path} lies cannot be told: {error.strerror}.") from error
    finally:
        os.close(fd)


def _blocks(fd: int, name: str, *, swap: bool) -> Blocks:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnsuitableFile(f"{name} is no regular file.")
    if not swap and (status.st_uid or status.st_mode & 0o077):
        raise UnsuitableFile(f"{name} is not root's alone; memory is to lie in it.")
    kind = file_system(fd)
    if kind not in NAMES:
        raise UnsuitableFile(f"{name} lies neither on ext4 nor xfs nor btrfs.")
    extents = fiemap(fd)
    device = status.st_dev
    if kind == BTRFS:
        number, device = _btrfs_device(fd)
        refuse_mapped(device, name)
        if not _flags(fd) & NOCOW:
            raise UnsuitableFile(f"{name} is copied on write.")
        # Before the chunks are asked for, what lies in none of them must be refused.
        check(extents, status.st_size, name)
        extents = translate(extents, _btrfs_chunks(fd), number)
    else:
        refuse_mapped(device, name)
        if kind == XFS and _is_realtime(fd):
            raise UnsuitableFile(f"{name} lies in a realtime section.")
    spans, written = check(extents, status.st_size, name)
    return Blocks(device, tuple(spans), written)


def _flags(fd: int) -> int:
    buffer = bytearray(8)
    fcntl.ioctl(fd, GET_FLAGS, buffer)
    return int.from_bytes(buffer[:4], "little")


def set_flags(fd: int, flags: int) -> None:
    """Add inode flags (chattr(1)) to an open file.  Raises OSError."""
    fcntl.ioctl(fd, SET_FLAGS, struct.pack("<Q", _flags(fd) | flags))


def _is_realtime(fd: int) -> bool:
    buffer = bytearray(XATTR.size)
    fcntl.ioctl(fd, GET_XATTR, buffer)
    return bool(XATTR.unpack(buffer)[0] & REALTIME)

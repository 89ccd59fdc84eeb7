# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a file are on its device, and whether an image may be written there.

Runs in the session; changes nothing except the flags of a file that setup makes.  The answer comes
from FIEMAP, and on btrfs also from the chunk tree, because FIEMAP there gives addresses of the file
system, not of the device.  Everything uncertain is refused: a wrong answer would put the image over
somebody's data.  Parsing is pure.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import TargetMapped, TargetMissing, UnsuitableFile
from kjump.image.device import ByteSpan
from kjump.image.layout import BLOCK
from kjump.session.target.btrfs import device_of, read_chunks, translate
from kjump.session.target.fiemap import (
    DELALLOC,
    ENCODED,
    ENCRYPTED,
    INLINE,
    NOT_ALIGNED,
    SHARED,
    TAIL,
    UNKNOWN,
    UNWRITTEN,
    FileExtent,
    fiemap,
)

EXT4, XFS, BTRFS = 0xEF53, 0x58465342, 0x9123683E
NAMES = {EXT4: "ext4", XFS: "xfs", BTRFS: "btrfs"}
"""statfs(2)'s f_type of the file systems whose FIEMAP gives the place of a block on one device."""

REFUSED = {
    UNKNOWN | DELALLOC: "has blocks that have no place on the disk yet",
    ENCODED: "is compressed",
    ENCRYPTED: "is encrypted",
    NOT_ALIGNED | INLINE | TAIL: "is stored among other data",
    SHARED: "shares blocks with a copy or snapshot",
}

GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
NOCOW, IMMUTABLE = 0x00800000, 0x10
GET_XATTR = 0x801C581F
XATTR = struct.Struct("<IIIII8x")
REALTIME = 0x1
"""FS_XFLAG_REALTIME: blocks of an xfs file on another device."""


@dataclass(frozen=True)
class Blocks:
    """A file's blocks on its device, in bytes."""

    device: int
    """st_rdev of the block device."""
    spans: tuple[ByteSpan, ...]
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


def own_spans(extents: Sequence[FileExtent], size: int, name: str) -> tuple[list[ByteSpan], bool]:
    """(spans in the order of the file, whether it was written to) of a file of ``size`` bytes.

    Every whole block of it must have a place, and belong to it alone.  Raises `UnsuitableFile`.
    """
    end = size // BLOCK * BLOCK
    at = 0
    spans: list[ByteSpan] = []
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
            raise UnsuitableFile(f"{name} is not stored in whole blocks of {BLOCK} bytes.")
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


def mapped_as(number: str) -> str:
    """What kind of mapped device ``major:minor`` is, as `stacked` says it; empty: it is none."""
    folder = Path("/sys/dev/block", number)
    try:
        dm_uuid = (folder / "dm/uuid").read_text()
    except OSError:
        dm_uuid = ""
    return stacked(os.path.realpath(folder), dm_uuid)


def refuse_mapped(device: int, what: str) -> None:
    """Raises `TargetMapped` for a device (st_rdev) that the helper could not open by itself."""
    number = f"{os.major(device)}:{os.minor(device)}"
    kind = mapped_as(number)
    if kind:
        name = os.path.realpath(f"/sys/dev/block/{number}").rpartition("/")[2]
        raise TargetMapped(f"{what} is on {name}, which is {kind}.")


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


def blocks_of(path: Path, *, swap: bool = False) -> Blocks:
    """Where the file lies.  ``swap``: it is an active swap area, whose first block is asked for.

    Raises `TargetMissing`, `UnsuitableFile`, `TargetMapped`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise TargetMissing(f"The target {path} cannot be opened: {error.strerror}.") from error
    try:
        return blocks_of_open(fd, str(path), swap=swap)
    finally:
        os.close(fd)


def blocks_of_open(fd: int, name: str, *, swap: bool = False) -> Blocks:
    """The same of an open file.  Raises `UnsuitableFile`, `TargetMapped`."""
    try:
        return _blocks(fd, name, swap=swap)
    except OSError as error:
        raise UnsuitableFile(
            f"Cannot determine where {name} is stored on disk: {error.strerror}."
        ) from error


def _blocks(fd: int, name: str, *, swap: bool) -> Blocks:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnsuitableFile(f"{name} is not a regular file.")
    if not swap and (status.st_uid or status.st_mode & 0o077):
        raise UnsuitableFile(
            f"{name} must belong to root and be readable by nobody else: it will hold memory."
        )
    kind = file_system(fd)
    if kind not in NAMES:
        raise UnsuitableFile(f"{name} is not on ext4, xfs or btrfs.")
    extents = fiemap(fd)
    device = status.st_dev
    if kind == BTRFS:
        number, device = device_of(fd)
        refuse_mapped(device, name)
        if not _flags(fd) & NOCOW:
            raise UnsuitableFile(f"{name} is a copy-on-write file.")
        # Extents that are in no chunk must be refused before the chunks are read.
        own_spans(extents, status.st_size, name)
        extents = translate(extents, read_chunks(fd), number)
    else:
        refuse_mapped(device, name)
        if kind == XFS and _is_realtime(fd):
            raise UnsuitableFile(f"{name} is in a realtime section.")
    spans, written = own_spans(extents, status.st_size, name)
    return Blocks(device, tuple(spans), written)


def _flags(fd: int) -> int:
    buffer = bytearray(8)
    fcntl.ioctl(fd, GET_FLAGS, buffer)
    return int.from_bytes(buffer[:4], "little")


def set_flags(fd: int, flags: int) -> None:
    """Add inode flags (chattr(1)) to an open file.  Raises OSError."""
    fcntl.ioctl(fd, SET_FLAGS, struct.pack("<Q", _flags(fd) | flags))


def clear_flags(fd: int, flags: int) -> None:
    """Take inode flags away from an open file.  Raises OSError."""
    fcntl.ioctl(fd, SET_FLAGS, struct.pack("<Q", _flags(fd) & ~flags))


def _is_realtime(fd: int) -> bool:
    buffer = bytearray(XATTR.size)
    fcntl.ioctl(fd, GET_XATTR, buffer)
    return bool(XATTR.unpack(buffer)[0] & REALTIME)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a file's blocks lie, by what the kernel answers; what is refused."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import UnsuitableFile
from kjump.session.target import btrfs, fiemap, files, swaps
from kjump.session.target.btrfs import BtrfsChunk
from kjump.session.target.fiemap import FileExtent

BLOCK = 4096
U, L = fiemap.UNWRITTEN, fiemap.LAST


def extent(logical: int, physical: int, length: int, flags: int = U) -> FileExtent:
    """In blocks."""
    return FileExtent(logical * BLOCK, physical * BLOCK, length * BLOCK, flags)


def test_a_whole_file() -> None:
    found = [extent(3, 200, 5), extent(0, 100, 2), extent(2, 102, 1, U | L)]
    assert files.own_spans(found, 8 * BLOCK, "f") == (
        [(100 * BLOCK, 3 * BLOCK), (200 * BLOCK, 5 * BLOCK)],
        False,
    )
    # What is allocated behind its end is not its own to use.
    assert files.own_spans(found, 4 * BLOCK + 100, "f")[0][-1] == (200 * BLOCK, BLOCK)
    assert files.own_spans([extent(0, 1, 1, 0)], BLOCK, "f")[1]


@pytest.mark.parametrize(
    "found",
    [
        [],
        [extent(1, 100, 7)],
        [extent(0, 100, 3), extent(4, 104, 4)],
        [extent(0, 100, 7)],
        [extent(0, 0, 8)],
        [FileExtent(0, 100 * BLOCK + 512, 8 * BLOCK, U)],
        *([extent(0, 100, 8, flag)] for flag in (0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x2000)),
    ],
)
def test_what_is_not_whole_or_not_its_own_is_refused(found: list[FileExtent]) -> None:
    with pytest.raises(UnsuitableFile):
        files.own_spans(found, 8 * BLOCK, "f")


@given(
    st.lists(st.builds(FileExtent, *[st.integers(0, 1 << 16)] * 4), max_size=8),
    st.integers(0, 1 << 17),
)
def test_whatever_is_accepted_covers_the_file(found: list[FileExtent], size: int) -> None:
    try:
        spans, _ = files.own_spans(found, size, "f")
    except UnsuitableFile:
        return
    assert sum(length for _, length in spans) == size // BLOCK * BLOCK
    assert all(not (offset | length) % BLOCK and offset for offset, length in spans)


# -- btrfs -----------------------------------------------------------------------------------------

CHUNKS = [
    BtrfsChunk(0x1000000, 0x800000, 0x1, ((1, 0x500000),)),
    BtrfsChunk(0x1800000, 0x800000, 0x1, ((1, 0x2000000),)),
]


def test_addresses_of_btrfs_are_translated_also_across_chunks() -> None:
    found = btrfs.translate([FileExtent(0, 0x17FF000, 0x3000, U)], CHUNKS, 1)
    assert found == [FileExtent(0, 0xCFF000, 0x1000, U), FileExtent(0x1000, 0x2000000, 0x2000, U)]


@pytest.mark.parametrize(
    "chunk",
    [
        BtrfsChunk(0x1000000, 0x800000, 0x1 | 0x20, ((1, 0x500000), (1, 0x900000))),  # DUP
        BtrfsChunk(0x1000000, 0x800000, 0x1 | 0x8, ((1, 0x500000),)),  # RAID0
        BtrfsChunk(0x1000000, 0x800000, 0x1, ((2, 0x500000),)),
        BtrfsChunk(0x1000000, 0x800000, 0x1, ()),
        BtrfsChunk(0x2000000, 0x800000, 0x1, ((1, 0x500000),)),
    ],
)
def test_other_profiles_devices_and_unknown_addresses_are_refused(chunk: BtrfsChunk) -> None:
    with pytest.raises(UnsuitableFile):
        btrfs.translate([FileExtent(0, 0x1000000, 0x1000, U)], [chunk], 1)


@given(st.binary(max_size=300), st.integers(0, 5))
def test_a_torn_answer_is_a_named_error(data: bytes, count: int) -> None:
    try:
        btrfs.unpack_chunks(data, count)
    except UnsuitableFile:
        pass


def test_an_answer_of_the_tree_search() -> None:
    item = struct.pack("<QQQQIIIHH", 0x800000, 2, 65536, 1, 4096, 4096, 4096, 1, 0)
    item += struct.pack("<QQ16s", 1, 0x500000, bytes(16))
    other = struct.pack("<QQQII", 5, 256, 0, 1, 8) + bytes(8)
    data = other + struct.pack("<QQQII", 5, 256, 0x1000000, btrfs.CHUNK_ITEM, len(item)) + item
    assert btrfs.unpack_chunks(data, 2) == CHUNKS[:1]


# Answers of a 6.12 kernel: FIEMAP of files made with fallocate (20 MiB on ext4, 1200 MiB on btrfs,
# 1 MiB that is one hole), and the chunk tree of that btrfs.
ANSWERS = {
    "ext4": ("c-muNfPnu{zzAf6Fb4w$P=Qbmj0{)+BL~AM7=!=-V(JKS"),
    "btrfs": (
        "c-muNfPnu{zzAfs0x<^zI=CPRWe6}}1DG11>Mp2~s80c^&yqxa22g#zB<gd3>Pv+3xv^<u<X{+*003744oC"
    ),
    "sparse": ("c-muNfPnu{zzF4YFpPrX005{S2m$"),
    "search": (
        "c-muTfC5G|8VdeH0XqK)kPX5d48#FWbbA;sfJu-U0bo`Gm}Fu=Rmh0K2Vwyb$%rHlF-P#+G4=aPou}+Od_B*9I"
        "@eW9`vMqY_7&i<PYH{COepq2%t5yg$vuq3x#t3!dq6f}x<`eudzkRMCqRfu_XwiK2ZIQC@e!azq<yMXvd@f2`z"
        ")zspBIt#`BKTgI3n#!q>_C_*z98%1*2dTjDk@x3P!;w7zLwX6byL)0N^}=H2"
    ),
}


def answer(name: str) -> bytes:
    return zlib.decompress(base64.b85decode(ANSWERS[name]))


def test_what_a_kernel_answered_of_ext4() -> None:
    found = fiemap.unpack_extents(answer("ext4"))
    assert files.own_spans(found, 20 << 20, "f") == ([(603979776, 20 << 20)], False)


def test_what_a_kernel_answered_of_a_hole() -> None:
    with pytest.raises(UnsuitableFile):
        files.own_spans(fiemap.unpack_extents(answer("sparse")), 1 << 20, "f")


def test_what_a_kernel_answered_of_btrfs() -> None:
    """Its addresses are not the device's."""
    data = answer("search")
    (count,) = struct.unpack_from("<I", data, 64)
    chunks = btrfs.unpack_chunks(data[btrfs.SEARCH_KEY.size :], count)
    found = fiemap.unpack_extents(answer("btrfs"))
    spans, written = files.own_spans(btrfs.translate(found, chunks, 1), 1200 << 20, "f")
    assert not written
    assert spans == [
        (575668224, 256 << 20),
        (911212544, 256 << 20),
        (1246756864, 256 << 20),
        (1582301184, 256 << 20),
        (1917845504, 176 << 20),
    ]


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "dm_uuid", "words"),
    [
        ("/sys/devices/pci0000:00/0000:00:03.0/virtio1/block/vda/vda2", "", ""),
        ("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p2", "", ""),
        ("/sys/devices/virtual/block/dm-0", "CRYPT-LUKS2-0123-home", "dm-crypt"),
        ("/sys/devices/virtual/block/dm-1", "LVM-abcd", "LVM"),
        ("/sys/devices/virtual/block/dm-2", "", "device mapper"),
        ("/sys/devices/virtual/block/md127/md127p1", "", "md"),
        ("/sys/devices/virtual/block/loop0/loop0p1", "", "loop"),
        ("/sys/devices/virtual/block/zram0", "", "zram"),
        ("/sys/devices/virtual/block/nbd0", "", "virtual"),
    ],
)
def test_mapped_devices_are_told_by_their_place(path: str, dm_uuid: str, words: str) -> None:
    found = files.stacked(path, dm_uuid)
    assert words in found
    assert bool(found) == bool(words)


def test_swap_areas() -> None:
    found = swaps.parse_swaps(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/vda5                               partition\t4194300\t\t153600\t\t-2\n"
        "/swap\\040file                           file\t\t2097148\t\t0\t\t-3\n"
        "torn\n"
    )
    assert [(a.path, a.is_file) for a in found] == [
        (Path("/dev/vda5"), False),
        (Path("/swap file"), True),
    ]
    assert found[0].free == (4194300 - 153600) << 10

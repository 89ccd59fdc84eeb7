# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a file's blocks lie, by what the kernel answers; what is refused."""

from __future__ import annotations

import base64
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import KjumpError, TargetMapped, TargetMissing, UnsuitableFile
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
def test_mapped_devices_are_known_by_their_place(path: str, dm_uuid: str, words: str) -> None:
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


# -- a real file system ----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> None:
    """Temporary files lie where kjump would take one."""
    with tmp_path.joinpath("asked").open("wb") as file:
        if files.file_system(file.fileno()) not in (files.EXT4, files.XFS):
            pytest.skip("temporary files lie neither on ext4 nor on xfs")
    if os.getuid():
        pytest.skip("a file has to be root's")


def made(folder: Path, size: int) -> Path:
    path = folder / "image"
    path.write_bytes(random.Random(size).randbytes(size))
    path.chmod(0o600)
    return path


MOUNTED = """
set -e
cd "$1"
truncate -s 64M disk
mkfs.ext4 -q -b 4096 disk
mkdir mounted
mount -o loop disk mounted
echo mounted
exec "$2" -c "$3" "$PWD"
"""
LOOKED = r"""
import os, random, sys
from pathlib import Path
from kjump.errors import TargetMapped
from kjump.session.target import files

folder = Path(sys.argv[1])
path = folder / "mounted/image"
with path.open("wb") as file, path.with_name("other").open("wb") as other:
    for pages in (5, 300, 64, 700):
        file.write(random.Random(pages).randbytes(pages << 12))
        other.write(bytes(pages << 12))
        for each in (file, other):
            each.flush()
            os.fsync(each.fileno())
path.chmod(0o600)
try:
    files.blocks_of(path)
except TargetMapped as error:
    assert "a loop device" in error.what
else:
    raise AssertionError("the helper could not open a loop device by itself")
files.refuse_mapped = lambda device, what: None
found = files.blocks_of(path)
assert found.written and found.size == path.stat().st_size
assert len(found.spans) > 1, "in one piece it shows little"
os.sync()
with (folder / "disk").open("rb") as disk:
    content = b""
    for start, length in found.spans:
        disk.seek(start)
        content += disk.read(length)
assert content == path.read_bytes()
print("good")
"""


def test_the_blocks_of_a_file_hold_its_content(tmp_path: Path) -> None:
    """On a disk of its own: an image there is written past the file system."""
    if os.getuid():
        pytest.skip("mounts a file system, which takes root")
    command = ["unshare", "--mount", "sh", "-c", MOUNTED, "-", str(tmp_path)]
    try:
        done = subprocess.run(
            [*command, sys.executable, LOOKED],
            check=False,
            text=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "daemon")},
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if not done.stdout:
        pytest.skip(f"no file system can be made and mounted here: {done.stderr.strip()}")
    assert done.stdout == "mounted\ngood\n", done.stderr


@pytest.mark.usefixtures("disk")
def test_a_file_that_was_never_written_to_differs_from_one_that_was(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * BLOCK)
    path.chmod(0o600)
    try:
        assert not files.blocks_of(path).written
    except TargetMapped as error:
        pytest.skip(error.what)


def holes(path: Path) -> None:
    os.truncate(path, 1 << 20)


def readable_by_others(path: Path) -> None:
    path.chmod(0o640)


def another_users(path: Path) -> None:
    os.chown(path, 1, 1)


def gone(path: Path) -> None:
    path.unlink()


def a_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (holes, UnsuitableFile),
        (readable_by_others, UnsuitableFile),
        (another_users, UnsuitableFile),
        (a_folder, UnsuitableFile),
        (gone, TargetMissing),
        (a_link, TargetMissing),
    ],
)
def test_a_file_that_is_no_target_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    error: type[KjumpError],
) -> None:
    monkeypatch.setattr(files, "refuse_mapped", lambda *_: None)
    path = made(tmp_path, 10 * BLOCK)
    assert files.blocks_of(path).size == 10 * BLOCK
    change(path)
    with pytest.raises(error):
        files.blocks_of(path)


def test_a_file_in_memory_has_no_place_on_a_disk() -> None:
    if os.getuid():
        pytest.skip("a file has to be root's")
    memory = os.memfd_create("image")
    try:
        with pytest.raises(UnsuitableFile, match="is not on ext4"):
            os.fchmod(memory, 0o600)
            files._blocks(memory, "image", swap=False)
    finally:
        os.close(memory)


def test_a_device_that_only_this_kernel_makes_is_refused() -> None:
    virtual = [path.parent for path in Path("/sys/devices/virtual/block").glob("*/dev")]
    if not virtual:
        pytest.skip("no such device here")
    for folder in virtual:
        major, minor = map(int, (folder / "dev").read_text().split(":"))
        with pytest.raises(TargetMapped, match=folder.name):
            files.refuse_mapped(os.makedev(major, minor), "It")

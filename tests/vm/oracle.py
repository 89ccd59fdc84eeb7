# SPDX-License-Identifier: GPL-2.0-or-later
"""What others say of the same memory: saved pages of an image, physical memory as a core, and
makedumpfile's opinion of every page.

Runs on the host.  Everything about pages here is one byte a page, indexed by pfn from 0 on, so that
two opinions are compared without a loop over pages.

- `target_of`: the target partition of a switched-off guest, as a file.
- `Saved.of`: which pages an image holds, and their content.
- `physical_memory`: the memory of a paused guest, as a file in which offset = physical address.
- `core`: that file as an ELF core, for makedumpfile, drgn and crash.
- `dumped`: which pages makedumpfile would keep of a core.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kjump.handoff.report import Report
from kjump.image import export
from kjump.image.description import Description
from kjump.image.device import DirectDevice
from kjump.image.extents import DATA, Extents
from kjump.image.read import Image as SavedImage
from kjump.machine.ranges import PAGE, Range, intersect, merge, whole_pages

from . import suites
from .guest import Guest, GuestError

MIB = 1 << 20
PIECE = 128 * MIB
"""Of memory asked of QEMU at a time: the guest's QMP channel does not wait longer than 30 s."""

NOWHERE, STORED, ZEROS = 0, 1, 2
"""What an image holds of a page: nothing, its content, the fact that it is zero."""

MAKEDUMPFILE_SUITE = "forky"
"""Its makedumpfile (1.7.8) knows 6.12 and 7.x; that of Debian 12 and 13 (1.7.2, 1.7.6) misses
free pages from 6.12 on, where the mapcount values of page types changed."""


# -- the image -------------------------------------------------------------------------------------


def target_of(guest: Guest, path: Path) -> Path:
    """Copy the target partition off the disk of a switched-off guest to the (sparse) file."""
    image = guest.image
    source = (
        f"driver=raw,offset={image.target_offset},size={image.target_size},"
        f"file.driver=qcow2,file.file.driver=file,file.file.filename={guest.disk}"
    )
    subprocess.run(["qemu-img", "convert", "-O", "raw", "--image-opts", source, path], check=True)
    return path


@dataclass(frozen=True)
class Saved:
    """What an image holds of the session's memory."""

    path: Path
    description: Description
    report: Report
    extents: Extents
    kinds: bytes
    """`NOWHERE`, `STORED` or `ZEROS` for each pfn; what is behind the end is `NOWHERE`."""

    @classmethod
    def of(cls, path: Path) -> Saved:
        """Of the image on a target that is a file or a device.  Raises what the reader raises."""
        with DirectDevice(path) as device:
            image = SavedImage(device)
            extents = image.index()
            kinds = bytearray(extents.end)
            for e in extents:
                kinds[e.pfn : e.pfn + e.pages] = _run(STORED if e.kind == DATA else ZEROS, e.pages)
            return cls(path, image.description(), image.superblock.outcome, extents, bytes(kinds))

    @property
    def ranges(self) -> list[Range]:
        """Pfns the image can cover: RAM without the window and the low pages."""
        return self.description.pieces

    @property
    def vmcoreinfo(self) -> str:
        return self.description.vmcoreinfo

    def pfns(self, kind: int) -> set[int]:
        """The pages of a kind, as pfns."""
        return {pfn for pfn, found in enumerate(self.kinds) if found == kind}

    def content(self) -> Iterator[tuple[int, bytes]]:
        """(first pfn, bytes) of every run of stored pages, ascending; checksums are checked."""
        with DirectDevice(self.path) as device:
            image = SavedImage(device)
            for chunk in image.chunks(self.extents):
                at = 0
                for e in chunk.extents:
                    yield e.pfn, bytes(chunk.data[at : at + e.pages * PAGE])
                    at += e.pages * PAGE


def _run(value: int, count: int) -> bytes:
    return bytes([value]) * count


# -- physical memory -------------------------------------------------------------------------------


def system_ram(guest: Guest) -> list[Range]:
    """The running guest's RAM, in bytes, as its kernel reports it."""
    found = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", guest.check("cat /proc/iomem"), re.MULTILINE
    )
    return merge((int(start, 16), int(end, 16) + 1) for start, end in found)


def physical_memory(guest: Guest, ram: Iterable[Range], path: Path) -> Path:
    """The guest's physical memory, asked of QEMU: a sparse file in which the offset of a byte is
    its physical address.  ``ram`` in bytes.  The guest should be paused (QMP ``stop``)."""
    piece = path.with_suffix(".piece")
    with path.open("wb") as file:
        end = 0
        for start, end in ram:
            for at in range(start, end, PIECE):
                size = min(PIECE, end - at)
                guest.qmp("pmemsave", val=at, size=size, filename=str(piece))
                data = piece.read_bytes()
                if len(data) != size:
                    raise GuestError(f"QEMU gave {len(data)} bytes of memory, not {size}")
                for offset in range(0, size, MIB):
                    part = data[offset : offset + MIB]
                    if part.count(0) != len(part):
                        file.seek(at + offset)
                        file.write(part)
        file.truncate(end)
    piece.unlink(missing_ok=True)
    return path


def core(
    memory: Path, ranges: Iterable[Range], vmcoreinfo: str, page_offset: int, path: Path
) -> Path:
    """Physical memory as an ELF core with the VMCOREINFO note.

    ``memory``: a file as `physical_memory` makes it; ``ranges``: in pfns; ``page_offset``: virtual
    address of physical 0.  For the memory of an image's session: ``saved.ranges``,
    ``saved.vmcoreinfo`` and ``saved.description.facts.page_offset``.
    """
    wanted = list(ranges)
    head, offsets = export.headers(wanted, vmcoreinfo.encode(), page_offset)
    size = len(head) + sum(end - start for start, end in wanted) * PAGE
    with memory.open("rb") as source, path.open("wb") as file:
        file.write(head)
        for (start, end), offset in zip(wanted, offsets, strict=True):
            for at in range(start * PAGE, end * PAGE, MIB):
                source.seek(at)
                part = source.read(min(MIB, end * PAGE - at))
                if part.count(0) != len(part):
                    file.seek(offset + at - start * PAGE)
                    file.write(part)
        file.truncate(size)
    return path


# -- makedumpfile ----------------------------------------------------------------------------------


def makedumpfile() -> list[str]:
    """The words to call a makedumpfile with that knows the kernels which the tests use."""
    return suites.program(MAKEDUMPFILE_SUITE, "makedumpfile", "/usr/bin/makedumpfile")


def dumped(path: Path, level: int) -> bytes:
    """Of each pfn whether makedumpfile keeps it (1) of a core at this dump level (``-d``).

    Levels are sums: 1 zero pages, 16 free pages.  Broken and offline pages it leaves out at every
    level.  Raises GuestError with what it said.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        result = Path(scratch, "dump")
        command = [*makedumpfile(), "-l", "-d", str(level), str(path), str(result)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise GuestError(f"makedumpfile -d {level}: {done.stdout}{done.stderr}")
        return bitmap(result, zeros_left_out=bool(level & ZERO_PAGES))


ZERO_PAGES = 1
"""The dump level's bit that leaves out pages of zeros."""
HEADER = struct.Struct("<8si390s2x4x16sIiiIIIIIii")
"""struct disk_dump_header (makedumpfile's diskdump_mod.h): signature, version, utsname, timestamp,
status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr and more; alignment as of x86_64."""
SUB_MAX_MAPNR = 96
"""Offset of max_mapnr_64 in struct kdump_sub_header."""
BITS = [bytes(value >> bit & 1 for bit in range(8)) for value in range(256)]


DESCRIPTOR = struct.Struct("<qIIQ")
"""page_desc_t: offset of the page's data in the file, size, flags, page flags."""


def bitmap(path: Path, *, zeros_left_out: bool = False) -> bytes:
    """Which pages a kdump-compressed file holds, one byte a pfn: its second bitmap.

    ``zeros_left_out``: pages of zeros are in that bitmap all the same, but their descriptors lead
    to one page that all of them share, the first of the data; they count as not held.
    """
    with path.open("rb") as file:
        fields = HEADER.unpack(file.read(HEADER.size))
        signature, version = fields[0], fields[1]
        block, sub_blocks, bitmap_blocks, max_mapnr = fields[5:9]
        if signature != b"KDUMP   " or version < 6 or block != PAGE:
            raise GuestError(f"{path} is no kdump file: {signature!r} {version} {block}")
        file.seek(block + SUB_MAX_MAPNR)
        (max_mapnr,) = struct.unpack("<Q", file.read(8))
        # First which pages there are, then which of them are in the file.
        file.seek((1 + sub_blocks + bitmap_blocks // 2) * block)
        bits = file.read((max_mapnr + 7) // 8)
        held = bytearray(b"".join(map(BITS.__getitem__, bits))[:max_mapnr])
        if zeros_left_out:
            file.seek((1 + sub_blocks + bitmap_blocks) * block)
            table = file.read(sum(held) * DESCRIPTOR.size)
            offsets = [entry[0] for entry in DESCRIPTOR.iter_unpack(table)]
            shared = min(offsets, default=0)
            pfn = -1
            for offset in offsets:
                pfn = held.index(1, pfn + 1)
                if offset == shared:
                    held[pfn] = 2
            held = held.replace(b"\2", b"\0")
    return bytes(held)


# -- comparing -------------------------------------------------------------------------------------


def in_ranges(ranges: Iterable[Range], count: int) -> bytearray:
    """1 for each of ``count`` pfns that is in one of the ranges (in pfns)."""
    out = bytearray(count)
    for start, end in intersect(ranges, [(0, count)]):
        out[start:end] = _run(1, end - start)
    return out


def select(kinds: bytes, wanted: Iterable[int], count: int) -> bytes:
    """1 for each of ``count`` pfns whose kind is one of the wanted."""
    table = bytearray(256)
    for kind in wanted:
        table[kind] = 1
    return kinds.translate(bytes(table))[:count].ljust(count, b"\0")


def where(ours: bytes, theirs: bytes) -> list[int]:
    """The pfns at which two sets of one length differ."""
    difference = int.from_bytes(ours, "little") ^ int.from_bytes(theirs, "little")
    flags = difference.to_bytes(len(ours), "little")
    found, at = [], flags.find(1)
    while at >= 0:
        found.append(at)
        at = flags.find(1, at + 1)
    return found


def union(one: bytes, other: bytes) -> bytes:
    """The pages of either set; both of one length."""
    total = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return total.to_bytes(len(one), "little")


def both(one: bytes, other: bytes) -> bytes:
    """The pages of both sets; both of one length."""
    total = int.from_bytes(one, "little") & int.from_bytes(other, "little")
    return total.to_bytes(len(one), "little")


def whole(ranges: Iterable[Range]) -> list[Range]:
    """Byte ranges as ranges of whole pages, in pfns."""
    return [(a // PAGE, b // PAGE) for a, b in whole_pages(ranges)]

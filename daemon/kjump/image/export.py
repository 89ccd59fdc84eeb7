# SPDX-License-Identifier: GPL-2.0-or-later
"""An image as an ELF core, for crash, drgn and makedumpfile.

Runs in the session; reads the image, jumps nowhere.  The core has the VMCOREINFO note and a
PT_LOAD for each range of the session's RAM.  The file is sparse: pages of zeros, free pages and
others that were not saved are holes, and read as zeros.  The image does not cover the window, but
it has the window's content elsewhere (see `kjump.image.window_source_pages`); the export puts it
back in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from kjump.errors import ExportFailed, ImageDamaged, ImageIncomplete, NoImage
from kjump.image import window_source_pages
from kjump.image.description import Description
from kjump.image.extents import Extents
from kjump.image.read import Image
from kjump.machine import elf
from kjump.machine.elf import pack_note
from kjump.machine.memory import processors
from kjump.machine.ranges import PAGE, Range, align_up
from kjump.machine.vmcoreinfo import OWNER


def verify(image: Image, progress: Callable[[int], None] = lambda done: None) -> int:
    """Read all of an image and check every checksum; returns the bytes of memory it holds.

    Raises `NoImage`, `ImageIncomplete`, `ImageDamaged`.
    """
    require_content(image)
    done = 0
    for chunk in image.chunks(image.index(), processors=processors()):
        done += chunk.pages * PAGE
        progress(done)
    if done != image.superblock.data_pages * PAGE:
        raise ImageDamaged("The number of pages in the image does not match its superblock.")
    return done


def headers(
    ranges: Sequence[Range], vmcoreinfo: bytes, page_offset: int
) -> tuple[bytes, list[int]]:
    """The whole pages before the memory, and each range's offset in the file.

    ``ranges``: in pfns; ``page_offset``: virtual address of physical 0 in the kernel's direct
    map.
    """
    note = pack_note(OWNER, 0, vmcoreinfo)
    count = len(ranges) + 1
    note_at = elf.EHDR.size + count * elf.PHDR.size
    first = at = align_up(note_at + len(note))
    out = elf.file_header(count)
    out += elf.PHDR.pack(elf.PT_NOTE, 0, note_at, 0, 0, len(note), len(note), 4)
    offsets = []
    for start, end in ranges:
        size, physical = (end - start) * PAGE, start * PAGE
        virtual = page_offset + physical
        # No alignment, as in /proc/vmcore: if the first PT_LOAD has one and begins on a page, crash
        # believes that this is an old netdump, and does not look for KERNELOFFSET (is_netdump() in
        # its netdump.c).
        out += elf.PHDR.pack(elf.PT_LOAD, elf.RWX, at, virtual, physical, size, size, 0)
        offsets.append(at)
        at += size
    return (out + note).ljust(first, b"\0"), offsets


@dataclass(frozen=True)
class Core:
    """The core that was written."""

    size: int
    """Size of the file in bytes, including holes."""
    window: bool
    """True: the window's memory is as the session had it; False: it is a hole."""


def export(image: Image, path: Path, progress: Callable[[int], None] = lambda done: None) -> Core:
    """Write the core to a new file that only its owner can read.  If that fails, it is removed.

    Raises `NoImage`, `ImageIncomplete`, `ImageDamaged`, `ExportFailed`, FileExistsError.
    """
    require_content(image)
    description = image.description()
    if not description.vmcoreinfo:
        raise ImageDamaged("The image does not hold VMCOREINFO.")
    index = image.index()
    description.check_pages(index)
    try:
        # This is all that the session's users had in memory: nobody else may read it.
        file = FileIO(path, "x+", opener=lambda name, flags: os.open(name, flags, 0o600))
    except FileExistsError:
        raise
    except OSError as error:
        raise ExportFailed(f"{path} cannot be created: {error.strerror}.") from error
    with file:
        try:
            return _write(image, index, description, file, progress)
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError):
                raise ExportFailed(f"{path} cannot be written: {error.strerror}.") from error
            raise


def require_content(image: Image) -> None:
    """Check that the image, in whatever state, has a description and pages.

    Raises `NoImage`, `ImageIncomplete`.
    """
    if not image.superblock.description_length:
        raise NoImage("The target holds no image.")
    if not image.superblock.index_length:
        raise ImageIncomplete("The image was not finished.")


def _write(
    image: Image,
    index: Extents,
    description: Description,
    file: FileIO,
    progress: Callable[[int], None],
) -> Core:
    ranges = description.ram
    text = description.vmcoreinfo.encode()
    head, offsets = headers(ranges, text, description.facts.page_offset)
    places = [
        (start, end, offset - start * PAGE)
        for (start, end), offset in zip(ranges, offsets, strict=True)
    ]

    def place(pfn: int) -> int | None:
        """The page's offset in the file."""
        return next((at + pfn * PAGE for start, end, at in places if start <= pfn < end), None)

    size = len(head) + sum(end - start for start, end in ranges) * PAGE
    _put(file, head, 0)
    file.truncate(size)
    done = 0
    for chunk in image.chunks(index, processors=processors()):
        at = 0
        with memoryview(chunk.data) as view:
            for extent in chunk.extents:
                offset = place(extent.pfn)
                assert offset is not None  # by check_pages
                with view[at : at + extent.pages * PAGE] as part:
                    _put(file, part, offset)
                at += extent.pages * PAGE
        done += at
        progress(done)
    return Core(size, _put_back(file, place, description))


def _put(file: FileIO, data: bytes | memoryview, offset: int) -> None:
    while len(data):
        done = os.pwrite(file.fileno(), data, offset)
        data, offset = data[done:], offset + done


def _put_back(file: FileIO, place: Callable[[int], int | None], description: Description) -> bool:
    """Copy the window's content from where the jump put it; False: it was not found."""

    def read(pfn: int) -> bytes:
        offset = place(pfn)
        return b"" if offset is None else os.pread(file.fileno(), PAGE, offset)

    found = window_source_pages.pairs(read, description.jump_back, description.window)
    if found is None:
        return False
    blank = bytes(PAGE)
    for destination, source in found.items():
        offset, data = place(destination), read(source)
        if offset is not None and data and data != blank:
            _put(file, data, offset)
    return True

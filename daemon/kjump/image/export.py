"""An image as an ELF core, for crash, drgn and makedumpfile.

Runs in the session; reads the image, jumps nowhere.  The core has the VMCOREINFO note and a
PT_LOAD for each range of the session's RAM outside the window.  The file is sparse: pages of
zeros, free pages and others that were not saved are holes, and read as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kjump.errors import ImageDamaged
from kjump.handoff.note import pack_note
from kjump.image.place import check_pages, pieces
from kjump.image.read import Image
from kjump.machine import coreheader
from kjump.machine.memory import processors
from kjump.machine.ranges import PAGE, Range, align_up
from kjump.machine.vmcoreinfo import OWNER


def verify(image: Image, progress: Callable[[int], None] = lambda done: None) -> int:
    """Read all of an image and check every checksum; bytes of memory it holds.

    Raises `ImageDamaged`.
    """
    done = 0
    for chunk in image.chunks(image.index(), processors=processors()):
        done += chunk.pages * PAGE
        progress(done)
    if done != image.superblock.data_pages * PAGE:
        raise ImageDamaged("The image holds another number of pages than its superblock says.")
    return done


def headers(
    ranges: Sequence[Range], vmcoreinfo: bytes, page_offset: int
) -> tuple[bytes, list[int]]:
    """Everything before the memory, in whole pages, and each range's offset in the file.

    ``ranges``: in pfns; ``page_offset``: virtual address of physical 0 in the kernel's direct
    map.
    """
    note = pack_note(OWNER, 0, vmcoreinfo)
    count = len(ranges) + 1
    note_at = coreheader.EHDR.size + count * coreheader.PHDR.size
    first = at = align_up(note_at + len(note))
    out = coreheader.file_header(count)
    out += coreheader.PHDR.pack(coreheader.PT_NOTE, 0, note_at, 0, 0, len(note), len(note), 4)
    offsets = []
    for start, end in ranges:
        size, physical = (end - start) * PAGE, start * PAGE
        virtual = page_offset + physical
        out += coreheader.PHDR.pack(
            coreheader.PT_LOAD, coreheader.RWX, at, virtual, physical, size, size, PAGE
        )
        offsets.append(at)
        at += size
    return (out + note).ljust(first, b"\0"), offsets


def export(image: Image, path: Path, progress: Callable[[int], None] = lambda done: None) -> int:
    """Write the core to a new file; its size in bytes, holes included.

    Raises `ImageDamaged`, OSError.
    """
    description = image.description()
    if "vmcoreinfo" not in description:
        raise ImageDamaged("The image does not hold VMCOREINFO.")
    index = image.index()
    check_pages(index, description)
    ranges = pieces(description)
    text = str(description["vmcoreinfo"]).encode()
    head, offsets = headers(ranges, text, int(description.get("page_offset", 0)))
    places = list(zip(ranges, offsets, strict=True))
    size = len(head) + sum(end - start for start, end in ranges) * PAGE
    done = 0
    with path.open("xb") as file:
        file.write(head)
        file.truncate(size)
        for chunk in image.chunks(index, processors=processors()):
            at = 0
            with memoryview(chunk.data) as view:
                for extent in chunk.extents:
                    offset = next(o - s * PAGE for (s, e), o in places if s <= extent.pfn < e)
                    file.seek(offset + extent.pfn * PAGE)
                    with view[at : at + extent.pages * PAGE] as part:
                        file.write(part)
                    at += extent.pages * PAGE
            done += at
            progress(done)
    return size

# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF as kernels use it: core headers and notes.

Pure; runs in all three kernels.  ELF64, little-endian, ET_CORE for x86_64.  The core header is the
ELF file at ``elfcorehdr=``; the helper's kernel builds /proc/vmcore from it.  In a core header
``p_offset`` is a *physical address* (fs/proc/vmcore.c); in /proc/vmcore itself it is a file offset,
and the PT_NOTEs are merged into one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kjump.errors import DamagedHandoff
from kjump.machine.ranges import Range

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
ET_CORE, EM_X86_64 = 4, 62
PT_LOAD, PT_NOTE = 1, 4
IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
RWX = 7


@dataclass(frozen=True)
class ElfSegment:
    """A program header: file offset, addresses and size, all in bytes."""

    kind: int
    offset: int
    physical: int
    size: int
    virtual: int = 0


def build(notes: Sequence[tuple[int, int]], memory: Iterable[Range]) -> bytes:
    """A core header for the ``notes`` ((physical address, bytes), VMCOREINFO first) and the
    physical ``memory`` ranges."""
    headers = b"".join(
        PHDR.pack(PT_NOTE, 0, start, 0, start, size, size, 4) for start, size in notes
    )
    count = len(notes)
    for start, end in memory:
        # p_vaddr is only for debuggers; with KASLR the direct map may be anywhere.
        headers += PHDR.pack(PT_LOAD, RWX, start, 0, start, end - start, end - start, 0)
        count += 1
    if count >= 0xFFFF:
        raise ValueError(f"{count} program headers")
    return file_header(count) + headers


def file_header(count: int) -> bytes:
    """The ELF header of a core; ``count`` program headers follow it directly."""
    return EHDR.pack(
        IDENT, ET_CORE, EM_X86_64, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count, 0, 0, 0
    )


def parse(data: bytes) -> list[ElfSegment]:
    """The program headers of an ELF core.  Raises `DamagedHandoff` on anything else."""
    if len(data) < EHDR.size or data[:6] != IDENT[:6]:
        raise DamagedHandoff("There is no ELF core header.")
    fields = EHDR.unpack_from(data)
    offset, entry_size, count = fields[5], fields[9], fields[10]
    if fields[2] != EM_X86_64 or entry_size != PHDR.size or offset + count * PHDR.size > len(data):
        raise DamagedHandoff("The ELF core header is cut short or of another machine.")
    out = []
    for number in range(count):
        kind, _flags, at, virtual, physical, size, _memsz, _align = PHDR.unpack_from(
            data, offset + number * PHDR.size
        )
        out.append(ElfSegment(kind, at, physical, size, virtual))
    return out


NHDR = struct.Struct("<III")


def pack_note(owner: bytes, kind: int, descriptor: bytes) -> bytes:
    """One ELF64 note: name and descriptor padded to 4 bytes (elf(5))."""
    name = owner + b"\0"
    return (
        NHDR.pack(len(name), len(descriptor), kind)
        + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + descriptor.ljust(-(-len(descriptor) // 4) * 4, b"\0")
    )


def descriptor_offset(owner: bytes) -> int:
    """Where the descriptor starts in a note with this owner: bytes from the note's start."""
    return NHDR.size + -(-(len(owner) + 1) // 4) * 4


def iterate_notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes (owner, type, descriptor) of a PT_NOTE segment; stops at the first bad one."""
    at = 0
    while at + NHDR.size <= len(data):
        name_size, size, kind = NHDR.unpack_from(data, at)
        start = at + NHDR.size + -(-name_size // 4) * 4
        if name_size == 0 or start + size > len(data):
            return
        name = data[at + NHDR.size : at + NHDR.size + name_size].rstrip(b"\0")
        yield name, kind, data[start : start + size]
        at = start + -(-size // 4) * 4

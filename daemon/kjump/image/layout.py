# SPDX-License-Identifier: GPL-2.0-or-later
"""The image on disk, version 2, byte by byte.  See docs/kjump-image.5.md.

Pure.  All integers little-endian; block 4,096 bytes; offsets in bytes from the target's start.

Order on the target::

    0      superblock, slot 0      one block
    4096   superblock, slot 1      one block
    8192   description             JSON, `DESCRIPTION_ROOM` bytes at most
    65536  restorer                kernel, then initrd, each beginning on a block (may be absent)
    ...    chunks                  each begins on a block
    ...    index                   zstd frame, begins on a block

Superblock (the valid slot with the highest generation counts):

====== ==== =======================================================================
offset size field
====== ==== =======================================================================
0      8    magic ``KJUMPIMG``
8      4    version, 2
12     4    state: 0 empty, 1 writing, 2 complete, 3 restoring, 4 spent
16     8    generation, one higher at each write
24     16   cycle id (UUID)
40     8    offset of the description
48     4    length of the description
52     4    CRC-32 of the description
56     8    offset of the first chunk
64     8    number of chunks
72     8    offset of the index
80     4    length of the index (stored)
84     4    CRC-32 of the index (stored)
88     8    length of the index (unpacked)
96     8    number of extents in the index
104    8    pages stored in chunks
112    8    pages of zeros
120    8    end of the image: bytes from the target's start
128    8    time of the last change: seconds since the epoch
136    4    length of the outcome
140    4    length of the restorer's kernel (a bzImage at offset 65536), 0: none
144    4    CRC-32 of it
148    4    length of the restorer's initrd (after the kernel, on the next block)
152    4    CRC-32 of it
156    36   zero
192    ..   outcome: JSON, why the image is spent, or the report; ends before 4,092
4092   4    CRC-32 of bytes 0-4,091
====== ==== =======================================================================

An index is a sequence of extents, ascending and without overlap: u64 first pfn, u32 pages,
u32 kind (0 data, 1 zero).  Data pages lie in the chunks in the order of their extents.

A chunk: header, its extents (data only, as in the index), zeros up to the block; payload, zeros up
to the block.  The header:

====== ==== =======================================================================
offset size field
====== ==== =======================================================================
0      4    magic ``KJCH``
4      4    number of the chunk, from 0
8      4    number of extents
12     4    pages
16     4    codec: 0 uncompressed, 1 a zstd frame with content checksum, 2 an LZ4 block
20     4    length of the payload
24     4    checksum of the payload: the low 32 bits of its XXH64, seed 0
28     4    CRC-32 of bytes 0-27 and of the extents
====== ==== =======================================================================
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from kjump.errors import ImageDamaged, ImageVersion
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.machine.ranges import PAGE, align_up

BLOCK = 4096
MAGIC = b"KJUMPIMG"
VERSION = 2
ALIKE = (1, VERSION)
"""Versions with the same superblock.  Version 1 had the payload directly after the extents, with
a CRC-32: kjump can identify, retire and replace such an image, but not read it."""
SLOTS = (0, BLOCK)
DESCRIPTION_OFFSET = 2 * BLOCK
DESCRIPTION_ROOM = 14 * BLOCK
RESTORER_OFFSET = 16 * BLOCK
OUTCOME_OFFSET = 192
OUTCOME_ROOM = BLOCK - 4 - OUTCOME_OFFSET
STATES = ("empty", "writing", "complete", "restoring", "spent")
EMPTY, WRITING, COMPLETE, RESTORING, SPENT = range(5)

SUPERBLOCK = struct.Struct("<8sIIQ16sQIIQQQIIQQQQQdIIIII36x")
CHUNK = struct.Struct("<4sIIIIIII")
CHUNK_CHECKED = struct.Struct("<4sIIIIII")
EXTENT = struct.Struct("<QII")
CHUNK_MAGIC = b"KJCH"
CHUNK_PAGES = 1024
"""Most pages of a chunk; a reader refuses more."""
RAW, ZSTD, LZ4 = 0, 1, 2
DATA, ZERO = 0, 1

assert SUPERBLOCK.size == OUTCOME_OFFSET
assert CHUNK.size == 32


@dataclass(frozen=True)
class Superblock:
    """A superblock; see the table above."""

    state: int
    generation: int
    cycle: uuid.UUID
    description_length: int = 0
    description_crc: int = 0
    chunks: int = 0
    index_offset: int = 0
    index_length: int = 0
    index_crc: int = 0
    index_size: int = 0
    extents: int = 0
    data_pages: int = 0
    zero_pages: int = 0
    end: int = 0
    changed: float = 0.0
    kernel_length: int = 0
    kernel_crc: int = 0
    initrd_length: int = 0
    initrd_crc: int = 0
    outcome: Report = field(default_factory=Report)
    version: int = VERSION

    @property
    def state_name(self) -> str:
        return STATES[self.state]

    @property
    def initrd_offset(self) -> int:
        return align_up(RESTORER_OFFSET + self.kernel_length, BLOCK)

    @property
    def chunks_offset(self) -> int:
        """Where the first chunk begins: after the restorer."""
        return align_up(self.initrd_offset + self.initrd_length, BLOCK)

    def pack(self) -> bytes:
        """The block.  An outcome that does not fit is shortened, see `kjump.handoff.report.fit`."""
        outcome = reports.fit(self.outcome, OUTCOME_ROOM)
        head = SUPERBLOCK.pack(
            MAGIC,
            self.version,
            self.state,
            self.generation,
            self.cycle.bytes,
            DESCRIPTION_OFFSET,
            self.description_length,
            self.description_crc,
            self.chunks_offset,
            self.chunks,
            self.index_offset,
            self.index_length,
            self.index_crc,
            self.index_size,
            self.extents,
            self.data_pages,
            self.zero_pages,
            self.end,
            self.changed,
            len(outcome),
            self.kernel_length,
            self.kernel_crc,
            self.initrd_length,
            self.initrd_crc,
        )
        block = (head + outcome).ljust(BLOCK - 4, b"\0")
        return block + struct.pack("<I", zlib.crc32(block))


def other_version(version: int) -> ImageVersion:
    """The error for an image that this version cannot read."""
    return ImageVersion(f"The image is of version {version}, this kjump reads {VERSION}.")


def unpack_superblock(block: bytes) -> Superblock | None:
    """A superblock, or None if the block is damaged or not a superblock.

    Raises `ImageVersion` for an intact one of a version that is not `ALIKE`.
    """
    if len(block) < BLOCK or block[:8] != MAGIC:
        return None
    if zlib.crc32(block[: BLOCK - 4]) != struct.unpack_from("<I", block, BLOCK - 4)[0]:
        return None
    (
        _magic,
        version,
        state,
        generation,
        cycle,
        description_offset,
        description_length,
        description_crc,
        chunks_offset,
        chunks,
        index_offset,
        index_length,
        index_crc,
        index_size,
        extents,
        data_pages,
        zero_pages,
        end,
        changed,
        outcome_length,
        kernel_length,
        kernel_crc,
        initrd_length,
        initrd_crc,
    ) = SUPERBLOCK.unpack_from(block)
    if version not in ALIKE:
        raise other_version(version)
    if (
        state >= len(STATES)
        or outcome_length > OUTCOME_ROOM
        or description_offset != DESCRIPTION_OFFSET
        or description_length > DESCRIPTION_ROOM
    ):
        return None
    found = Superblock(
        state=state,
        generation=generation,
        cycle=uuid.UUID(bytes=cycle),
        description_length=description_length,
        description_crc=description_crc,
        chunks=chunks,
        index_offset=index_offset,
        index_length=index_length,
        index_crc=index_crc,
        index_size=index_size,
        extents=extents,
        data_pages=data_pages,
        zero_pages=zero_pages,
        end=end,
        changed=changed,
        kernel_length=kernel_length,
        kernel_crc=kernel_crc,
        initrd_length=initrd_length,
        initrd_crc=initrd_crc,
        outcome=reports.read_outcome(block[OUTCOME_OFFSET : OUTCOME_OFFSET + outcome_length]),
        version=version,
    )
    return found if found.chunks_offset == chunks_offset else None


def newest(blocks: Sequence[bytes]) -> Superblock | None:
    """The superblock that counts: of the intact slots, the one with the highest generation."""
    found = [s for s in map(unpack_superblock, blocks) if s is not None]
    return max(found, key=lambda s: s.generation, default=None)


@dataclass(frozen=True)
class Extent:
    """``pages`` consecutive pages from ``pfn`` on; kind DATA or ZERO."""

    pfn: int
    pages: int
    kind: int = DATA


@dataclass(frozen=True)
class ChunkHeader:
    """A chunk's header; lengths in bytes."""

    number: int
    extents: int
    pages: int
    codec: int
    length: int
    payload_check: int
    checked: int

    @property
    def payload_offset(self) -> int:
        """From the chunk's start, in bytes: the block after the extents."""
        return align_up(CHUNK.size + self.extents * EXTENT.size, BLOCK)

    @property
    def stored(self) -> int:
        """Bytes on the target, up to the next block."""
        return align_up(self.payload_offset + self.length, BLOCK)


def unpack_chunk_header(data: bytes, number: int) -> ChunkHeader:
    """The header of chunk ``number``, checked for sane sizes.  Raises `ImageDamaged`."""
    if len(data) < CHUNK.size:
        raise ImageDamaged(f"The image ends before chunk {number}.")
    magic, found, extents, pages, codec, length, payload_check, checked = CHUNK.unpack_from(data)
    if magic != CHUNK_MAGIC or found != number:
        raise ImageDamaged(f"Chunk {number} of the image is not there.")
    if (
        not 0 < pages <= CHUNK_PAGES
        or not 0 < extents <= pages
        or codec not in (RAW, ZSTD, LZ4)
        or length > CHUNK_PAGES * PAGE
    ):
        raise ImageDamaged(f"The header of chunk {number} is damaged.")
    return ChunkHeader(found, extents, pages, codec, length, payload_check, checked)


def check_chunk_head(data: bytes | memoryview, header: ChunkHeader) -> bytes:
    """The extents of a chunk as stored, checked with its header.  Raises `ImageDamaged`."""
    if len(data) < header.payload_offset + header.length:
        raise ImageDamaged(f"Chunk {header.number} of the image is cut short.")
    table = bytes(data[CHUNK.size :][: header.extents * EXTENT.size])
    if zlib.crc32(table, zlib.crc32(data[: CHUNK_CHECKED.size])) != header.checked:
        raise ImageDamaged(f"The head of chunk {header.number} has a wrong checksum.")
    return table

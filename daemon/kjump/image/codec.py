# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressing and checking chunks natively: the ctypes front of ``native/chunks.c``.

Runs in all three kernels; never touches a file.  A call leaves the interpreter free, so threads of
Python compress side by side.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

from kjump.image.layout import CHUNK, EXTENT
from kjump.machine.native import INT, LIBRARY, POINTER, U32, U64, U64_OUT, address_of
from kjump.machine.pages import Bundle
from kjump.machine.ranges import PAGE, align_up

Buffer = bytes | bytearray | mmap.mmap | memoryview

_context = LIBRARY.kj_context
_context.restype = POINTER
_context_free = LIBRARY.kj_context_free
_context_free.argtypes = (POINTER,)
_checksum = LIBRARY.kj_checksum
_checksum.argtypes = (POINTER, U64)
_checksum.restype = U32
_chunk_pack = LIBRARY.kj_chunk_pack
_chunk_pack.argtypes = (POINTER, POINTER, U64, POINTER, U64, U32, INT, POINTER, U64_OUT)
_chunk_pack.restype = U64
_chunk_seal = LIBRARY.kj_chunk_seal
_chunk_seal.argtypes = (POINTER, U32)
_chunk_seal.restype = None
_unpack = LIBRARY.kj_unpack
_unpack.argtypes = (U32, POINTER, U64, POINTER, U64)
_pack = LIBRARY.kj_pack
_pack.argtypes = (POINTER, INT, POINTER, U64, POINTER, U64)
_pack.restype = U64
_pack_bound = LIBRARY.kj_pack_bound
_pack_bound.argtypes = (U64,)
_pack_bound.restype = U64


def checksum(data: Buffer, offset: int, length: int) -> int:
    """The low 32 bits of XXH64 (seed 0) of ``length`` bytes from ``offset`` on, as in a zstd
    frame."""
    if offset + length > len(data):
        raise ValueError("out of bounds")
    return int(_checksum(address_of(data) + offset, length))


def lead(pages: int) -> int:
    """Most bytes that the header and the extents of a chunk of ``pages`` take; whole pages."""
    return align_up(CHUNK.size + pages * EXTENT.size, PAGE)


def largest_chunk(pages: int) -> int:
    """Most bytes that a chunk of ``pages`` takes."""
    return lead(pages) + pages * PAGE


@dataclass(frozen=True)
class Packed:
    """A chunk in a buffer: its start and size in bytes; whole pages."""

    start: int
    size: int
    moved: bool
    """Whether it is in the other buffer."""


class Packer:
    """Compresses; each thread needs its own."""

    def __init__(self) -> None:
        self._context = _context()
        if not self._context:
            raise MemoryError("zstd")

    def chunk(
        self, bundle: Bundle, codec: int, level: int, buffer: mmap.mmap, other: mmap.mmap, at: int
    ) -> Packed:
        """Make a chunk of the bundle's pages, which are in ``buffer`` from byte ``at`` on.  The
        chunk is around them, or in ``other`` if they became smaller.  `seal` gives it its number.
        """
        if at < lead(bundle.data_extents) or at + bundle.used * PAGE > min(len(buffer), len(other)):
            raise ValueError("no room for a chunk")
        begin, elsewhere = address_of(buffer), address_of(other)
        if bundle.pages_address != begin + at:
            raise ValueError("the pages are not there")
        where = U64()
        size = _chunk_pack(
            self._context,
            begin + at,
            bundle.used,
            bundle.data_address,
            bundle.data_extents,
            codec,
            level,
            elsewhere + at,
            ctypes.byref(where),
        )
        moved = elsewhere <= where.value < elsewhere + len(other)
        return Packed(where.value - (elsewhere if moved else begin), int(size), moved)

    def frame(self, data: Buffer, level: int) -> bytes:
        """A zstd frame, with content size and checksum."""
        out = ctypes.create_string_buffer(_pack_bound(len(data)))
        size = _pack(self._context, level, address_of(data), len(data), out, len(out))
        if not size:
            raise ValueError("no room for a frame")
        return ctypes.string_at(out, size)

    def close(self) -> None:
        _context_free(self._context)
        self._context = None


def seal(buffer: mmap.mmap, start: int, number: int) -> None:
    """Give the chunk that begins at byte ``start`` its number, and its header's checksum."""
    _chunk_seal(address_of(buffer) + start, number)


def unpack(
    codec: int, data: Buffer, offset: int, length: int, out: mmap.mmap | bytearray, size: int
) -> bool:
    """Unpack the ``length`` bytes at ``offset`` into ``out``; False if they do not unpack to
    exactly ``size`` bytes."""
    if offset + length > len(data) or size > len(out):
        raise ValueError("out of bounds")
    return bool(_unpack(codec, address_of(data) + offset, length, address_of(out), size))

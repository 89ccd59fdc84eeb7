"""Compressing and checking, natively: ctypes front of ``machine/chunks.c``.

Runs in all three kernels.  A call leaves the interpreter free, so threads of Python compress side
by side.
"""

from __future__ import annotations

import ctypes
import mmap

from kjump.machine.native import INT, LIBRARY, POINTER, U32, U64, address_of
from kjump.machine.pages import Bundle
from kjump.machine.ranges import PAGE

RAW, ZSTD, LZ4 = range(3)

Buffer = bytes | bytearray | mmap.mmap | memoryview

_context = LIBRARY.kj_context
_context.restype = POINTER
_context_free = LIBRARY.kj_context_free
_context_free.argtypes = (POINTER,)
_crc32 = LIBRARY.kj_crc32
_crc32.argtypes = (U32, POINTER, U64)
_crc32.restype = U32
_chunk_pack = LIBRARY.kj_chunk_pack
_chunk_pack.argtypes = (POINTER, POINTER, U64, POINTER, U64, U32, INT, POINTER, U64)
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


def crc32(data: Buffer, offset: int, length: int) -> int:
    """CRC-32 (zlib's) of ``length`` bytes from ``offset`` on."""
    if offset + length > len(data):
        raise ValueError("out of bounds")
    return int(_crc32(0, address_of(data) + offset, length))


class Packer:
    """Compresses; one a thread."""

    def __init__(self) -> None:
        self._context = _context()
        if not self._context:
            raise MemoryError("zstd")

    def chunk(self, bundle: Bundle, codec: int, level: int, out: mmap.mmap) -> int:
        """A chunk of the bundle's pages at the start of ``out``; whole blocks, in bytes.

        It has no number yet: `seal`.
        """
        size = _chunk_pack(
            self._context,
            bundle.pages_address, bundle.used,
            bundle.data_address, bundle.data_extents,
            codec, level,
            address_of(out), len(out),
        )  # fmt: skip
        if not size:
            raise ValueError("no room for a chunk")
        return int(size)

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


def seal(chunk: mmap.mmap, number: int) -> None:
    """Give a chunk its number, and its header's checksum."""
    _chunk_seal(address_of(chunk), number)


def unpack(
    codec: int, data: Buffer, offset: int, length: int, out: mmap.mmap | bytearray, size: int
) -> bool:
    """``size`` bytes into ``out`` from the ``length`` bytes at ``offset``; False if those do not
    unpack to just that."""
    if offset + length > len(data) or size > len(out):
        raise ValueError("out of bounds")
    return bool(_unpack(codec, address_of(data) + offset, length, address_of(out), size))


def largest_chunk(pages: int, extent_size: int) -> int:
    """Room that a chunk of so many pages may need, in bytes."""
    return (pages + 2) * PAGE + -(-pages * extent_size // PAGE) * PAGE

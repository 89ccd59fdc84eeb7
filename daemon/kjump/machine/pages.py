# SPDX-License-Identifier: GPL-2.0-or-later
"""Classifying, gathering and scattering pages natively: the ctypes front of ``native/pages.c``.

Runs in the helper; the boot side and the session use parts of it.  The kind of each page is one
byte.
"""

from __future__ import annotations

import ctypes
import mmap

from kjump.machine.native import LIBRARY, POINTER, U64, U64_OUT, address_of
from kjump.machine.ranges import PAGE
from kjump.machine.structpage import Layout

SAVE, FREE, OFFLINE, POISONED, UNACCEPTED, ZERO = range(6)
NAMES = ("data", "free", "offline", "hwpoison", "unaccepted", "zero")
EXTENT = 16
"""Bytes of an extent in a bundle's lists, the same as on the target (`kjump.image.layout`)."""


class _Layout(ctypes.Structure):
    """``struct layout`` of pages.c."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("mapcount", ctypes.c_uint32),
        ("private", ctypes.c_uint32),
        ("buddy", ctypes.c_uint32),
        ("offline", ctypes.c_uint32),
        ("unaccepted", ctypes.c_uint32),
        ("has_offline", ctypes.c_uint32),
        ("has_unaccepted", ctypes.c_uint32),
        ("max_order", ctypes.c_uint32),
        ("hwpoison_bit", ctypes.c_int32),
    )


class _Bundle(ctypes.Structure):
    """``struct bundle`` of kjump.h."""

    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("room", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("zeros", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("data_room", ctypes.c_uint64),
        ("data_used", ctypes.c_uint64),
        ("extents", ctypes.c_void_p),
        ("extents_room", ctypes.c_uint64),
        ("extents_used", ctypes.c_uint64),
    )


_classify = LIBRARY.kj_classify
_classify.argtypes = (POINTER, U64, ctypes.POINTER(_Layout), U64, POINTER)
_classify.restype = U64
_span = LIBRARY.kj_span
_span.argtypes = (POINTER, U64, U64)
_span.restype = U64
_gather = LIBRARY.kj_gather
_gather.argtypes = (POINTER, U64, POINTER, U64, ctypes.POINTER(_Bundle))
_gather.restype = U64
_flagged_blocks = LIBRARY.kj_flagged_blocks
_flagged_blocks.argtypes = (POINTER, U64, U64, U64, POINTER)
_flagged_blocks.restype = None
_count_blocks = LIBRARY.kj_count_blocks
_count_blocks.argtypes = (POINTER, U64, ctypes.c_uint, POINTER, U64)
_count_blocks.restype = None
_scatter = LIBRARY.kj_scatter
_scatter.argtypes = (POINTER, U64, U64_OUT, U64_OUT, POINTER, U64_OUT, POINTER, U64, U64)
_scatter.restype = ctypes.c_int


class Classifier:
    """Classifies struct pages in ascending order, and follows free blocks across calls."""

    def __init__(self, layout: Layout) -> None:
        self._layout = _Layout(
            layout.size,
            layout.flags,
            layout.mapcount,
            layout.private,
            layout.buddy,
            layout.offline or 0,
            layout.unaccepted or 0,
            layout.offline is not None,
            layout.unaccepted is not None,
            layout.max_order,
            -1 if layout.hwpoison_bit is None else layout.hwpoison_bit,
        )
        self._size = layout.size
        self._left = 0

    def restart(self) -> None:
        """Call this before skipping pfns: no free block continues."""
        self._left = 0

    def classify(self, structs: object, offset: int, count: int, kinds: bytearray, at: int) -> None:
        """Write the kinds of ``count`` pages to ``kinds``, starting at index ``at``.  Their struct
        pages begin ``offset`` bytes into ``structs``."""
        if at + count > len(kinds):
            raise ValueError("kinds too short")
        if offset + count * self._size > len(structs):  # type: ignore[arg-type]
            raise ValueError("struct pages too short")
        out = (ctypes.c_char * len(kinds)).from_buffer(kinds)
        self._left = _classify(
            address_of(structs) + offset,
            count,
            ctypes.byref(self._layout),
            self._left,
            ctypes.addressof(out) + at,
        )


def flagged_blocks(flags: bytes | bytearray, size: int, mask: int) -> bytearray:
    """For each block of ``size`` words (u64): 1 if any of them has a bit of ``mask``, else 0."""
    blocks = len(flags) // 8 // size
    out = bytearray(blocks)
    _flagged_blocks(address_of(flags), blocks, size, mask, address_of(out))
    return out


def count_blocks(entries: bytes | bytearray, shift: int, blocks: int) -> list[int]:
    """The number of present pages in each block of ``1 << shift`` pages; ``entries`` are those of
    /proc/PID/pagemap."""
    out = (ctypes.c_uint32 * blocks)()
    _count_blocks(address_of(entries), len(entries) // 8, shift, out, blocks)
    return list(out)


class Kinds:
    """The kinds of consecutive pages, one byte each, at an address that native code can use."""

    def __init__(self, kinds: bytearray) -> None:
        self.kinds = kinds
        self._hold = (ctypes.c_char * len(kinds)).from_buffer(kinds)
        self.address = ctypes.addressof(self._hold)

    def span(self, at: int, end: int, most: int) -> int:
        """How many pages from index ``at`` on make the next chunk, with at most ``most`` pages to
        save."""
        if not 0 <= at <= end <= len(self.kinds):
            raise ValueError("out of bounds")
        return int(_span(self.address + at, end - at, most))


class Bundle:
    """The pages of one chunk in a buffer, and the lists of their extents.  Call `into` first."""

    def __init__(self, room: int) -> None:
        """``room``: in pages."""
        self._room = room
        self._data = mmap.mmap(-1, room * EXTENT)
        # Each page may be an extent of its own, with one of zeros before it.
        extents = 4 * room
        self._extents = mmap.mmap(-1, extents * EXTENT)
        self._native = _Bundle(
            None,
            0,
            0,
            0,
            address_of(self._data),
            room,
            0,
            address_of(self._extents),
            extents,
            0,
        )
        self.data_address = int(self._native.data)

    def into(self, buffer: mmap.mmap, offset: int) -> None:
        """Empty the bundle; the next pages go to this buffer, from byte ``offset`` on."""
        if offset + self._room * PAGE > len(buffer):
            raise ValueError("out of bounds")
        native = self._native
        native.pages, native.room = address_of(buffer) + offset, self._room
        native.used = native.zeros = native.data_used = native.extents_used = 0

    @property
    def pages_address(self) -> int:
        return int(self._native.pages)

    @property
    def used(self) -> int:
        """Pages in the bundle."""
        return int(self._native.used)

    @property
    def zeros(self) -> int:
        """Pages of zeros, which are listed but not copied."""
        return int(self._native.zeros)

    @property
    def data_extents(self) -> int:
        return int(self._native.data_used)

    def extents(self) -> bytes:
        """The list of all pages seen, including pages of zeros, in the form of the target."""
        return self._extents[: self._native.extents_used * EXTENT]

    def gather(
        self, memory: object, offset: int, count: int, kinds: Kinds, at: int, pfn: int
    ) -> int:
        """Take ``count`` pages from byte ``offset`` of ``memory`` on.

        The first page is ``pfn``; the kinds of the pages begin at index ``at``.  Copies pages of
        kind SAVE; pages of zeros become kind ZERO and are only listed.  Returns the number of pages
        handled, which is lower if there was no room for more.
        """
        if offset + count * PAGE > len(memory) or at + count > len(kinds.kinds):  # type: ignore[arg-type]
            raise ValueError("out of bounds")
        return int(
            _gather(
                address_of(memory) + offset,
                count,
                kinds.address + at,
                pfn,
                ctypes.byref(self._native),
            )
        )


class Scatter:
    """Writes pages to where they belong: a list of extents, and how much of it is done."""

    def __init__(self, extents: object, count: int, data: object | None) -> None:
        """``extents``: ``count`` extents in the form of the target; ``data``: their pages, one
        after the other; None: all are pages of zeros."""
        self._extents, self._data = extents, data
        self._count = count
        self._at, self._inside, self._done = U64(), U64(), U64()

    def into(self, view: object, offset: int, first: int, last: int) -> bool:
        """Write the pages that belong to pfns [first, last), whose bytes begin at ``offset`` in
        ``view``.  Returns whether all extents are done."""
        if len(view) < offset + (last - first) * PAGE:  # type: ignore[arg-type]
            raise ValueError("out of bounds")
        left = _scatter(
            address_of(self._extents),
            self._count,
            ctypes.byref(self._at),
            ctypes.byref(self._inside),
            None if self._data is None else address_of(self._data),
            ctypes.byref(self._done),
            address_of(view) + offset,
            first,
            last,
        )
        return not left

    @property
    def at(self) -> tuple[int, int]:
        """The number of the next extent, and how many of its pages are done."""
        return int(self._at.value), int(self._inside.value)

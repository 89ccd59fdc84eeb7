# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of extents, kept in the form of the target.

Pure.  An index may have a hundred thousand extents, and at boot the user is waiting.  So native
code checks and walks them (``native/extents.c``), and an extent becomes a Python object only on
request.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from kjump.errors import ImageDamaged
from kjump.image.layout import DATA, EXTENT, ZERO, Extent
from kjump.machine.native import LIBRARY, POINTER, U64, U64_OUT, address_of
from kjump.machine.ranges import Range

_check = LIBRARY.kj_extents_check
_check.argtypes = (POINTER, U64, U64_OUT, U64_OUT)
_due = LIBRARY.kj_extents_due
_due.argtypes = (POINTER, U64, U64_OUT, U64_OUT, POINTER, U64)
_end = LIBRARY.kj_extents_end
_end.argtypes = (POINTER, U64, U64, U64)
_outside = LIBRARY.kj_extents_outside
_outside.argtypes = (POINTER, U64, POINTER, U64)
_outside.restype = U64
_numbers = LIBRARY.kj_extents_numbers
_numbers.argtypes = (POINTER, U64, POINTER)
_numbers.restype = None
_split = LIBRARY.kj_extents_split
_split.argtypes = (POINTER, U64, U64, POINTER, POINTER)
_split.restype = U64


class Extents(Sequence[Extent]):
    """Extents that ascend without overlap."""

    def __init__(self, table: bytes | bytearray) -> None:
        """``table``: in the form of the target.  Raises `ImageDamaged`."""
        if len(table) % EXTENT.size:
            raise ImageDamaged("The image's page list is cut short.")
        self.table = table
        data, zero = U64(), U64()
        if not _check(address_of(table), len(self), ctypes.byref(data), ctypes.byref(zero)):
            raise ImageDamaged("The image's page list is not in order.")
        self.data_pages, self.zero_pages = int(data.value), int(zero.value)

    @classmethod
    def of(cls, extents: Iterable[Extent]) -> Extents:
        return cls(b"".join(EXTENT.pack(e.pfn, e.pages, e.kind) for e in extents))

    def __len__(self) -> int:
        return len(self.table) // EXTENT.size

    @overload
    def __getitem__(self, at: int) -> Extent: ...
    @overload
    def __getitem__(self, at: slice) -> Extents: ...
    def __getitem__(self, at: int | slice) -> Extent | Extents:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                raise ValueError("a step")
            return Extents(self.table[start * EXTENT.size : stop * EXTENT.size])
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return Extent(*EXTENT.unpack_from(self.table, at % len(self) * EXTENT.size))

    def __iter__(self) -> Iterator[Extent]:
        for entry in EXTENT.iter_unpack(self.table):
            yield Extent(*entry)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Extents):
            return self.table == other.table
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def pages(self) -> int:
        return self.data_pages + self.zero_pages

    @property
    def end(self) -> int:
        """The pfn after the last page; 0 if there is none."""
        if not self:
            return 0
        last = self[-1]
        return last.pfn + last.pages

    def split(self, most: int) -> tuple[Extents, Extents]:
        """The first ``most`` extents of zeros, or all if there are fewer; and all other extents."""
        zeros, rest = bytearray(len(self.table)), bytearray(len(self.table))
        found = _split(address_of(self.table), len(self), most, address_of(zeros), address_of(rest))
        cut = int(found) * EXTENT.size
        return Extents(zeros[:cut]), Extents(rest[: len(self.table) - cut])

    @property
    def zeros(self) -> Extents:
        """The extents of zeros."""
        return self.split(len(self))[0]

    def replaced(self, pfn: int, pages: int, new: Extent | None) -> Extents:
        """The same extents without the pages [pfn, pfn + pages), and with ``new`` in their
        place."""
        size = EXTENT.size
        first = max(0, bisect_right(self, pfn, key=lambda e: e.pfn) - 1)
        parts: list[Extent] = []
        last = first
        while last < len(self) and self[last].pfn < pfn + pages:
            e = self[last]
            parts += [
                Extent(start, end - start, e.kind)
                for start, end in (
                    (e.pfn, min(e.pfn + e.pages, pfn)),
                    (max(e.pfn, pfn + pages), e.pfn + e.pages),
                )
                if start < end
            ]
            last += 1
        if new is not None:
            parts = sorted([*parts, new], key=lambda e: e.pfn)
        middle = b"".join(EXTENT.pack(e.pfn, e.pages, e.kind) for e in parts)
        return Extents(self.table[: first * size] + middle + self.table[last * size :])

    def outside(self, ranges: Iterable[Range]) -> Extent | None:
        """The first extent that does not lie within one of the ascending pfn ranges, or None."""
        flat = [n for pair in ranges for n in pair]
        native = (ctypes.c_uint64 * max(1, len(flat)))(*flat)
        at = _outside(address_of(self.table), len(self), native, len(flat) // 2)
        return self[at] if at < len(self) else None

    def numbers(self, room: int) -> Any:
        """An array of ``room`` u64 that begins with all page frame numbers."""
        if room < self.pages:
            raise ValueError("no room")
        out = (ctypes.c_uint64 * room)()
        _numbers(address_of(self.table), len(self), out)
        return out


class Due:
    """Checks that the chunks contain the data pages of an index, in order."""

    def __init__(self, index: Extents) -> None:
        self._index = index
        self._at, self._inside = U64(), U64()

    def take(self, chunk: Extents) -> None:
        """Raises `ImageDamaged` if these are not the next pages."""
        if not _due(
            address_of(self._index.table),
            len(self._index),
            ctypes.byref(self._at),
            ctypes.byref(self._inside),
            address_of(chunk.table),
            len(chunk),
        ):
            raise ImageDamaged("The image's chunks and its index disagree.")

    def end(self) -> None:
        """Raises `ImageDamaged` if pages are missing."""
        table = address_of(self._index.table)
        if not _end(table, len(self._index), self._at.value, self._inside.value):
            raise ImageDamaged("The image's chunks and its index disagree.")


__all__ = ["DATA", "ZERO", "Due", "Extents"]

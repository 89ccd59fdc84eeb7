# SPDX-License-Identifier: GPL-2.0-or-later
"""The session's memory as the helper sees it: /proc/vmcore.

Runs in the helper only; reads, never writes.  Physical addresses are the session's (and the
helper's: both are identity in the machine).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from kjump.errors import MemoryUnreadable
from kjump.machine.elf import EHDR, PHDR, PT_LOAD, PT_NOTE, ElfSegment, iterate_notes, parse
from kjump.machine.ranges import (
    PAGE,
    Range,
    align_down,
    align_up,
    overlaps,
    subtract,
    whole_pages,
)

NOTES_AT_MOST = 4 << 20


class Vmcore:
    """An open core.  Close it, or use it as a context manager."""

    def __init__(self, path: Path = Path("/proc/vmcore"), hidden: tuple[Range, ...] = ()) -> None:
        """``hidden``: physical ranges whose content is not the session's (the window).

        Raises `MemoryUnreadable`, `DamagedHandoff`.
        """
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MemoryUnreadable(f"The session's memory cannot be opened: {error}.") from error
        self._hidden = hidden
        try:
            segments = self._segments()
        except BaseException:
            self.close()
            raise
        self._notes = [s for s in segments if s.kind == PT_NOTE]
        self.memory = sorted((s for s in segments if s.kind == PT_LOAD), key=lambda s: s.physical)

    def _segments(self) -> list[ElfSegment]:
        head = os.pread(self._fd, EHDR.size, 0)
        count = EHDR.unpack(head)[10] if len(head) == EHDR.size else 0
        return parse(head + os.pread(self._fd, count * PHDR.size, EHDR.size))

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(owner, type, descriptor) of every note."""
        for segment in self._notes:
            data = os.pread(self._fd, min(segment.size, NOTES_AT_MOST), segment.offset)
            yield from iterate_notes(data)

    def readable(self) -> list[Range]:
        """The readable whole pages of the session's memory, in pfns."""
        inside = whole_pages((s.physical, s.physical + s.size) for s in self.memory)
        return [(a // PAGE, b // PAGE) for a, b in subtract(inside, self._hidden)]

    def _segment(self, start: int, size: int) -> ElfSegment:
        if overlaps((start, start + size), self._hidden):
            raise MemoryUnreadable(f"{start:#x} lies in the window, where the helper itself runs.")
        for segment in self.memory:
            if segment.physical <= start and start + size <= segment.physical + segment.size:
                return segment
        raise MemoryUnreadable(f"{start:#x} is not in the session's memory.")

    def read(self, start: int, size: int) -> bytes:
        """Bytes at a physical address.  Raises `MemoryUnreadable`."""
        segment = self._segment(start, size)
        try:
            data = os.pread(self._fd, size, segment.offset + start - segment.physical)
        except OSError as error:
            raise MemoryUnreadable(
                f"The session's memory at {start:#x} cannot be read: {error}."
            ) from error
        if len(data) != size:
            raise MemoryUnreadable(f"The session's memory ends at {start + len(data):#x}.")
        return data

    def map(self, start: int, size: int) -> tuple[mmap.mmap, int]:
        """A read-only mapping of the physical bytes, and the offset of ``start`` in it."""
        segment = self._segment(start, size)
        at = segment.offset + start - segment.physical
        first = align_down(at, PAGE)
        length = align_up(at + size, PAGE) - first
        try:
            view = mmap.mmap(self._fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
        except OSError as error:
            raise MemoryUnreadable(
                f"The session's memory at {start:#x} cannot be mapped: {error}."
            ) from error
        return view, at - first

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Vmcore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

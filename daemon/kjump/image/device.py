# SPDX-License-Identifier: GPL-2.0-or-later
"""A target device, read and written past the page cache.

Runs in all three kernels.  There are two reasons to avoid the cache: the session must never see
blocks that it cached before the helper wrote them, and the helper has no memory to spare.

An image without a partition of its own lies in spans of one: the blocks of a file, or free slots
of a swap area.  Once it knows its spans, a device presents them as one run of bytes from 0 on, so
that code which reads or writes an image need not care.
"""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from kjump.errors import TargetInUse, TargetMissing, TargetWriteFailed
from kjump.image.layout import BLOCK
from kjump.machine.ranges import align_up

PIECE = 1 << 20

ByteSpan = tuple[int, int]
"""Bytes of a device: (offset, length), both in whole blocks."""


class Spans:
    """Spans of a device, one after the other, as one run of bytes.  Pure."""

    def __init__(self, spans: Sequence[ByteSpan]) -> None:
        """``spans``: in the order of the run."""
        self._offsets = [offset for offset, _ in spans]
        self._starts = list(accumulate((length for _, length in spans), initial=0))
        self.size = self._starts.pop()

    def pieces(self, offset: int, length: int) -> Iterator[ByteSpan]:
        """The places of ``length`` bytes from ``offset`` on; fewer at the end of the run."""
        end = min(offset + length, self.size)
        at = bisect_right(self._starts, offset) - 1
        while offset < end:
            inside = offset - self._starts[at]
            following = self._starts[at + 1] if at + 1 < len(self._starts) else self.size
            count = min(end, following) - offset
            yield self._offsets[at] + inside, count
            offset += count
            at += 1


class DirectDevice:
    """An open block device or file.  Offsets and lengths are bytes; writes are whole blocks."""

    def __init__(
        self,
        path: Path,
        *,
        writable: bool = False,
        exclusive: bool = False,
        spans: Sequence[ByteSpan] | None = None,
    ) -> None:
        """``exclusive``: refuse a device that is mounted or held (block devices only).

        ``spans``: see `lay`.  Raises `TargetMissing`, `TargetInUse`.
        """
        self.path = path
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        if exclusive:
            flags |= os.O_EXCL
        try:
            try:
                self.fd = os.open(path, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a file system without direct I/O
                    raise
                self.fd = os.open(path, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise TargetInUse(f"The target {path} is in use.") from error
            raise TargetMissing(f"The target {path} cannot be opened: {error.strerror}.") from error
        self.whole_size = os.lseek(self.fd, 0, os.SEEK_END)
        """Bytes of the device itself, whatever its spans."""
        self.size = self.whole_size
        self._spans: Spans | None = None
        if spans is not None:
            self.lay(spans)

    def lay(self, spans: Sequence[ByteSpan] | None) -> None:
        """From now on byte 0 is the first byte of these spans; None: of the device itself."""
        self._spans = None if spans is None else Spans(spans)
        self.size = self.whole_size if self._spans is None else self._spans.size

    def _pieces(self, offset: int, length: int) -> Iterator[ByteSpan]:
        if self._spans is None:
            return iter(((offset, length),))
        return self._spans.pieces(offset, length)

    def buffer(self, size: int) -> mmap.mmap:
        """Memory aligned for direct I/O: ``size`` bytes, rounded up to whole blocks."""
        return mmap.mmap(-1, align_up(max(size, 1), BLOCK))

    def read_into(self, buffer: mmap.mmap, length: int, offset: int) -> int:
        """Read whole blocks into the buffer's start; returns the bytes read (fewer at the device's
        end).

        ``length`` and ``offset`` are multiples of a block.  Raises OSError.
        """
        done = 0
        with memoryview(buffer) as view:
            for at, count in self._pieces(offset, length):
                first, end = done, done + count
                while done < end:
                    with view[done:end] as rest:
                        got = os.preadv(self.fd, [rest], at + done - first)
                    if got == 0:
                        return done
                    done += got
        return done

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes of the device, fewer at its end.  Raises OSError."""
        first = offset // BLOCK * BLOCK
        span = align_up(offset + length, BLOCK) - first
        with self.buffer(span) as buffer:
            got = self.read_into(buffer, span, first)
            return buffer[offset - first : min(offset - first + length, got)]

    def write_from(self, buffer: mmap.mmap | memoryview, length: int, offset: int) -> None:
        """Write whole blocks from the buffer's start, which is aligned for direct I/O.

        Raises `TargetWriteFailed`.
        """
        done = 0
        try:
            with memoryview(buffer) as view:
                for at, count in self._pieces(offset, length):
                    first, end = done, done + count
                    while done < end:
                        with view[done:end] as rest:
                            done += os.pwritev(self.fd, [rest], at + done - first)
            if done < length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TargetWriteFailed(
                f"Writing to {self.path} failed at byte {offset + done}: {error.strerror}."
            ) from error

    def write(self, offset: int, data: bytes) -> None:
        """Write at a block's start; zeros fill the last block."""
        with self.buffer(len(data)) as buffer:
            buffer[: len(data)] = data
            self.write_from(buffer, len(buffer), offset)

    def flush(self) -> None:
        """Everything written is on the medium after this.  Raises `TargetWriteFailed`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise TargetWriteFailed(f"Flushing {self.path} failed: {error.strerror}.") from error

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> DirectDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

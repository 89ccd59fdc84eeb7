"""A target device, read and written past the page cache.

Runs in all three kernels.  Past the cache for two reasons: the session must never see blocks it
cached before the helper wrote them, and the helper has no memory to spare.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from kjump.errors import TargetInUse, TargetMissing, TargetWriteFailed
from kjump.image.layout import BLOCK
from kjump.machine.ranges import align_up

PIECE = 1 << 20


class Device:
    """An open block device or file.  Offsets and lengths are bytes, in whole blocks to write."""

    def __init__(self, path: Path, *, writable: bool = False, exclusive: bool = False) -> None:
        """``exclusive``: refuse a device that is mounted or held (block devices only).

        Raises `TargetMissing`, `TargetInUse`.
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
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def buffer(self, size: int) -> mmap.mmap:
        """Memory aligned for direct I/O: ``size`` bytes, rounded up to whole blocks."""
        return mmap.mmap(-1, align_up(max(size, 1), BLOCK))

    def read_into(self, buffer: mmap.mmap, length: int, offset: int) -> int:
        """Read whole blocks into the buffer's start; bytes read (fewer at the device's end).

        ``length`` and ``offset`` are multiples of a block.  Raises OSError.
        """
        done = 0
        with memoryview(buffer) as view:
            while done < length:
                with view[done:length] as rest:
                    got = os.preadv(self.fd, [rest], offset + done)
                if got == 0:
                    break
                done += got
        return done

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes of the device, fewer at its end.  Raises OSError."""
        first = offset // BLOCK * BLOCK
        span = align_up(offset + length, BLOCK) - first
        with self.buffer(span) as buffer:
            got = self.read_into(buffer, span, first)
            return buffer[offset - first : min(offset - first + length, got)]

    def write_from(self, buffer: mmap.mmap, length: int, offset: int) -> None:
        """Write whole blocks from the buffer's start.  Raises `TargetWriteFailed`."""
        done = 0
        try:
            with memoryview(buffer) as view:
                while done < length:
                    with view[done:length] as rest:
                        done += os.pwritev(self.fd, [rest], offset + done)
        except OSError as error:
            raise TargetWriteFailed(
                f"Writing to {self.path} failed at byte {offset + done}: {error.strerror}."
            ) from error

    def write(self, offset: int, data: bytes) -> None:
        """Write at a block's start; the last block is filled with zeros."""
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

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

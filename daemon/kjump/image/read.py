# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading an image: superblock, description, index, chunks, each checked before it is used.

Runs in the boot kernel and in the session (``kjumpctl image``).  Whatever the bytes, a reader
raises only errors of `kjump.errors`, and allocates no more than the target's own size allows.
"""

from __future__ import annotations

import mmap
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kjump.errors import ImageDamaged, ImageIncomplete, ImageSpent, NoImage
from kjump.handoff.fields import JsonObject
from kjump.image import codec, superblocks
from kjump.image import description as descriptions
from kjump.image.description import Description, Owner
from kjump.image.device import DirectDevice
from kjump.image.extents import Due, Extents
from kjump.image.layout import (
    BLOCK,
    CHUNK,
    CHUNK_PAGES,
    COMPLETE,
    DESCRIPTION_OFFSET,
    EMPTY,
    EXTENT,
    RAW,
    RESTORER_OFFSET,
    RESTORING,
    SPENT,
    VERSION,
    WRITING,
    ZSTD,
    ChunkHeader,
    Superblock,
    check_chunk_head,
    other_version,
    unpack_chunk_header,
)
from kjump.machine.ranges import PAGE

AHEAD = 2
"""Chunks that are ready in advance, besides those that are being read and unpacked."""


class _Chunks:
    """Hands out the chunks of an image, one after the other, to the threads that read them."""

    def __init__(self, image: Image, index: Extents) -> None:
        if image.superblock.version != VERSION:
            raise other_version(image.superblock.version)
        self._image = image
        self._due = Due(index)
        self._at = image.superblock.chunks_offset
        self._number = 0
        self._head = image.device.buffer(BLOCK)
        self._taking = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Hand out no more chunks."""
        self._stopped = True

    def take(self) -> tuple[int, ChunkHeader] | None:
        """Offset and header of the next chunk; None after the last.  Raises `ImageDamaged`."""
        with self._taking:
            number, at = self._number, self._at
            if self._stopped or number == self._image.superblock.chunks:
                return None
            self._image.read_into(self._head, BLOCK, at, f"Chunk {number} of the image")
            header = unpack_chunk_header(self._head[: CHUNK.size], number)
            self._number += 1
            self._at += header.stored
            return at, header

    def check(self, extents: Extents) -> None:
        """Check the extents of a chunk; call this in the chunks' order.  Raises `ImageDamaged`."""
        self._due.take(extents)

    def end(self) -> None:
        self._due.end()


class Chunk:
    """A chunk in memory: its number, its extents, and ``data``, their pages.

    ``data`` is reused: it is valid only until the chunk is given back.
    """

    def __init__(self, device: DirectDevice) -> None:
        size = codec.largest_chunk(CHUNK_PAGES)
        self._stored = device.buffer(size)
        self._unpacked = mmap.mmap(-1, CHUNK_PAGES * PAGE)
        self.data = memoryview(b"")
        self.number = 0
        self.extents = Extents(b"")

    @property
    def pages(self) -> int:
        return self.extents.data_pages

    def load(self, image: Image, at: int, header: ChunkHeader) -> None:
        """Read, check and unpack.  Raises `ImageDamaged`."""
        name = f"Chunk {header.number} of the image"
        image.read_into(self._stored, header.stored, at, name)
        with memoryview(self._stored) as view, view[: header.stored] as stored:
            table = check_chunk_head(stored, header)
        self.number = header.number
        self.extents = Extents(table)
        if self.extents.data_pages != header.pages or self.extents.zero_pages:
            raise ImageDamaged(f"The page list of chunk {header.number} is damaged.")
        payload = header.payload_offset, header.length
        if codec.checksum(self._stored, *payload) != header.payload_check:
            raise ImageDamaged(f"{name} has a wrong checksum.")
        size = header.pages * PAGE
        if header.codec == RAW and header.length == size:
            # These pages are used where they were read to: another copy would take time.
            self.data = memoryview(self._stored)[header.payload_offset :][:size]
            return
        if not codec.unpack(header.codec, self._stored, *payload, self._unpacked, size):
            raise ImageDamaged(f"{name} cannot be decompressed to its recorded size.")
        self.data = memoryview(self._unpacked)[:size]


class Image:
    """An image on an open device."""

    def __init__(self, device: DirectDevice) -> None:
        """Raises `NoImage` if there is none, `ImageVersion`, `ImageDamaged`."""
        self.device = device
        try:
            found = superblocks.load(device)
        except OSError as error:
            raise ImageDamaged(f"{device.path} cannot be read: {error.strerror}.") from error
        if found is None:
            raise NoImage(f"There is no image on {device.path}.")
        if found.version != VERSION and found.state != SPENT:
            raise other_version(found.version)
        self.superblock: Superblock = found

    def _read(self, offset: int, length: int, what: str) -> bytes:
        if offset + length > self.device.size:
            raise ImageDamaged(f"{what} lies beyond the end of {self.device.path}.")
        try:
            data = self.device.read(offset, length)
        except OSError as error:
            raise ImageDamaged(f"{what} cannot be read: {error.strerror}.") from error
        if len(data) != length:
            raise ImageDamaged(f"{what} is cut short.")
        return data

    def read_into(self, buffer: mmap.mmap, length: int, offset: int, what: str) -> None:
        """Read whole blocks into the buffer's start.  Raises `ImageDamaged`."""
        if offset + length > self.device.size or length > len(buffer):
            raise ImageDamaged(f"{what} lies beyond the end of {self.device.path}.")
        try:
            got = self.device.read_into(buffer, length, offset)
        except OSError as error:
            raise ImageDamaged(f"{what} cannot be read: {error.strerror}.") from error
        if got != length:
            raise ImageDamaged(f"{what} is cut short.")

    def require_complete(self) -> None:
        """Raises `ImageIncomplete`, `ImageSpent` or `NoImage` unless it may be resumed from."""
        state = self.superblock.state
        if state == COMPLETE:
            return
        if state == EMPTY:
            raise NoImage("The target holds no image.")
        if state == WRITING:
            raise ImageIncomplete("The image was not finished.")
        if state == RESTORING:
            raise ImageSpent("An earlier resume from this image did not finish.")
        raise ImageSpent("The image has already been used.")

    def description(self) -> Description:
        """The description, checked.  Raises `ImageDamaged`."""
        return descriptions.unpack(self._description())

    def owner(self) -> Owner:
        """Whose session it is, even if the rest of the description makes no sense.  Raises
        `ImageDamaged`."""
        return descriptions.owner(self._description())

    def _description(self) -> bytes:
        text = self._read(
            DESCRIPTION_OFFSET, self.superblock.description_length, "The image's description"
        )
        if zlib.crc32(text) != self.superblock.description_crc:
            raise ImageDamaged("The image's description has a wrong checksum.")
        return text

    def index(self) -> Extents:
        """All extents, ascending.  Raises `ImageDamaged`."""
        s = self.superblock
        if s.index_size != s.extents * EXTENT.size or s.index_size > self.device.size:
            raise ImageDamaged("The size of the image's index is impossible.")
        packed = self._read(s.index_offset, s.index_length, "The image's index")
        if zlib.crc32(packed) != s.index_crc:
            raise ImageDamaged("The image's index has a wrong checksum.")
        table = bytearray(s.index_size)
        if not codec.unpack(ZSTD, packed, 0, len(packed), table, len(table)):
            raise ImageDamaged("The image's index cannot be decompressed to its recorded size.")
        extents = Extents(table)
        if extents.data_pages != s.data_pages or extents.zero_pages != s.zero_pages:
            raise ImageDamaged("The image's index and superblock disagree.")
        return extents

    def restorer(self) -> tuple[bytes, bytes] | None:
        """Kernel (bzImage) and initrd that restore in place, or None.  Raises `ImageDamaged`."""
        s = self.superblock
        if not s.kernel_length or not s.initrd_length:
            return None
        kernel = self._read(RESTORER_OFFSET, s.kernel_length, "The restorer's kernel")
        initrd = self._read(s.initrd_offset, s.initrd_length, "The restorer's initrd")
        if zlib.crc32(kernel) != s.kernel_crc or zlib.crc32(initrd) != s.initrd_crc:
            raise ImageDamaged("The restorer in the image has a wrong checksum.")
        return kernel, initrd

    def chunks(self, index: Extents, *, processors: int = 1) -> Iterator[Chunk]:
        """Every chunk in order, each checked, also against the ``index``.

        A chunk's pages are valid only until the next chunk is requested; meanwhile threads read and
        unpack others.  Raises `ImageDamaged`.
        """
        chunks = _Chunks(self, index)
        free: queue.Queue[Chunk | None] = queue.Queue()
        ready: queue.Queue[Chunk | BaseException | None] = queue.Queue()
        for _ in range(processors + AHEAD):
            free.put(Chunk(self.device))

        def work() -> None:
            try:
                # Take a buffer first: the thread whose chunk is next must have one.
                while (chunk := free.get()) is not None:
                    if (taken := chunks.take()) is None:
                        break
                    chunk.load(self, *taken)
                    ready.put(chunk)
                ready.put(None)
            except BaseException as error:  # noqa: BLE001 (another thread raises it)
                ready.put(error)

        threads = [
            threading.Thread(target=work, name=f"read {n}", daemon=True) for n in range(processors)
        ]
        for thread in threads:
            thread.start()
        early: dict[int, Chunk] = {}
        running, number = processors, 0
        try:
            while running:
                found = ready.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    running -= 1
                    continue
                early[found.number] = found
                while (chunk := early.pop(number, None)) is not None:
                    chunks.check(chunk.extents)
                    yield chunk
                    free.put(chunk)
                    number += 1
            chunks.end()
        finally:
            chunks.stop()
            for _ in threads:
                free.put(None)
            # What comes next may freeze the threads at any point.
            for thread in threads:
                thread.join()

    def each(self, index: Extents, use: Callable[[Chunk], None], *, processors: int = 1) -> None:
        """Call ``use`` with every checked chunk, in several threads and in any order.

        Raises `ImageDamaged`, and what ``use`` raises.
        """
        chunks = _Chunks(self, index)
        turn = threading.Condition()
        due = 0
        failure: BaseException | None = None

        def check(chunk: Chunk) -> bool:
            nonlocal due
            with turn:
                turn.wait_for(lambda: failure is not None or due == chunk.number)
                if failure is not None:
                    return False
                chunks.check(chunk.extents)
                due += 1
                turn.notify_all()
                return True

        def work() -> None:
            nonlocal failure
            try:
                chunk = Chunk(self.device)
                while failure is None and (taken := chunks.take()) is not None:
                    chunk.load(self, *taken)
                    if not check(chunk):
                        return
                    use(chunk)
            except BaseException as error:  # noqa: BLE001 (another thread raises it)
                with turn:
                    failure = failure or error
                    turn.notify_all()

        # One thread more than processors: it reads while the others unpack.
        threads = [
            threading.Thread(target=work, name=f"read {n}", daemon=True)
            for n in range(processors + 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failure is not None:
            raise failure
        chunks.end()


def describe(path: Path, opened: DirectDevice | None = None) -> JsonObject:
    """What ``kjumpctl image info`` shows.  Raises the errors of `Image` and `DirectDevice`."""
    with opened or DirectDevice(path) as device:
        image = Image(device)
        s = image.superblock
        out: dict[str, object] = {
            "target": str(path),
            "state": s.state_name,
            "cycle": str(s.cycle),
            "changed": s.changed,
            "outcome": s.outcome.to_json(),
            "pages": {"data": s.data_pages, "zero": s.zero_pages},
            "chunks": s.chunks,
            "size": s.end,
            "target_size": device.size,
        }
        if s.description_length:
            out["description"] = image.description().to_json()
    return out

"""Reading an image: superblock, description, index, chunks, each checked before it is believed.

Runs in the boot kernel and in the session (``kjumpctl image``).  Whatever the bytes, a reader
raises an error of `kjump.errors` and allocates no more than the target's own size allows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zstandard

from kjump.errors import ImageDamaged, ImageIncomplete, ImageSpent, NoImage
from kjump.image import superblocks
from kjump.image.device import Device
from kjump.image.layout import (
    BLOCK,
    CHUNK,
    COMPLETE,
    DATA,
    DESCRIPTION_OFFSET,
    EMPTY,
    EXTENT,
    RAW,
    RESTORER_OFFSET,
    RESTORING,
    WRITING,
    Extent,
    Superblock,
    check_chunk,
    unpack_chunk_header,
    unpack_extents,
)
from kjump.machine.ranges import PAGE, align_up


def _unzstd(data: bytes | memoryview, size: int, what: str) -> bytes:
    """Decompress to exactly ``size`` bytes; never more memory than that."""
    try:
        if zstandard.frame_content_size(data) != size:
            raise ImageDamaged(f"{what} has another size than the image says.")
        out: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ImageDamaged(f"{what} cannot be decompressed: {error}.") from error
    if len(out) != size:
        raise ImageDamaged(f"{what} has another size than the image says.")
    return out


class _Due:
    """The data pages an index promises, in order, as the chunks bring them."""

    def __init__(self, index: Sequence[Extent]) -> None:
        self._left = iter([e for e in index if e.kind == DATA])
        self._pfn = self._end = 0

    def take(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            first, last = extent.pfn, extent.pfn + extent.pages
            while first < last:
                if self._pfn == self._end:
                    following = next(self._left, Extent(-1, 0))
                    self._pfn, self._end = following.pfn, following.pfn + following.pages
                if first != self._pfn:
                    raise ImageDamaged("The image's chunks and its index disagree.")
                first = self._pfn = min(last, self._end)

    def end(self) -> None:
        if self._pfn != self._end or next(self._left, None) is not None:
            raise ImageDamaged("The image's chunks and its index disagree.")


class Image:
    """An image on an open device."""

    def __init__(self, device: Device) -> None:
        """Raises `NoImage` where there is none, `ImageVersion`, `ImageDamaged`."""
        self.device = device
        try:
            found = superblocks.load(device)
        except OSError as error:
            raise ImageDamaged(f"{device.path} cannot be read: {error.strerror}.") from error
        if found is None:
            raise NoImage(f"There is no image on {device.path}.")
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
            raise ImageSpent("An earlier resume from this image did not come to its end.")
        raise ImageSpent("The image was used already.")

    def description(self) -> dict[str, Any]:
        """The description (JSON object).  Raises `ImageDamaged`."""
        text = self._read(
            DESCRIPTION_OFFSET, self.superblock.description_length, "The image's description"
        )
        if zlib.crc32(text) != self.superblock.description_crc:
            raise ImageDamaged("The image's description has a wrong checksum.")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ImageDamaged("The image's description is not JSON.") from error
        if not isinstance(found, dict):
            raise ImageDamaged("The image's description is not an object.")
        return found

    def index(self) -> list[Extent]:
        """All extents, ascending.  Raises `ImageDamaged`."""
        s = self.superblock
        if s.index_size != s.extents * EXTENT.size or s.index_size > self.device.size:
            raise ImageDamaged("The size of the image's index is impossible.")
        packed = self._read(s.index_offset, s.index_length, "The image's index")
        if zlib.crc32(packed) != s.index_crc:
            raise ImageDamaged("The image's index has a wrong checksum.")
        extents = unpack_extents(_unzstd(packed, s.index_size, "The image's index"))
        data = sum(e.pages for e in extents if e.kind == DATA)
        if data != s.data_pages or sum(e.pages for e in extents) != data + s.zero_pages:
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

    def chunks(self, index: Sequence[Extent]) -> Iterator[tuple[list[Extent], bytes]]:
        """(extents, pages) of every chunk, in order, each checked, and against the ``index`` too.

        Raises `ImageDamaged`.
        """
        due = _Due(index)
        at = self.superblock.chunks_offset
        for number in range(self.superblock.chunks):
            head = self._read(at, BLOCK, f"Chunk {number} of the image")
            header = unpack_chunk_header(head[: CHUNK.size], number)
            data = memoryview(head)
            if header.stored > BLOCK:
                data = memoryview(self._read(at, header.stored, f"Chunk {number} of the image"))
            extents = check_chunk(bytes(data[: header.payload_offset + header.length]), header)
            due.take(extents)
            payload = data[header.payload_offset : header.payload_offset + header.length]
            size = header.pages * PAGE
            if header.codec == RAW:
                if header.length != size:
                    raise ImageDamaged(f"Chunk {number} of the image has a wrong size.")
                yield extents, bytes(payload)
            else:
                yield extents, _unzstd(payload, size, f"Chunk {number} of the image")
            at += align_up(header.stored, BLOCK)
        due.end()


def describe(path: Path, opened: Device | None = None) -> dict[str, Any]:
    """What ``kjumpctl image info`` shows.  Raises as `Image` and `Device` do."""
    with opened or Device(path) as device:
        image = Image(device)
        s = image.superblock
        out: dict[str, Any] = {
            "target": str(path),
            "state": s.state_name,
            "cycle": str(s.cycle),
            "changed": s.changed,
            "outcome": dict(s.outcome),
            "pages": {"data": s.data_pages, "zero": s.zero_pages},
            "chunks": s.chunks,
            "size": s.end,
            "target_size": device.size,
        }
        if s.description_length:
            out["description"] = image.description()
    return out

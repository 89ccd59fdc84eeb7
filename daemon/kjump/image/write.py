"""Writing an image, front to back.

Runs in the helper.  Compression happens in the caller's thread, writing in one of its own, with a
few chunks in flight; zstandard and pwritev both leave the interpreter free meanwhile.
"""

from __future__ import annotations

import json
import mmap
import queue
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import zstandard

from kjump.errors import HelperFailed, KjumpError, TargetTooSmall, TargetWriteFailed
from kjump.image import superblocks
from kjump.image.device import Device
from kjump.image.layout import (
    BLOCK,
    CHUNK_PAGES,
    COMPLETE,
    DATA,
    DESCRIPTION_OFFSET,
    DESCRIPTION_ROOM,
    EXTENT,
    RAW,
    WRITING,
    ZSTD,
    Extent,
    Superblock,
    pack_chunk_head,
    pack_extents,
)
from kjump.machine.ranges import PAGE, align_up

IN_FLIGHT = 3
LARGEST_CHUNK = align_up(64 + CHUNK_PAGES * (PAGE + EXTENT.size), BLOCK)


class Writer:
    """Writes one image.  `begin`, then `chunk` in ascending order of pfn, then `commit`."""

    def __init__(self, device: Device, superblock: Superblock, *, level: int) -> None:
        """``superblock``: what the session prepared; ``level``: of zstd."""
        self._device = device
        self._superblock = superblock
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._at = superblock.chunks_offset
        self._chunks = 0
        self._free: queue.Queue[mmap.mmap] = queue.Queue()
        self._full: queue.Queue[tuple[mmap.mmap, int, int] | None] = queue.Queue()
        for _ in range(IN_FLIGHT):
            self._free.put(device.buffer(LARGEST_CHUNK))
        self._error: KjumpError | None = None
        self._thread: threading.Thread | None = None

    def begin(self, description: Mapping[str, Any]) -> None:
        """State `writing`, and the description, on the medium.

        Raises `TargetWriteFailed`, `HelperFailed` for a description that is too long.
        """
        text = json.dumps(description, separators=(",", ":")).encode()
        if len(text) > DESCRIPTION_ROOM:
            raise HelperFailed(f"The image's description has {len(text)} bytes.")
        self._superblock = superblocks.store(
            self._device,
            self._superblock,
            state=WRITING,
            description_length=len(text),
            description_crc=zlib.crc32(text),
            outcome={},
        )
        self._device.write(DESCRIPTION_OFFSET, text)
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def chunk(self, extents: Sequence[Extent], pages: memoryview) -> int:
        """Queue a chunk: the data extents and their pages.  Bytes it takes on the target.

        Raises `TargetTooSmall`, or the `TargetWriteFailed` of an earlier chunk.
        """
        count = len(pages) // PAGE
        packed: bytes | memoryview[int] = self._compressor.compress(pages)
        codec = ZSTD
        if len(packed) >= len(pages):
            packed, codec = pages, RAW
        head = pack_chunk_head(self._chunks, extents, count, codec, packed)
        size = align_up(len(head) + len(packed), BLOCK)
        self._check_room(size)
        buffer = self._free.get()
        if self._error is not None:
            raise self._error
        buffer[: len(head)] = head
        buffer[len(head) : len(head) + len(packed)] = packed
        buffer[len(head) + len(packed) : size] = bytes(size - len(head) - len(packed))
        self._full.put((buffer, size, self._at))
        self._at += size
        self._chunks += 1
        return size

    def _check_room(self, size: int) -> None:
        if self._at + size > self._device.size:
            raise TargetTooSmall(
                f"The target {self._device.path} has {self._device.size >> 20} MiB, and the"
                f" image does not fit."
            )

    def _write(self) -> None:
        while (item := self._full.get()) is not None:
            buffer, size, at = item
            if self._error is None:
                try:
                    self._device.write_from(buffer, size, at)
                except TargetWriteFailed as error:
                    self._error = error
            self._free.put(buffer)

    def _drain(self) -> None:
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def commit(self, extents: Sequence[Extent]) -> Superblock:
        """Write the index, flush, and only then state `complete`.

        ``extents``: all of them, data and zero, ascending.  Raises `TargetWriteFailed`,
        `TargetTooSmall`.
        """
        self._drain()
        if self._error is not None:
            raise self._error
        table = pack_extents(extents)
        index = self._compressor.compress(table)
        size = align_up(len(index), BLOCK)
        self._check_room(size)
        self._device.write(self._at, index)
        self._device.flush()
        complete = replace(
            self._superblock,
            chunks=self._chunks,
            index_offset=self._at,
            index_length=len(index),
            index_crc=zlib.crc32(index),
            index_size=len(table),
            extents=len(extents),
            data_pages=sum(e.pages for e in extents if e.kind == DATA),
            zero_pages=sum(e.pages for e in extents if e.kind != DATA),
            end=self._at + size,
        )
        self._superblock = superblocks.store(self._device, complete, state=COMPLETE)
        return self._superblock

    def abandon(self) -> None:
        """Stop the writing thread; the image stays `writing`, which nobody resumes from."""
        self._drain()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing an image, front to back, with all processors and several writes in flight.

Runs in the helper.  The work is cut into spans, each of which makes at most one chunk.  A thread
takes the next span, gathers its pages, compresses them, waits for its turn to get a place on the
target (chunks lie in the order of their spans), and writes.  There are as many sets of buffers for
compressing as processors, and a few threads more, whose writes are in flight.

`kjump.image.choice` decides along the way how hard to compress.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from kjump.errors import HelperFailed, KjumpError, TargetTooSmall
from kjump.handoff.report import Report
from kjump.image import choice, codec, superblocks
from kjump.image.description import Description
from kjump.image.device import DirectDevice
from kjump.image.extents import Extents
from kjump.image.layout import (
    BLOCK,
    CHUNK_PAGES,
    COMPLETE,
    DESCRIPTION_OFFSET,
    DESCRIPTION_ROOM,
    LZ4,
    RAW,
    WRITING,
    ZSTD,
    Superblock,
)
from kjump.machine.pages import Bundle
from kjump.machine.ranges import PAGE, align_up

IN_FLIGHT = 3
"""Writes in flight while others compress: enough to keep a disk busy."""
SPARE = 64 << 20
"""Bytes of the target that uncompressed chunks leave free."""
SPAN_PAGES = 512
"""Most pages of a chunk that the helper writes: 2 MiB.  The format allows twice as many, but a full
machine has little memory to spare for the helper."""
LEAD = codec.lead(SPAN_PAGES)
"""Offset of a chunk's pages in a buffer: before them is room for header and extents."""
CODECS = {choice.NONE: RAW, choice.ZSTD: ZSTD, choice.LZ4: LZ4}
STEPS = ("wait for a buffer", "gather", "pack", "wait for its turn", "write")
"""What a thread does with a span, one after the other."""

assert SPAN_PAGES <= CHUNK_PAGES

Span = TypeVar("Span")


class _OrderedWork(Generic[Span]):
    """Hands out spans one by one with their numbers, and turns in the order of the numbers."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = iter(spans)
        self._next = self._turn = 0
        self._taking = threading.Lock()
        self._turns = threading.Condition()
        self._stopped = False

    def take(self) -> tuple[int, Span] | None:
        """The next span and its number; None if there is none, or the work was stopped."""
        with self._taking:
            if self._stopped:
                return None
            for span in self._spans:
                self._next += 1
                return self._next - 1, span
            return None

    def wait(self, number: int) -> bool:
        """Wait for this number's turn; False if the work was stopped."""
        with self._turns:
            self._turns.wait_for(lambda: self._stopped or self._turn == number)
            return not self._stopped

    def done(self) -> None:
        """The turn goes to the next number."""
        with self._turns:
            self._turn += 1
            self._turns.notify_all()

    def stop(self) -> None:
        with self._turns:
            self._stopped = True
            self._turns.notify_all()


class _StepTimes:
    """How long a thread takes for each of its steps, in seconds."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self._since = time.monotonic()

    def lap(self, step: str) -> None:
        """This step has just ended; it began when the one before ended."""
        now = time.monotonic()
        self.seconds[step] += now - self._since
        self._since = now


class _WorkerBuffers:
    """What a thread needs to make a chunk; there is one set for each processor."""

    def __init__(self, spare: mmap.mmap) -> None:
        """``spare``: a buffer for compressed pages."""
        self.packer = codec.Packer()
        self.bundle = Bundle(SPAN_PAGES)
        self.spare = spare


class Writer:
    """Writes one image: `begin`, then `fill`, then `commit`."""

    def __init__(
        self,
        device: DirectDevice,
        superblock: Superblock,
        *,
        level: int = 1,
        compression: str = "auto",
    ) -> None:
        """``superblock``: the one that the session prepared; ``level``: for zstd; ``compression``:
        one of `kjump.handoff.documents.COMPRESSIONS`."""
        self._device = device
        self._superblock = superblock
        self._level = level
        self._compression = compression
        self._at = superblock.chunks_offset
        self._chunks = 0
        self._tables: list[bytes] = []
        self._left = 0
        self._choice = choice.Choice(1)
        self._counting = threading.Lock()
        self._error: BaseException | None = None
        self.codecs = dict.fromkeys(CODECS, 0)
        """Number of chunks for which each compression was chosen."""
        self.profile = dict.fromkeys(STEPS, 0.0)
        """Seconds of each step, summed over all threads."""

    def begin(self, description: Description) -> None:
        """Write the description, and set the state `writing`.

        Raises `TargetWriteFailed`, `HelperFailed` for a description that is too long.
        """
        text = description.pack()
        if len(text) > DESCRIPTION_ROOM:
            raise HelperFailed(f"The image's description has {len(text)} bytes.")
        self._superblock = superblocks.store(
            self._device,
            self._superblock,
            state=WRITING,
            description_length=len(text),
            description_crc=zlib.crc32(text),
            outcome=Report(),
        )
        self._device.write(DESCRIPTION_OFFSET, text)

    def fill(
        self,
        spans: Iterable[Span],
        gather: Callable[[Span, Bundle], None],
        *,
        processors: int = 1,
        progress: Callable[[int], None] = lambda pages: None,
        expected: int = 0,
    ) -> None:
        """Write the chunks of all spans, in order.

        ``expected``: bytes of data in all spans, as far as known; 0: store pages uncompressed only
        if they do not compress.
        ``gather`` puts a span's pages, at most `SPAN_PAGES`, into an empty bundle; several threads
        call it at once.  ``progress`` gets the number of pages of each span, including pages of
        zeros.  Raises what ``gather`` raises, `TargetTooSmall`, `TargetWriteFailed`.
        """
        line = _OrderedWork(spans)
        self._left = expected
        self._choice = choice.Choice(processors)
        desks: queue.Queue[_WorkerBuffers] = queue.Queue()
        for _ in range(processors):
            desks.put(_WorkerBuffers(self._buffer()))

        def work() -> None:
            buffer = self._buffer()
            laps = _StepTimes()
            try:
                while True:
                    # This comes before the span: the thread with the next turn must have its desk.
                    desk = desks.get()
                    laps.lap("wait for a buffer")
                    try:
                        if (taken := line.take()) is None:
                            break
                        number, span = taken
                        buffer, packed, table = self._pack(desk, span, gather, buffer, laps)
                        pages = desk.bundle.used + desk.bundle.zeros
                    finally:
                        desks.put(desk)
                    if not line.wait(number):
                        break
                    laps.lap("wait for its turn")
                    self._tables.append(table)
                    at = self._place(buffer, packed) if packed else 0
                    line.done()
                    if packed:
                        self._write(buffer, packed, at)
                    progress(pages)
                    laps.lap("write")
                with self._counting:
                    for step, seconds in laps.seconds.items():
                        self.profile[step] += seconds
            except BaseException as error:  # noqa: BLE001 (another thread raises it)
                if self._error is None:
                    self._error = error
                line.stop()

        # Daemon threads: a write that hangs must not keep the helper from returning in time.
        threads = [
            threading.Thread(target=work, name=f"copy {n}", daemon=True)
            for n in range(processors + IN_FLIGHT)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # With a time-out, so that Python can handle the deadline's signal meanwhile.
                while thread.is_alive():
                    thread.join(0.5)
        finally:
            line.stop()
        if self._error is not None:
            raise self._error
        while not desks.empty():
            desks.get().packer.close()

    def _buffer(self) -> mmap.mmap:
        return self._device.buffer(codec.largest_chunk(SPAN_PAGES))

    def _pack(
        self,
        desk: _WorkerBuffers,
        span: Span,
        gather: Callable[[Span, Bundle], None],
        buffer: mmap.mmap,
        laps: _StepTimes,
    ) -> tuple[mmap.mmap, codec.Packed | None, bytes]:
        """Make the span's chunk, if the span has data.  Returns the buffer that holds it, which is
        ``buffer`` or the desk's (the desk keeps the other), the chunk, and the extents of all the
        span's pages."""
        begun = time.thread_time()
        bundle = desk.bundle
        bundle.into(buffer, LEAD)
        gather(span, bundle)
        laps.lap("gather")
        if not bundle.used:
            return buffer, None, bundle.extents()
        size = bundle.used * PAGE
        chosen = self._choose(size)
        packed = desk.packer.chunk(bundle, CODECS[chosen], self._level, buffer, desk.spare, LEAD)
        if packed.moved:
            buffer, desk.spare = desk.spare, buffer
        self._choice.packed(chosen, size, packed.size, time.thread_time() - begun)
        with self._counting:
            self.codecs[chosen] += 1
        laps.lap("pack")
        return buffer, packed, bundle.extents()

    def _choose(self, size: int) -> str:
        """The compression for the next ``size`` bytes of pages."""
        with self._counting:
            left = self._left
            self._left -= size
        if self._compression != "auto":
            return self._compression
        # Besides the pages: heads, chunks that wait for their turn, and the index at the end.
        needed = left + left // 64 + SPARE
        return self._choice.choose(roomy=left > 0 and self._at + needed <= self._device.size)

    def _place(self, buffer: mmap.mmap, packed: codec.Packed) -> int:
        """Give a chunk its number and its place on the target; returns the place.  Call this only
        in this thread's turn."""
        at = self._at
        self._check_room(packed.size)
        codec.seal(buffer, packed.start, self._chunks)
        self._chunks += 1
        self._at += packed.size
        return at

    def _write(self, buffer: mmap.mmap, packed: codec.Packed, at: int) -> None:
        self._choice.begins()
        try:
            with memoryview(buffer) as whole, whole[packed.start :][: packed.size] as part:
                self._device.write_from(part, packed.size, at)
        finally:
            self._choice.ends(packed.size, time.monotonic())

    def _check_room(self, size: int) -> None:
        if self._at + size > self._device.size:
            raise TargetTooSmall(
                f"The target {self._device.path} has {self._device.size >> 20} MiB, and the"
                f" image does not fit."
            )

    def commit(
        self, more: Extents | None = None, *, before: Callable[[], None] = lambda: None
    ) -> Superblock:
        """Write the index, flush, and only then state `complete`.

        ``more``: extents of zeros behind all that was filled.  ``before`` is called at the last
        moment before the state is written: from then on an error does not mean that the image is
        not complete.  Raises `TargetWriteFailed`, `TargetTooSmall`, `HelperFailed`.
        """
        if more is not None:
            self._tables.append(bytes(more.table))
        try:
            extents = Extents(b"".join(self._tables))
        except KjumpError as error:
            raise HelperFailed("The pages were not copied in order.") from error
        packer = codec.Packer()
        index = packer.frame(extents.table, self._level)
        packer.close()
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
            index_size=len(extents.table),
            extents=len(extents),
            data_pages=extents.data_pages,
            zero_pages=extents.zero_pages,
            end=self._at + size,
        )
        before()
        self._superblock = superblocks.store(self._device, complete, state=COMPLETE)
        return self._superblock

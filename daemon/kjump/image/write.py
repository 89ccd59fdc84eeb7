# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing an image, front to back, with all processors and several writes in flight.

Runs in the helper.  Never writes anywhere but to the target.  The work is cut into spans, each of
which makes a chunk at most.  A thread takes the next span, brings its pages together, compresses
them, waits for its turn to be given a place on the target (chunks lie in the order of their spans),
and writes.  There are as many sets of buffers to compress in as processors, and a few threads more
than those, whose writes are under way.

How hard to compress is found out as it goes: `kjump.image.choice`.
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
"""Writes under way beside the compressing: enough to keep a disk busy."""
SPARE = 64 << 20
"""Bytes of the target that are left alone by what is not compressed."""
SPAN_PAGES = 512
"""Pages a chunk of ours holds at most: 2 MiB.  The format allows twice as many; the helper's memory
is what a full machine has to spare."""
LEAD = codec.lead(SPAN_PAGES)
"""Where the pages of a chunk are in a buffer: before them is room for header and extents."""
CODECS = {choice.NONE: RAW, choice.ZSTD: ZSTD, choice.LZ4: LZ4}
STEPS = ("wait for a buffer", "gather", "pack", "wait for its turn", "write")
"""What a thread does with a span, one after the other."""

assert SPAN_PAGES <= CHUNK_PAGES

Span = TypeVar("Span")


class _OrderedWork(Generic[Span]):
    """Spans, given out one by one with their numbers, and turns in the order of the numbers."""

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
        """This step has just ended; it began where the one before ended."""
        now = time.monotonic()
        self.seconds[step] += now - self._since
        self._since = now


class _WorkerBuffers:
    """What a thread needs to make a chunk; there are as many as processors."""

    def __init__(self, spare: mmap.mmap) -> None:
        """``spare``: a buffer, for what is compressed."""
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
        """``superblock``: what the session prepared; ``level``: of zstd; ``compression``: one of
        `kjump.handoff.documents.COMPRESSIONS`."""
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
        """Chunks for which each compression was chosen."""
        self.profile = dict.fromkeys(STEPS, 0.0)
        """Seconds of each step, those of all threads together."""

    def begin(self, description: Description) -> None:
        """State `writing`, and the description, on the medium.

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
        """Write the chunks of all spans, in their order.

        ``expected``: bytes of data in all spans, as far as known; 0: pages are only stored as they
        are if they do not compress.
        ``gather`` puts a span's pages, `SPAN_PAGES` at most, into an empty bundle; it is called in
        several threads at once.  ``progress`` gets the number of pages of each span, those of zeros
        included.  Raises what ``gather`` raises, `TargetTooSmall`, `TargetWriteFailed`.
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
                    # It comes before the span: who has the first turn must have all it needs.
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

        # Daemons: a write that hangs must not keep the helper from going back in time.
        threads = [
            threading.Thread(target=work, name=f"copy {n}", daemon=True)
            for n in range(processors + IN_FLIGHT)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                # With a time-out, so that the deadline's signal is heard meanwhile.
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
        """The span's chunk, if it has data, and the buffer that it is in now: ``buffer`` or the
        desk's, which keeps the other one; and the extents of all its pages."""
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
        # Beside the pages: heads, chunks that wait for their turn, and the index at the end.
        needed = left + left // 64 + SPARE
        return self._choice.choose(roomy=left > 0 and self._at + needed <= self._device.size)

    def _place(self, buffer: mmap.mmap, packed: codec.Packed) -> int:
        """Give a chunk its number and its place on the target, which is returned; it is this
        thread's turn."""
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

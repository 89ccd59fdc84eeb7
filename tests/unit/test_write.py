# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer's threads: order, errors, and how hard is compressed."""

from __future__ import annotations

import mmap
import random
import threading
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import MemoryUnreadable, TargetWriteFailed
from kjump.image import codec, prepare, superblocks, write
from kjump.image.device import DirectDevice
from kjump.image.layout import LZ4, RAW, ZSTD, unpack_chunk_header
from kjump.image.read import Image
from kjump.image.write import Writer
from kjump.machine.pages import Bundle
from kjump.machine.ranges import PAGE

from . import imaging, samples

RNG = random.Random(5)
CYCLE = uuid.UUID(int=9)
TEXT = (b"All happy families are alike; " * 150)[:PAGE]


def device(tmp_path: Path, kind: type[DirectDevice] = DirectDevice) -> DirectDevice:
    path = imaging.prepared(tmp_path / "target", 64 << 20)
    prepare.prepare_target(path, cycle_id=CYCLE, hostname="h")
    return kind(path, writable=True)


def writer(opened: DirectDevice, compression: str = "auto") -> Writer:
    found = superblocks.load(opened)
    assert found is not None
    made = Writer(opened, found, compression=compression)
    made.begin(samples.DESCRIPTION)
    return made


def test_chunks_lie_in_the_order_of_their_spans_whoever_is_first(tmp_path: Path) -> None:
    spans = [(n * 10, RNG.randbytes(PAGE * (n % 7 + 1))) for n in range(60)]

    def slow(span: tuple[int, bytes | int], bundle: Bundle) -> None:
        time.sleep(random.random() / 200)
        imaging.gather(span, bundle)

    seen: list[int] = []
    with device(tmp_path) as opened:
        made = writer(opened)
        made.fill(spans, slow, processors=4, progress=seen.append)
        done = made.commit()
        assert done.chunks == 60 and sum(seen) == done.data_pages
        image = Image(opened)
        found = dict(imaging.content(image, image.index(), processors=3))
    assert found == {
        pfn + i: data[i * PAGE : (i + 1) * PAGE]
        for pfn, data in spans
        for i in range(len(data) // PAGE)
    }


def test_what_gather_raises_comes_out_and_all_threads_end(tmp_path: Path) -> None:
    def broken(span: tuple[int, bytes | int], bundle: Bundle) -> None:
        if span[0] == 50:
            raise MemoryUnreadable("page 50")
        imaging.gather(span, bundle)

    with device(tmp_path) as opened:
        made = writer(opened)
        with pytest.raises(MemoryUnreadable, match="page 50"):
            made.fill([(n, TEXT) for n in range(200)], broken, processors=3)
        assert Image(opened).superblock.state_name == "writing"
    deadline = time.monotonic() + 5
    while any(t.name.startswith("copy ") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Failing(DirectDevice):
    """Takes a few chunks, then fails."""

    writes = 0

    def write_from(self, buffer: mmap.mmap | memoryview, length: int, offset: int) -> None:
        self.writes += 1
        if self.writes > 12:
            raise TargetWriteFailed("broken disk")
        super().write_from(buffer, length, offset)


def test_a_write_that_fails_ends_the_copy(tmp_path: Path) -> None:
    with device(tmp_path, Failing) as opened:
        made = writer(opened)
        with pytest.raises(TargetWriteFailed):
            made.fill([(n, TEXT) for n in range(500)], imaging.gather, processors=2)


class Waiting(DirectDevice):
    """A disk far slower than compressing is, on a busy machine, too."""

    def write_from(self, buffer: mmap.mmap | memoryview, length: int, offset: int) -> None:
        time.sleep(0.1)
        super().write_from(buffer, length, offset)


class Narrow(DirectDevice):
    """One that serves writes one after the other, as a disk's transfer rate does."""

    serving = threading.Lock()

    def write_from(self, buffer: mmap.mmap | memoryview, length: int, offset: int) -> None:
        with self.serving:
            time.sleep(0.02)
            super().write_from(buffer, length, offset)


def test_what_is_slow_is_found_out(tmp_path: Path) -> None:
    spans = [(n * 100, TEXT * 64) for n in range(60)]
    with device(tmp_path, Narrow) as opened:
        made = writer(opened)
        made.fill(spans, imaging.gather, processors=2, expected=1)
        assert made.codecs["none"] < 20, made.codecs

    def slow(span: tuple[int, bytes | int], bundle: Bundle) -> None:
        while made._choice._writing:  # longer than a write takes
            time.sleep(0.001)
        imaging.gather(span, bundle)

    with device(tmp_path) as opened:
        made = writer(opened)
        made.fill(spans, slow, processors=1)
        assert made.codecs["lz4"] > 50, made.codecs


def test_no_more_writes_are_under_way_than_there_are_buffers(tmp_path: Path) -> None:
    class Counting(Waiting):
        now = most = 0
        lock = threading.Lock()

        def write_from(self, buffer: mmap.mmap | memoryview, length: int, offset: int) -> None:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            super().write_from(buffer, length, offset)
            with self.lock:
                self.now -= 1

    with device(tmp_path, Counting) as opened:
        made = writer(opened)
        made.fill([(n * 100, TEXT * 64) for n in range(40)], imaging.gather, processors=2)
        assert isinstance(opened, Counting)
        assert 2 <= opened.most <= 2 + write.IN_FLIGHT


@pytest.mark.parametrize("name", ["none", "zstd", "lz4"])
@pytest.mark.parametrize("kind", ["text", "random", "mixed"])
def test_each_codec_brings_back_what_it_was_given(name: str, kind: str, tmp_path: Path) -> None:
    count = 130
    data = {
        "text": TEXT * count,
        "random": RNG.randbytes(count * PAGE),
        "mixed": b"".join(RNG.randbytes(PAGE) if n % 9 else TEXT for n in range(count)),
    }[kind]
    with device(tmp_path) as opened:
        imaging.fill(opened, [(7, data)], compression=name)
        image = Image(opened)
        assert b"".join(page for _, page in imaging.content(image, image.index())) == data
        at = image.superblock.chunks_offset
        found = unpack_chunk_header(opened.read(at, 64), 0).codec
    wanted = {"none": RAW, "zstd": ZSTD, "lz4": LZ4}[name]
    assert found == (RAW if kind == "random" else wanted)


def test_unpacking_anything_is_refused_not_believed() -> None:
    out = bytearray(2 * PAGE)
    for kind in (RAW, ZSTD, LZ4, 3, 1 << 31):
        for length in (0, 1, 100, PAGE):
            data = RNG.randbytes(PAGE)
            assert not codec.unpack(kind, data, 0, length, out, 2 * PAGE)
    with pytest.raises(ValueError):
        codec.unpack(RAW, bytes(10), 5, 6, out, 6)
    with pytest.raises(ValueError):
        codec.unpack(RAW, bytes(PAGE), 0, PAGE, bytearray(10), PAGE)


def test_what_may_not_fit_as_it_is_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "SPARE", 1 << 20)

    def chosen(expected: int, compression: str = "auto") -> str:
        """By a writer to 64 MiB of so many bytes of pages."""
        with device(tmp_path) as opened:
            made = writer(opened, compression)
            made._left = expected
            return made._choose(2 << 20)

    assert chosen(32 << 20) == "none"
    assert chosen(70 << 20) == "lz4"
    assert chosen(0) == "lz4"  # of unknown size
    assert chosen(32 << 20, "zstd") == "zstd"
    assert chosen(70 << 20, "none") == "none"


@given(st.binary(max_size=100_000), st.integers(0, 20))
def test_the_checksum_is_that_of_a_zstd_frame(data: bytes, at: int) -> None:
    """RFC 8878, 3.1.1: the low four bytes of XXH64 with seed 0, by libzstd's own code."""
    packer = codec.Packer()
    frame = packer.frame(data, 1)
    packer.close()
    found = codec.checksum(bytes(at) + data, at, len(data))
    assert found == int.from_bytes(frame[-4:], "little")


def test_what_is_stored_as_it_is_never_fills_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 MiB of room and 60 MiB of text: it fits because it is compressed in time."""
    monkeypatch.setattr(write, "SPARE", 1 << 20)
    spans = [(n * 512, TEXT * 512) for n in range(30)]
    with device(tmp_path) as opened:
        monkeypatch.setattr(opened, "size", 48 << 20)
        made = writer(opened)
        made.fill(spans, imaging.gather, processors=2, expected=60 << 20)
        done = made.commit()
        assert done.data_pages == 30 * 512


def test_no_reader_runs_on_behind_the_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next thing is to freeze every thread, wherever it is."""

    class Slow(threading.Thread):
        def run(self) -> None:
            super().run()
            time.sleep(0.3)

    with device(tmp_path) as opened:
        made = writer(opened)
        made.fill([(n * 10, TEXT) for n in range(20)], imaging.gather)
        made.commit()
        image = Image(opened)
        monkeypatch.setattr(threading, "Thread", Slow)
        assert len(dict(imaging.content(image, image.index(), processors=3))) == 20
        assert not [t for t in threading.enumerate() if t.name.startswith("read ")]
        # The same if it is given up in the middle.
        given_up = imaging.content(image, image.index(), processors=3)
        next(given_up)
        del given_up
        assert not [t for t in threading.enumerate() if t.name.startswith("read ")]

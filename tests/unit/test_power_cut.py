# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cut of power leaves on a disk that keeps writes in a cache: a whole image, or none.

All that is written is noted with every flush.  Of what was not flushed yet a disk has any part when
the power goes, in any order, and one write may be torn.  See "Order of commits" in
docs/kjump-image.5.md.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kjump.errors import ImageDamaged
from kjump.image import locator, superblocks
from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, COMPLETE, EMPTY, Superblock
from kjump.image.locator import SWAP
from kjump.image.prepare import prepare_target
from kjump.image.read import Image
from kjump.image.target import Area

from . import imaging, samples

MIB = 1 << 20
SIZE = 2 * MIB
SECTOR = 512
OLD, NEW = uuid.UUID(int=7), uuid.UUID(int=8)
RNG = random.Random(6)
PAGES = [(100 + 20 * n, RNG.randbytes((3 + n) * BLOCK)) for n in range(4)]
RESTORER = {
    cycle: (RNG.randbytes(3 * BLOCK + 70), RNG.randbytes(5 * BLOCK + 9)) for cycle in (OLD, NEW)
}
SWAP_HEADER = bytes(1024) + RNG.randbytes(BLOCK - 1024 - 10) + b"SWAPSPACE2"
AREA = Area(SWAP, 0, tuple(((8 + 3 * n) * BLOCK, 2 * BLOCK) for n in range(160)))

Write = tuple[int, bytes]
Log = list[Write | None]
"""In the order of the calls; None is a flush."""


@pytest.fixture(autouse=True)
def small_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kjump.image.prepare.SMALLEST", MIB)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What is written to any device from now on."""
    noted: Log = []
    really_write, really_flush = DirectDevice.write_from, DirectDevice.flush

    def write_from(
        self: DirectDevice, buffer: mmap.mmap | memoryview, length: int, offset: int
    ) -> None:
        done = 0
        for at, count in self._pieces(offset, length):
            noted.append((at, bytes(buffer[done : done + count])))
            done += count
        really_write(self, buffer, length, offset)

    def flush(self: DirectDevice) -> None:
        really_flush(self)
        noted.append(None)

    monkeypatch.setattr(DirectDevice, "write_from", write_from)
    monkeypatch.setattr(DirectDevice, "flush", flush)
    return noted


def losses(pending: Sequence[Write]) -> Iterator[list[Write]]:
    """What of unflushed writes may have reached the medium."""
    torn = [(at, data[: len(data) // 2 // SECTOR * SECTOR]) for at, data in pending]
    yield []
    yield list(pending)
    yield torn
    for n, write in enumerate(pending):
        yield [write]
        yield [torn[n]]
        yield [*pending[:n], *pending[n + 1 :]]
        yield [*pending[:n], torn[n], *pending[n + 1 :]]
    for _ in range(4):
        yield [write for write in pending if RNG.random() < 0.5]


def put(disk: bytearray, writes: Sequence[Write]) -> None:
    for at, data in writes:
        disk[at : at + len(data)] = data


def each_cut(before: bytes, log: Log, path: Path) -> Iterator[None]:
    """The file as each cut of power may leave it.

    Just before a flush the most is pending: what an earlier cut leaves is a part of that.
    """
    assert log and log[-1] is None, "not all is on the medium at the end"
    medium, pending = bytearray(before), list[Write]()
    for entry in log:
        if entry is not None:
            pending.append(entry)
            continue
        for kept in losses(pending):
            disk = bytearray(medium)
            put(disk, kept)
            path.write_bytes(disk)
            yield
        put(medium, pending)
        pending.clear()
    path.write_bytes(medium)


def prepare(path: Path, cycle: uuid.UUID, area: Area | None = None) -> None:
    files = (path.with_name("kernel"), path.with_name("initrd"))
    for file, content in zip(files, RESTORER[cycle], strict=True):
        file.write_bytes(content)
    prepare_target(path, cycle_id=cycle, hostname="h", restorer=files, area=area)


def fill(path: Path) -> None:
    with DirectDevice(path, writable=True) as device:
        imaging.fill(device, PAGES)


def is_whole(device: DirectDevice) -> bool:
    """Whether there is a complete image; one that says so must be."""
    image = Image(device)
    if image.superblock.state != COMPLETE:
        return False
    found = dict(imaging.content(image, image.index()))
    assert b"".join(found[pfn] for pfn in sorted(found)) == b"".join(data for _, data in PAGES)
    assert image.description() == samples.DESCRIPTION
    assert image.restorer() == RESTORER[image.superblock.cycle]
    return True


def test_an_image_that_says_complete_is_whole(tmp_path: Path, log: Log) -> None:
    path = imaging.prepared(tmp_path / "disk", SIZE)
    prepare(path, NEW)
    before = path.read_bytes()
    log.clear()
    fill(path)
    seen = set()
    for _ in each_cut(before, log, path):
        with DirectDevice(path) as device:
            seen.add(is_whole(device))
    assert seen == {False, True}
    with DirectDevice(path) as device:
        assert is_whole(device)


def test_an_old_image_is_whole_or_not_there_while_a_target_is_prepared(
    tmp_path: Path, log: Log
) -> None:
    path = imaging.prepared(tmp_path / "disk", SIZE)
    prepare(path, OLD)
    fill(path)
    before = path.read_bytes()
    log.clear()
    prepare(path, NEW)
    seen = set()
    generations: dict[int, Superblock] = {}
    for _ in each_cut(before, log, path):
        with DirectDevice(path) as device:
            whole = is_whole(device)
            image = Image(device)
            seen.add((image.superblock.cycle, whole))
            # No two changes have the same generation: which of them counts is never left to chance.
            of_generation = generations.setdefault(image.superblock.generation, image.superblock)
            assert image.superblock == of_generation
            if image.superblock.cycle == NEW:
                assert image.superblock.state == EMPTY and image.restorer() == RESTORER[NEW]
    assert seen == {(OLD, True), (OLD, False), (NEW, False)}


def test_a_change_of_state_leaves_one_of_both(tmp_path: Path, log: Log) -> None:
    path = imaging.prepared(tmp_path / "disk", SIZE)
    prepare(path, OLD)
    before = path.read_bytes()
    log.clear()
    with DirectDevice(path, writable=True) as device:
        old = superblocks.load(device)
        assert old is not None
        new = superblocks.store(device, old, state=COMPLETE)
    for _ in each_cut(before, log, path):
        with DirectDevice(path) as device:
            assert superblocks.load(device) in (old, new)


def test_a_locator_that_is_there_leads_to_its_image(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "disk"
    path.write_bytes(SWAP_HEADER + RNG.randbytes(SIZE - BLOCK))
    before = path.read_bytes()
    prepare(path, NEW, AREA)
    seen = set()
    for _ in each_cut(before, log, path):
        with DirectDevice(path) as device:
            try:
                block, found = locator.read(device, AREA.locator)
            except ImageDamaged:
                block, found = device.read(AREA.locator, BLOCK), None
            assert block[1024:] == SWAP_HEADER[1024:]
            seen.add(found is not None)
            if found is not None:
                device.lay(locator.read_map(device, found, AREA.locator))
                image = Image(device)
                assert (image.superblock.cycle, image.superblock.state) == (NEW, EMPTY)
                assert image.restorer() == RESTORER[NEW]
    assert seen == {False, True}


def test_a_target_is_read_and_written_past_the_page_cache(tmp_path: Path) -> None:
    path = imaging.prepared(tmp_path / "disk", SIZE)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct I/O")
    for writable in (False, True):
        with DirectDevice(path, writable=writable) as device:
            assert fcntl.fcntl(device.fd, fcntl.F_GETFL) & os.O_DIRECT


def test_a_flush_reaches_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with DirectDevice(imaging.prepared(tmp_path / "disk", SIZE), writable=True) as device:
        device.flush()
        assert synced == [device.fd]

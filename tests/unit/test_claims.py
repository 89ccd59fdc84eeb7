# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cycle holds of its target: kjump.session.target.claim, on files that stand for devices."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import (
    Internal,
    NoBootResume,
    StagingFailed,
    TargetTooSmall,
    UnsuitableFile,
)
from kjump.image import locator, target
from kjump.image.device import ByteSpan
from kjump.session.target import claim, files
from kjump.session.target.devices import FILE, SWAP, TargetDevice
from kjump.session.target.files import Blocks

MIB = 1 << 20
CYCLE = uuid.UUID(int=5)
SPANS = ((MIB, 4 * MIB), (8 * MIB, 24 * MIB))


@pytest.fixture
def disk(tmp_path: Path) -> TargetDevice:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    return TargetDevice(path, 40 * MIB)


@pytest.fixture
def file(disk: TargetDevice) -> TargetDevice:
    """An image file on the disk."""
    blocks = Blocks(1, SPANS, written=False)
    return replace(
        disk, kind=FILE, file="/image", locator=blocks.first, room=blocks.size, blocks=blocks
    )


class Slots:
    """Free slots of a swap area, as the kernel would give them."""

    spans: tuple[ByteSpan, ...] = ((2 * MIB, 30 * MIB),)
    held: list[Slots] = []  # noqa: RUF012

    def __init__(self, _device: int, _locator: int, pages: int) -> None:
        self.pages, self.closed = pages, False
        self.held.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def swap(disk: TargetDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[TargetDevice]:
    with disk.path.open("r+b") as header:
        header.seek(4086)
        header.write(b"SWAPSPACE2")
    monkeypatch.setattr(claim, "Slots", Slots)
    monkeypatch.setattr(Slots, "held", [])
    yield replace(disk, kind=SWAP, locator=0, room=30 * MIB)


def state(device: TargetDevice) -> tuple[str, str] | None:
    found = target.examine(device.path, device.locator)
    return None if found is None else (found.state, found.reason.error)


def test_a_partition(disk: TargetDevice) -> None:
    held = claim.prepare(disk, CYCLE, None)
    held.check()
    assert state(disk) == ("empty", "")
    held.retire(NoBootResume("why"))
    held.close()
    assert state(disk) == ("spent", "NoBootResume")


def test_a_file(file: TargetDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim.prepare(file, CYCLE, None)
    assert state(file) == ("empty", "")
    where: list[Any] = [file.blocks]

    def found(path: Path, *, swap: bool) -> Blocks:
        assert (str(path), swap) == ("/image", False)
        if isinstance(where[0], Exception):
            raise where[0]
        return where[0]  # type: ignore[no-any-return]

    monkeypatch.setattr(files, "blocks_of", found)
    held.check()
    first, *rest = SPANS
    for moved in (
        Blocks(1, tuple(reversed(SPANS)), written=False),
        Blocks(1, (first, (rest[0][0] + 4096, rest[0][1])), written=False),
    ):
        where[0] = moved
        with pytest.raises(StagingFailed, match="moved in the meantime"):
            held.check()
    where[0] = UnsuitableFile("It is compressed now.")
    with pytest.raises(StagingFailed, match="It is compressed now"):
        held.check()
    held.retire(None)
    held.close()
    assert state(file) == ("spent", "")


def test_the_area_of_a_file_is_all_but_the_locators_block(file: TargetDevice) -> None:
    area = claim.file_area(file)
    assert (area.kind, area.locator) == (locator.FILE, MIB)
    assert area.spans == ((MIB + 4096, 4 * MIB - 4096), SPANS[1])
    small = replace(file, blocks=Blocks(1, ((MIB, 4096), SPANS[1]), written=False))
    assert claim.file_area(small).spans == (SPANS[1],)
    for broken in (replace(file, blocks=None), replace(file, locator=None)):
        with pytest.raises(Internal):
            claim.file_area(broken)


def test_swap(swap: TargetDevice) -> None:
    held = claim.prepare(swap, CYCLE, None, needed=20 * MIB)
    (slots,) = Slots.held
    assert slots.pages == 20 * MIB // 4096 and not slots.closed
    assert state(swap) == ("empty", "")
    held.check()  # a swap partition does not move
    held.retire(None)
    held.close()
    assert slots.closed and state(swap) is None  # the system has the slots again
    claim.prepare(swap, CYCLE, None)
    assert Slots.held[-1].pages == claim.largest_image_size() // 4096
    with pytest.raises(Internal):
        claim.prepare(replace(swap, locator=None), CYCLE, None)


def test_a_swap_file_that_moved(swap: TargetDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    held = claim.prepare(replace(swap, file="/swap"), CYCLE, None)
    found = Blocks(1, ((0, MIB), (9 * MIB, MIB)), written=True)
    monkeypatch.setattr(files, "blocks_of", lambda *_, **__: found)
    held.check()  # its header is where it was; that it was written to is what swap is for
    found = Blocks(1, ((4096, MIB),), written=True)
    with pytest.raises(StagingFailed):
        held.check()


def test_too_little_free_swap_is_given_back(
    swap: TargetDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = swap.path.read_bytes()
    monkeypatch.setattr(Slots, "spans", ((2 * MIB, 3 * MIB),))
    with pytest.raises(TargetTooSmall, match="Only 3 MiB of swap are free") as failed:
        claim.prepare(swap, CYCLE, None)
    assert "swapped out" in failed.value.todo
    assert Slots.held[0].closed and state(swap) is None
    assert swap.path.read_bytes()[:4096] == before[:4096]


def test_a_file_that_is_too_small(file: TargetDevice) -> None:
    small = replace(file, blocks=Blocks(1, ((MIB, 4 * MIB),), written=False))
    with pytest.raises(TargetTooSmall):
        claim.prepare(small, CYCLE, None)
    assert state(small) is None


def test_whatever_goes_wrong_is_given_back(
    swap: TargetDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(claim, "prepare_target", broken)
    with pytest.raises(OSError):
        claim.prepare(swap, CYCLE, None)
    assert Slots.held[0].closed


def test_a_locator_is_removed_from_swap_that_nobody_holds(
    swap: TargetDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Writable:
        def __init__(self, device: int, at: int) -> None:
            asked.append((device, at))

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            asked.append((-1, -1))

    monkeypatch.setattr(claim, "Writable", Writable)
    before = swap.path.read_bytes()
    claim.prepare(swap, CYCLE, None).close()
    assert state(swap) is not None
    claim.remove_swap_locator(swap)
    assert state(swap) is None and swap.path.read_bytes()[:4096] == before[:4096]
    assert asked == [(os.stat(swap.path).st_rdev, 0), (-1, -1)]
    # Switched off in the meantime: it is a partition, and the kernel protects it no more.
    claim.prepare(swap, CYCLE, None).close()
    claim.remove_swap_locator(replace(swap, kind="partition"))
    assert state(replace(swap, locator=0)) is None and len(asked) == 2


def test_the_smallest_target_holds_an_image() -> None:
    assert claim.largest_image_size() > target.SMALLEST

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cycle holds of its target: the disk is a file, and a played kernel gives the slots."""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import (
    Cancelled,
    Internal,
    StagingFailed,
    TargetHoldsData,
    TargetInUse,
    TargetTooSmall,
    UnsuitableFile,
)
from kjump.image import locator as locators
from kjump.image.layout import BLOCK
from kjump.image.target import Found, examine
from kjump.machine import swap
from kjump.machine.ranges import PAGE
from kjump.session.target import claim, files
from kjump.session.target.devices import FILE, SWAP, TargetDevice

from . import imaging
from .played_swap import Snapshot

CYCLE = uuid.UUID(int=5)
MIB = 1 << 20
DEVICE = os.makedev(254, 1)
AREA = 8 * MIB
"""Where the swap area begins on the disk."""
OURS = ((24 * MIB, 16 * MIB), (48 * MIB, 16 * MIB))
"""Blocks of the image file."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """64 MiB that hold somebody's data, at both sides of each whole mebibyte."""
    path = imaging.prepared(tmp_path / "disk", 64 * MIB)
    with path.open("r+b") as opened:
        for at in range(MIB, 64 * MIB, MIB):
            opened.seek(at - 16384)
            opened.write(b"data" * 8192)
    return path


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Snapshot:
    return Snapshot(monkeypatch, tmp_path)


def partition(disk: Path) -> TargetDevice:
    return TargetDevice(disk, disk.stat().st_size)


def image_file(disk: Path) -> TargetDevice:
    return TargetDevice(
        disk,
        disk.stat().st_size,
        kind=FILE,
        file="/image",
        locator=OURS[0][0],
        blocks=files.Blocks(DEVICE, OURS, written=False),
    )


def swap_area(disk: Path, file: str = "") -> TargetDevice:
    """With a header as mkswap writes it."""
    header = bytearray(PAGE)
    header[PAGE - 10 :] = b"SWAPSPACE2"
    with disk.open("r+b") as opened:
        opened.seek(AREA)
        opened.write(header)
    return TargetDevice(disk, disk.stat().st_size, kind=SWAP, file=file, locator=AREA)


def free_slots(snapshot: Snapshot, size: int) -> None:
    """In two pieces behind the area's header."""
    first = AREA // PAGE + 100
    half = size // PAGE // 2
    snapshot.offer([*range(first, first + half), *range(first + half + 7, first + 2 * half + 7)])


def found(device: TargetDevice) -> Found | None:
    return examine(device.path, device.locator)


def changed_outside(disk: Path, before: bytes, spans: list[tuple[int, int]]) -> bool:
    """Whether a byte was written to that is not ours."""
    mine = bytearray(disk.read_bytes())
    for start, length in spans:
        mine[start : start + length] = before[start : start + length]
    return bytes(mine) != before


def test_a_partition_is_marked_and_spent(disk: Path) -> None:
    device = partition(disk)
    held = claim.prepare(device, CYCLE, None)
    state = found(device)
    assert state is not None and (state.state, state.cycle_id) == ("empty", CYCLE)
    held.check()
    held.retire(Cancelled("Esc was pressed."))
    held.close()
    state = found(device)
    assert state is not None and (state.state, state.reason.error) == ("spent", "Cancelled")


def test_an_image_file_is_written_to_and_nothing_beside_it(disk: Path) -> None:
    device = image_file(disk)
    before = disk.read_bytes()
    held = claim.prepare(device, CYCLE, None)
    state = found(device)
    assert state is not None
    assert (state.state, state.cycle_id, state.area) == ("empty", CYCLE, locators.FILE)
    held.retire(None)
    held.close()
    state = found(device)
    assert state is not None and state.state == "spent"
    assert not changed_outside(disk, before, list(OURS))


def test_the_first_block_of_a_file_is_the_locators() -> None:
    def spans(*given: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        blocks = files.Blocks(DEVICE, given, written=False)
        device = TargetDevice(Path("/dev/x"), 0, kind=FILE, locator=given[0][0], blocks=blocks)
        area = claim.file_area(device)
        assert (area.kind, area.locator) == (locators.FILE, given[0][0])
        return area.spans

    assert spans((MIB, 4 * BLOCK)) == ((MIB + BLOCK, 3 * BLOCK),)
    assert spans((MIB, BLOCK), (9 * MIB, BLOCK)) == ((9 * MIB, BLOCK),)
    blocks = files.Blocks(DEVICE, OURS, written=False)
    for unknown in (
        TargetDevice(Path("/dev/x"), 0, kind=FILE, locator=MIB),
        TargetDevice(Path("/dev/x"), 0, kind=FILE, blocks=blocks),
    ):
        with pytest.raises(Internal):
            claim.file_area(unknown)


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        (OURS, ""),
        (((32 * MIB, 16 * MIB), OURS[1]), "was moved"),  # its first block
        ((OURS[0], (40 * MIB, 16 * MIB)), "was moved"),  # another one
        (OURS[::-1], "was moved"),  # in another order
        ((), "changed in the meantime: It has holes"),
    ],
)
def test_a_file_that_was_moved_is_noticed_before_the_jump(
    disk: Path, monkeypatch: pytest.MonkeyPatch, spans: tuple[tuple[int, int], ...], error: str
) -> None:
    def blocks_of(path: Path, *, swap: bool) -> files.Blocks:
        assert path == Path("/image") and not swap
        if not spans:
            raise UnsuitableFile("It has holes.")
        return files.Blocks(DEVICE, spans, written=False)

    monkeypatch.setattr(files, "blocks_of", blocks_of)
    held = claim.prepare(image_file(disk), CYCLE, None)
    if not error:
        held.check()
    else:
        with pytest.raises(StagingFailed, match=error):
            held.check()
    held.close()


def test_swap_is_written_to_only_in_slots_that_are_held(disk: Path, snapshot: Snapshot) -> None:
    device = swap_area(disk)
    before = disk.read_bytes()
    free_slots(snapshot, 24 * MIB)
    held = claim.prepare(device, CYCLE, None)
    state = found(device)
    assert state is not None
    assert (state.state, state.cycle_id, state.area) == ("empty", CYCLE, locators.SWAP)
    held.check()
    assert len(snapshot.open) == 1
    held.retire(Cancelled("Esc was pressed."))
    held.close()
    assert not snapshot.open
    assert found(device) is None  # no locator leads into slots of somebody else
    first = AREA + 100 * PAGE
    ours = [(first, 12 * MIB), (first + 12 * MIB + 7 * PAGE, 12 * MIB)]
    assert not changed_outside(disk, before, ours)


@pytest.mark.parametrize(
    ("first", "error"), [(AREA, ""), (AREA + BLOCK, "was moved"), (None, "changed in the meantime")]
)
def test_a_swap_file_that_was_moved_is_noticed(
    disk: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    first: int | None,
    error: str,
) -> None:
    def blocks_of(path: Path, *, swap: bool) -> files.Blocks:
        assert path == Path("/swapfile") and swap
        if first is None:
            raise UnsuitableFile("It has holes.")
        return files.Blocks(DEVICE, ((first, 32 * MIB),), written=True)

    monkeypatch.setattr(files, "blocks_of", blocks_of)
    free_slots(snapshot, 24 * MIB)
    held = claim.prepare(swap_area(disk, "/swapfile"), CYCLE, None)
    if not error:
        held.check()
    else:
        with pytest.raises(StagingFailed, match=error):
            held.check()
    held.retire(None)
    held.close()
    assert not snapshot.open


def test_no_more_swap_is_taken_than_an_image_can_need(
    disk: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claim.largest_image_size() > 64 * MIB
    free_slots(snapshot, 24 * MIB)
    claim.prepare(swap_area(disk), CYCLE, None, needed=20 * MIB).close()
    assert snapshot.given == 20 * MIB // PAGE
    monkeypatch.setattr(claim, "largest_image_size", lambda: 18 * MIB)
    free_slots(snapshot, 24 * MIB)
    claim.prepare(swap_area(disk), CYCLE, None).close()
    assert snapshot.given == 18 * MIB // PAGE


def test_too_little_free_swap_is_given_back_unwritten(disk: Path, snapshot: Snapshot) -> None:
    device = swap_area(disk)
    before = disk.read_bytes()
    free_slots(snapshot, 4 * MIB)
    with pytest.raises(TargetTooSmall, match="Only 4 MiB of swap are free") as failed:
        claim.prepare(device, CYCLE, None)
    assert "swapped out" in failed.value.todo
    assert not snapshot.open and snapshot.freed == 1
    assert found(device) is None
    assert disk.read_bytes() == before


def test_a_device_that_is_too_small_is_named(tmp_path: Path) -> None:
    device = partition(imaging.prepared(tmp_path / "small", MIB))
    with pytest.raises(TargetTooSmall, match="has 1 MiB"):
        claim.prepare(device, CYCLE, None)


def test_a_file_that_is_too_small_is_named(disk: Path) -> None:
    before = disk.read_bytes()
    blocks = files.Blocks(DEVICE, ((24 * MIB, 4 * MIB),), written=False)
    device = replace(image_file(disk), blocks=blocks)
    with pytest.raises(TargetTooSmall):
        claim.prepare(device, CYCLE, None)
    assert found(device) is None
    assert not changed_outside(disk, before, list(blocks.spans))


def test_what_is_taken_is_given_back_if_preparing_fails(disk: Path, snapshot: Snapshot) -> None:
    device = swap_area(disk)
    with disk.open("r+b") as opened:
        opened.seek(AREA)
        opened.write(b"somebody's boot code")
    before = disk.read_bytes()
    free_slots(snapshot, 24 * MIB)
    with pytest.raises(TargetHoldsData):
        claim.prepare(device, CYCLE, None)
    assert not snapshot.open
    missing = disk.with_name("nonesuch"), disk
    with pytest.raises(OSError, match="nonesuch"):
        claim.prepare(image_file(disk), CYCLE, missing)
    assert not changed_outside(disk, before, list(OURS))
    with disk.open("r+b") as opened:
        opened.seek(AREA)
        opened.write(bytes(32))
    free_slots(snapshot, 24 * MIB)
    with pytest.raises(OSError, match="nonesuch"):
        claim.prepare(device, CYCLE, missing)
    assert not snapshot.open and found(device) is None


def test_what_was_not_looked_at_is_not_written_to(disk: Path) -> None:
    before = disk.read_bytes()
    for kind in (FILE, SWAP):
        with pytest.raises(Internal):
            claim.prepare(TargetDevice(disk, 64 * MIB, kind=kind), CYCLE, None)
    assert disk.read_bytes() == before


def test_a_locator_is_removed_if_nobody_holds_the_slots(disk: Path, snapshot: Snapshot) -> None:
    device = swap_area(disk)
    before = disk.read_bytes()
    free_slots(snapshot, 24 * MIB)
    claim.prepare(device, CYCLE, None).close()  # as if its owner had been killed
    assert found(device) is not None
    snapshot.refuse[swap.SET_SWAP_AREA] = errno.EPERM
    with pytest.raises(TargetInUse):
        claim.remove_swap_locator(device)
    assert found(device) is not None
    del snapshot.refuse[swap.SET_SWAP_AREA]
    claim.remove_swap_locator(device)
    assert found(device) is None and not snapshot.open
    assert disk.read_bytes()[AREA : AREA + PAGE] == before[AREA : AREA + PAGE]


def test_a_locator_is_removed_from_swap_that_was_switched_off(disk: Path) -> None:
    """It is a partition like others then; no slots have to be held."""
    device = image_file(disk)
    claim.prepare(device, CYCLE, None).close()
    assert found(device) is not None
    claim.remove_swap_locator(TargetDevice(disk, disk.stat().st_size, locator=device.locator))
    assert found(device) is None

# SPDX-License-Identifier: GPL-2.0-or-later
"""The image format: round trips, states, and readers that are fed anything."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump.errors import (
    ImageDamaged,
    ImageIncomplete,
    ImageSpent,
    ImageVersion,
    KjumpError,
    NoImage,
    TargetTooSmall,
    TargetWriteFailed,
)
from kjump.handoff.documents import COMPRESSIONS
from kjump.handoff.report import Report
from kjump.image import prepare, superblocks, target
from kjump.image.description import Description
from kjump.image.device import DirectDevice
from kjump.image.extents import Extents
from kjump.image.layout import (
    BLOCK,
    CHUNK,
    COMPLETE,
    DATA,
    EMPTY,
    EXTENT,
    RESTORING,
    SLOTS,
    SPENT,
    WRITING,
    ZERO,
    Extent,
    Superblock,
    newest,
    unpack_chunk_header,
    unpack_superblock,
)
from kjump.image.read import Image
from kjump.machine.ranges import PAGE

from . import imaging, samples
from .examples import at_most

SIZE = 32 << 20
CYCLE = uuid.UUID(int=7)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(SIZE)
    prepare.prepare_target(path, cycle_id=CYCLE, hostname="h")
    return path


def write(
    path: Path,
    pages: list[tuple[int, bytes]],
    zeros: list[Extent] | None = None,
    *,
    compression: str = "auto",
) -> None:
    with DirectDevice(path, writable=True) as device:
        imaging.fill(device, pages, zeros or [], compression=compression)


def read(path: Path) -> tuple[Description, Extents, dict[int, bytes]]:
    with DirectDevice(path) as device:
        image = Image(device)
        image.require_complete()
        found = dict(imaging.content(image, image.index()))
        return image.description(), image.index(), found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.booleans()), max_size=8),
    st.integers(0, 1000),
    st.sampled_from(COMPRESSIONS),
)
def test_round_trip(
    disk: Path, spans: list[tuple[int, int, bool]], seed: int, compression: str
) -> None:
    rng = random.Random(seed)
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h")
    pages, pfn = [], 0
    for gap, count, random_bytes in spans:
        pfn += gap
        pages.append((pfn, rng.randbytes(count * PAGE) if random_bytes else b"ab" * (count * 2048)))
        pfn += count
    zeros = [Extent(pfn + 1, 5, ZERO)]
    write(disk, pages, zeros, compression=compression)
    description, index, found = read(disk)
    assert description == samples.DESCRIPTION
    assert [e for e in index if e.kind == ZERO] == zeros
    assert found == {
        pfn + i: data[i * PAGE : (i + 1) * PAGE]
        for pfn, data in pages
        for i in range(len(data) // PAGE)
    }


def covered(disk: Path) -> list[int]:
    """Offsets of every byte behind the superblocks that means something."""
    with DirectDevice(disk) as device:
        s = Image(device).superblock
        out = [*range(2 * BLOCK, 2 * BLOCK + s.description_length)]
        out += range(s.index_offset, s.index_offset + s.index_length)
        at = s.chunks_offset
        for number in range(s.chunks):
            header = unpack_chunk_header(device.read(at, BLOCK), number)
            out += range(at, at + CHUNK.size + header.extents * EXTENT.size)
            out += range(at + header.payload_offset, at + header.payload_offset + header.length)
            at += header.stored
    return out


def test_one_flipped_bit_anywhere_is_found(disk: Path) -> None:
    rng = random.Random(1)
    write(
        disk,
        [(100, rng.randbytes(3 * PAGE)), (200, bytes(range(256)) * 64)],
        [Extent(300, 2, ZERO)],
    )
    places = covered(disk)
    with disk.open("r+b") as file:
        for at in rng.sample(places, 400) + places[:64]:
            file.seek(at)
            was = file.read(1)[0]
            file.seek(at)
            file.write(bytes([was ^ 1 << rng.randrange(8)]))
            file.flush()
            with pytest.raises(ImageDamaged):
                read(disk)
            file.seek(at)
            file.write(bytes([was]))
            file.flush()
    assert read(disk)[2]


@settings(max_examples=at_most(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_reader_of_any_bytes_raises_by_name(disk: Path, data: st.DataObject) -> None:
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h")
    write(disk, [(1, bytes(PAGE - 1) + b"x")])
    with disk.open("rb") as file:
        whole = bytearray(file.read(20 * BLOCK))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=40))
        whole[at : at + len(piece)] = piece
    with disk.open("r+b") as file:
        file.write(whole[: 20 * BLOCK])
    try:
        read(disk)
    except KjumpError:
        pass


def test_the_reader_believes_no_size_beyond_the_device(disk: Path) -> None:
    write(disk, [(1, bytes([1]) * PAGE)])
    with DirectDevice(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        superblocks.store(device, found, index_size=1 << 50, extents=(1 << 50) // 16)
    with pytest.raises(ImageDamaged):
        read(disk)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.sampled_from([DATA, ZERO]))))
def test_extents_round_trip(spans: list[tuple[int, int, int]]) -> None:
    extents, at = [], 0
    for gap, pages, kind in spans:
        extents.append(Extent(at + gap, pages, kind))
        at += gap + pages
    assert Extents.of(extents) == extents
    assert list(Extents.of(extents)) == extents


@pytest.mark.parametrize(
    "extents",
    [[Extent(5, 2), Extent(6, 1)], [Extent(5, 0)], [Extent(9, 1), Extent(3, 1)], [Extent(1, 1, 9)]],
)
def test_extents_out_of_order_are_refused(extents: list[Extent]) -> None:
    with pytest.raises(ImageDamaged):
        Extents.of(extents)


def test_states_and_who_may_resume(disk: Path) -> None:
    with DirectDevice(disk, writable=True) as device:
        for state, error in (
            (EMPTY, NoImage),
            (WRITING, ImageIncomplete),
            (RESTORING, ImageSpent),
            (SPENT, ImageSpent),
        ):
            found = superblocks.load(device)
            assert found is not None
            superblocks.store(device, found, state=state)
            with pytest.raises(error):
                Image(device).require_complete()
        found = superblocks.load(device)
        assert found is not None
        superblocks.store(device, found, state=COMPLETE)
        Image(device).require_complete()


class Interrupted(DirectDevice):
    """The power goes between the first and the second write."""

    writes = 0

    def write(self, offset: int, data: bytes) -> None:
        self.writes += 1
        if self.writes == 2:
            raise TargetWriteFailed("power cut")
        super().write(offset, data)


@pytest.mark.parametrize("torn", SLOTS)
def test_a_torn_superblock_write_leaves_the_old_or_the_new_state(disk: Path, torn: int) -> None:
    with DirectDevice(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        after = superblocks.store(device, found, state=WRITING)
    data = bytearray(disk.read_bytes())
    data[torn + 100 : torn + 200] = bytes(100)
    disk.write_bytes(data)
    with DirectDevice(disk) as device:
        assert superblocks.load(device) == after


def test_a_change_goes_to_the_slot_that_does_not_count_first(disk: Path) -> None:
    for state in (WRITING, COMPLETE, RESTORING):
        with Interrupted(disk, writable=True) as device:
            found = superblocks.load(device)
            assert found is not None
            with pytest.raises(TargetWriteFailed):
                superblocks.store(device, found, state=state)
            after = superblocks.load(device)
            assert after is not None and after.state == state


def test_after_an_interrupted_change_a_torn_write_loses_nothing(disk: Path) -> None:
    class Torn(DirectDevice):
        def write(self, offset: int, data: bytes) -> None:
            super().write(offset, data[:100] + bytes(BLOCK - 100))
            raise TargetWriteFailed("power cut")

    with Interrupted(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        with pytest.raises(TargetWriteFailed):
            superblocks.store(device, found, state=RESTORING)
    with Torn(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None and found.state == RESTORING
        with pytest.raises(TargetWriteFailed):
            superblocks.store(device, found, state=SPENT)
        after = superblocks.load(device)
        assert after is not None and after.state == RESTORING


@pytest.mark.parametrize(
    "index",
    [
        [Extent(100, 3), Extent(200, 4)],
        [Extent(100, 2), Extent(200, 5)],
        [Extent(100, 3), Extent(200, 3)],
        [Extent(100, 3)],
        [],
        [Extent(101, 3), Extent(200, 4)],
    ],
)
def test_chunks_must_bring_just_what_the_index_says(disk: Path, index: list[Extent]) -> None:
    extents = Extents.of(index)
    write(disk, [(100, b"ab" * (PAGE * 3 // 2)), (200, b"cd" * (PAGE * 2))])
    with DirectDevice(disk) as device:
        image = Image(device)
        used: list[int] = []
        if extents == image.index():
            assert len(list(image.chunks(extents))) == 2
            image.each(extents, lambda chunk: used.append(chunk.number), processors=2)
            assert sorted(used) == [0, 1]
        else:
            with pytest.raises(ImageDamaged):
                list(image.chunks(extents))
            with pytest.raises(ImageDamaged):
                image.each(extents, lambda chunk: used.append(chunk.number), processors=2)


@pytest.mark.parametrize("state", [EMPTY, COMPLETE, SPENT])
def test_an_image_of_version_1_is_reported_and_replaced_but_not_read(
    state: int, disk: Path
) -> None:
    write(disk, [(100, b"x" * PAGE)])
    with DirectDevice(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        superblocks.store(device, replace(found, version=1), state=state)
        if state == SPENT:
            image = Image(device)
            with pytest.raises(ImageVersion):
                next(image.chunks(image.index()))
        else:
            with pytest.raises(ImageVersion):
                Image(device)
    examined = target.examine(disk)
    assert examined is not None and examined.state == ("empty", "", "complete", "", "spent")[state]
    prepare.prepare_target(disk, cycle_id=uuid.UUID(int=7), hostname="h")
    with DirectDevice(disk) as device:
        after = Image(device).superblock
    assert (after.version, after.state, after.cycle.int) == (2, EMPTY, 7)


def test_an_image_of_an_unknown_version_is_refused(disk: Path) -> None:
    write(disk, [(100, b"x" * PAGE)])
    with DirectDevice(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        superblocks.store(device, replace(found, version=3))
        with pytest.raises(ImageVersion):
            superblocks.load(device)


def test_newest_generation_counts() -> None:
    old = Superblock(COMPLETE, 4, CYCLE).pack()
    new = Superblock(SPENT, 5, CYCLE).pack()
    for blocks in ([old, new], [new, old], [bytes(BLOCK), new]):
        found = newest(blocks)
        assert found is not None and found.state == SPENT


def test_an_outcome_too_long_is_shortened_and_still_read() -> None:
    found = unpack_superblock(
        Superblock(SPENT, 1, CYCLE, outcome=Report(error="E", what="w" * 9000)).pack()
    )
    assert found is not None and found.outcome.error == "E"


def test_a_target_too_small_is_reported_before_anything_beyond_it_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    prepare.prepare_target(path, cycle_id=CYCLE, hostname="h")
    data = random.Random(3).randbytes(512 * PAGE)
    with pytest.raises(TargetTooSmall):
        write(path, [(i * 512, data) for i in range(1, 17)])
    assert path.stat().st_size == 16 << 20
    with DirectDevice(path) as device, pytest.raises(ImageIncomplete):
        Image(device).require_complete()


def test_retire_marks_any_image_spent_with_the_reason_and_only_its_own(disk: Path) -> None:
    write(disk, [(1, bytes([1]) * PAGE)])
    assert prepare.retire_image(disk, None, cycle_id=uuid.uuid4()) is None
    found = target.examine(disk)
    assert found is not None and found.state == "complete"
    before = prepare.retire_image(disk, ImageDamaged("hurt"), cycle_id=CYCLE)
    assert before is not None and before.state == "complete"
    found = target.examine(disk)
    assert found is not None and found.state == "spent" and found.reason.error == "ImageDamaged"


def test_another_machines_saved_session_is_recognised(disk: Path) -> None:
    with DirectDevice(disk, writable=True) as device:
        imaging.fill(device, [], description=samples.description(hostname="other", machine="m1"))
    examined = target.examine(disk)
    assert examined is not None
    assert examined.is_session_of_another("m2") and not examined.is_session_of_another("m1")
    assert examined.hostname == "other"
    prepare.retire_image(disk, None)
    examined = target.examine(disk)
    assert examined is not None and not examined.is_session_of_another("m2")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Locator, map, spans: what they lead to, and that nothing else is ever believed or written."""

from __future__ import annotations

import os
import random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kjump.errors import (
    ImageDamaged,
    ImageVersion,
    KjumpError,
    MemoryMapChanged,
    NoImage,
    TargetHoldsData,
    TargetTooSmall,
    TargetWriteFailed,
)
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.image import locator, prepare, superblocks, target
from kjump.image.device import ByteSpan, DirectDevice, Spans
from kjump.image.layout import BLOCK, COMPLETE, SPENT
from kjump.image.locator import ENTRIES, FILE, SWAP, Locator
from kjump.image.read import Image, describe
from kjump.image.target import Area, format_location, open_image, parse_location

from . import imaging, samples
from .examples import at_most

CYCLE = uuid.UUID(int=7)
SIZE = 9 << 20
MIB = 1 << 20
PAGES = random.Random(4).randbytes(300 * 4096)
SWAP_HEADER = bytes(1024) + random.Random(5).randbytes(BLOCK - 1024 - 10) + b"SWAPSPACE2"


@pytest.fixture(autouse=True, scope="module")
def small_targets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SMALLEST", MIB)
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A device with somebody's bytes all over, and a swap header at its start."""
    path = tmp_path / "disk"
    path.write_bytes(SWAP_HEADER + random.Random(1).randbytes(SIZE - BLOCK))
    return path


def scattered(count: int, first: int = 16, step: int = 3, length: int = 2) -> tuple[ByteSpan, ...]:
    """Spans with gaps between them."""
    return tuple(((first + n * step) * BLOCK, length * BLOCK) for n in range(count))


AREA = Area(SWAP, 0, scattered(700))


# -- spans -----------------------------------------------------------------------------------------

blocks = st.integers(1, 5)
gaps = st.integers(0, 3)


@st.composite
def span_lists(draw: st.DrawFn) -> list[ByteSpan]:
    """Spans that do not overlap, in any order."""
    out, at = [], 0
    for gap, length in draw(st.lists(st.tuples(gaps, blocks), min_size=1, max_size=12)):
        at += gap * BLOCK
        out.append((at, length * BLOCK))
        at += length * BLOCK
    return draw(st.permutations(out))


@given(span_lists(), st.integers(0, 70), st.integers(0, 70))
def test_pieces_are_the_bytes_of_the_spans_in_order(
    spans: list[ByteSpan], first: int, count: int
) -> None:
    flat = [offset + at for offset, length in spans for at in range(0, length, BLOCK)]
    mapped = Spans(spans)
    assert mapped.size == len(flat) * BLOCK
    found = [
        offset + at
        for offset, length in mapped.pieces(first * BLOCK, count * BLOCK)
        for at in range(0, length, BLOCK)
    ]
    assert found == flat[first : first + count]


@settings(max_examples=at_most(30), deadline=None)
@given(span_lists(), st.data())
def test_what_is_written_through_spans_lies_in_them_and_nowhere_else(
    tmp_path_factory: pytest.TempPathFactory, spans: list[ByteSpan], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("d") / "disk"
    before = random.Random(2).randbytes(100 * BLOCK)
    path.write_bytes(before)
    size = sum(length for _, length in spans)
    first = data.draw(st.integers(0, size // BLOCK - 1)) * BLOCK
    count = data.draw(st.integers(1, (size - first) // BLOCK)) * BLOCK
    content = random.Random(3).randbytes(count)
    with DirectDevice(path, writable=True, spans=spans) as device:
        assert device.size == size
        device.write(first, content)
        assert device.read(first, count) == content
        assert device.read(size, BLOCK) == b""
        with pytest.raises(TargetWriteFailed):
            device.write(size, b"x")
    now = path.read_bytes()
    inside = b"".join(now[offset : offset + length] for offset, length in spans)
    was = b"".join(before[offset : offset + length] for offset, length in spans)
    assert inside == was[:first] + content + was[first + count :]
    at = 0
    for offset, length in sorted(spans):
        assert now[at:offset] == before[at:offset]
        at = offset + length
    assert now[at:] == before[at:]


@given(span_lists())
def test_laying_out_takes_map_and_image_from_the_spans(spans: list[ByteSpan]) -> None:
    try:
        places, rest = locator.lay_out(spans)
    except TargetTooSmall:
        assert sum(length for _, length in spans) <= BLOCK
        return
    taken = [(offset, BLOCK) for offset in places] + rest
    flat = sorted(offset + at for offset, length in taken for at in range(0, length, BLOCK))
    assert flat == sorted(set(flat))
    free = {offset + at for offset, length in spans for at in range(0, length, BLOCK)}
    assert set(flat) <= free
    assert len(places) == -(-len(rest) // ENTRIES)


def test_of_too_many_spans_the_largest_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locator, "MOST_SPANS", 10)
    spans = [(n * 100 * BLOCK, (1 + n % 7) * BLOCK) for n in range(1, 40)]
    _, rest = locator.lay_out(spans)
    assert len(rest) <= 10
    assert min(length for _, length in rest) >= 5 * BLOCK


def test_neighbours_are_joined() -> None:
    spans = [(8192, 4096), (0, 4096), (4096, 4096), (20480, 4096)]
    assert locator.merged(spans) == [(0, 12288), (20480, 4096)]


# -- locator and map -------------------------------------------------------------------------------


def written(disk: Path, area: Area = AREA) -> Locator:
    """A target prepared in an area, with an image in it."""
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h", area=area)
    with open_image(disk, area.locator, writable=True) as device:
        located = locator.read(DirectDevice(disk), area.locator)[1]
        assert located is not None
        imaging.fill(device, [(100, PAGES)], description=samples.DESCRIPTION)
        return located


def test_an_image_in_an_area(disk: Path) -> None:
    before = disk.read_bytes()
    assert written(disk).blocks > 1  # so that the chain is walked
    with open_image(disk) as device:
        image = Image(device)
        found = dict(imaging.content(image, image.index()))
        assert b"".join(found[pfn] for pfn in sorted(found)) == PAGES
    assert describe(disk, open_image(disk))["state"] == "complete"
    examined = target.examine(disk)
    assert examined is not None
    assert (examined.state, examined.machine, examined.area) == ("complete", "me", SWAP)
    # Nothing but the area and the first 1,024 bytes was touched.
    now = disk.read_bytes()
    assert now[1024:BLOCK] == before[1024:BLOCK]
    at = BLOCK
    for offset, length in AREA.spans:
        assert now[at:offset] == before[at:offset]
        at = offset + length
    assert now[at:] == before[at:]


def test_a_swap_area_is_as_before_when_the_session_runs_again(disk: Path) -> None:
    before = disk.read_bytes()[:BLOCK]
    written(disk)
    assert prepare.retire_image(disk, MemoryMapChanged("x"), cycle_id=CYCLE, area=AREA) is not None
    assert disk.read_bytes()[:BLOCK] == before
    with DirectDevice(disk, spans=locator.lay_out(AREA.spans)[1]) as device:
        superblock = superblocks.load(device)
    assert superblock is not None and superblock.state == SPENT
    assert target.examine(disk) is None


def test_a_file_keeps_its_spent_image(disk: Path) -> None:
    area = Area(FILE, 8 * BLOCK, scattered(20, length=100, step=101))
    written(disk, area)
    prepare.retire_image(disk, None, cycle_id=CYCLE, area=area)
    examined = target.examine(disk, area.locator)
    assert examined is not None and (examined.state, examined.area) == ("spent", FILE)


def test_retiring_writes_nowhere_but_where_the_area_is_now(disk: Path) -> None:
    """A file that was moved: its old blocks are somebody's by now."""
    area = Area(FILE, 8 * BLOCK, scattered(20, length=100, step=101))
    written(disk, area)
    before = disk.read_bytes()
    moved = Area(FILE, 8 * BLOCK, scattered(19, length=100, step=101))
    assert prepare.retire_image(disk, None, area=moved) is None
    assert disk.read_bytes() == before


def test_a_swap_area_with_boot_code_is_refused(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(b"\xeb\x63\x90GRUB")
    before = disk.read_bytes()
    with pytest.raises(TargetHoldsData):
        prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h", area=AREA)
    assert disk.read_bytes() == before


def test_an_area_that_is_no_swap_any_more_is_refused(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(BLOCK - 10)
        file.write(b"S1SUSPEND\0")
    before = disk.read_bytes()
    with pytest.raises(TargetHoldsData):
        prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h", area=AREA)
    assert disk.read_bytes() == before


def test_a_locator_of_a_swap_area_that_holds_the_kernels_own_image_is_left_alone(
    disk: Path,
) -> None:
    written(disk)
    with disk.open("r+b") as file:
        file.seek(BLOCK - 10)
        file.write(b"S1SUSPEND\0")
    before = disk.read_bytes()
    with pytest.raises(ImageDamaged):
        open_image(disk, writable=True)
    with pytest.raises(ImageDamaged):
        target.leave_reason(disk, 0, ImageDamaged("x"))
    assert disk.read_bytes() == before


def test_a_swap_area_without_a_locator_holds_no_image(tmp_path: Path) -> None:
    """Not even where behind its header there is one of a time when it was a target as a whole."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h")
    with disk.open("r+b") as file:
        file.write(SWAP_HEADER)
    with DirectDevice(disk) as device:
        assert superblocks.load(device) is not None
    with pytest.raises(NoImage):
        open_image(disk)


def test_the_reason_outlives_swapon(disk: Path) -> None:
    written(disk)
    with open_image(disk, writable=True) as device:
        superblock = superblocks.load(device)
        assert superblock is not None
        target.pass_over(
            device, superblock, reports.failed("resume", MemoryMapChanged("It changed."))
        )
    with disk.open("r+b") as file:  # swap is used
        file.seek(BLOCK)
        file.write(random.Random(9).randbytes(SIZE - BLOCK))
    examined = target.examine(disk)
    assert examined is not None
    assert (examined.state, examined.reason.error) == ("spent", "MemoryMapChanged")
    assert (examined.cycle_id, examined.area) == (CYCLE, SWAP)
    prepare.remove_locator(disk, 0)
    assert disk.read_bytes()[:BLOCK] == SWAP_HEADER
    assert target.examine(disk) is None


def test_an_image_that_was_swapped_over_is_found_damaged(disk: Path) -> None:
    written(disk)
    with disk.open("r+b") as file:
        file.seek(BLOCK)
        file.write(random.Random(9).randbytes(SIZE - BLOCK))
    with pytest.raises(ImageDamaged):
        open_image(disk)
    examined = target.examine(disk)
    assert examined is not None and examined.reason.error == "ImageDamaged"
    target.leave_reason(disk, 0, ImageDamaged("swapped over"))
    examined = target.examine(disk)
    assert examined is not None
    assert (examined.state, examined.reason.what) == ("spent", "swapped over")


def test_an_outcome_that_is_too_long_is_cut() -> None:
    packed = Locator(CYCLE, FILE, outcome=Report(error="X", what="y" * 5000, tries=1)).pack()
    assert len(packed) == locator.SIZE
    found = locator.unpack(packed.ljust(BLOCK, b"\0"))
    assert found is not None
    assert (found.outcome.error, found.outcome.tries) == ("X", 1)
    assert found.outcome.what == "y" * len(found.outcome.what)
    assert len(found.outcome.what) > locator.OUTCOME_ROOM - 80


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
OUTCOMES = st.builds(Report, by=TEXT, result=TEXT, error=TEXT, what=TEXT, tries=st.integers(0, 9))


@given(
    st.builds(
        Locator,
        cycle=st.uuids(),
        kind=st.sampled_from((FILE, SWAP)),
        map_offset=st.integers(0, 1 << 60),
        size=st.integers(0, 1 << 60),
        blocks=st.integers(0, 1 << 31),
        changed=st.floats(0, 1e10),
        outcome=st.builds(
            Report, by=TEXT, result=TEXT, error=TEXT, what=TEXT, tries=st.integers(0, 9)
        ),
    ),
    st.binary(min_size=BLOCK - 1034, max_size=BLOCK - 1034),
)
def test_a_locator_is_read_as_written_and_leaves_the_rest_of_its_block(
    wanted: Locator, rest: bytes
) -> None:
    block = bytes(1024) + rest + b"SWAPSPACE2"
    packed = locator.put_in(block, wanted.pack())
    assert packed[1024:] == block[1024:]
    assert locator.unpack(packed) == wanted
    assert locator.put_in(packed, bytes(1024)) == block


@given(st.binary(max_size=2 * BLOCK))
def test_any_block_is_none_a_locator_or_a_named_error(block: bytes) -> None:
    for head in (b"", locator.MAGIC):
        try:
            found = locator.unpack(head + block)
        except KjumpError:
            continue
        assert found is None or head


@settings(max_examples=at_most(100), deadline=None)
@given(st.data())
def test_a_map_with_anything_wrong_is_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One entry, or one field, is another; with right checksums, as only malice makes them."""
    disk = tmp_path_factory.mktemp("d") / "disk"
    disk.write_bytes(SWAP_HEADER + bytes(SIZE - BLOCK))
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h", area=AREA)
    with DirectDevice(disk, writable=True) as device:
        _, found = locator.read(device, 0)
        assert found is not None
        places, spans = locator.lay_out(AREA.spans)
        assert locator.read_map(device, found, 0) == spans
        what = data.draw(st.sampled_from(("entry", "next", "number", "count", "cycle", "locator")))
        number = data.draw(st.integers(0, len(places) - 1))
        block = bytearray(device.read(places[number], BLOCK))
        if what == "locator":
            change = data.draw(st.sampled_from(("size", "blocks", "map_offset", "cycle")))
            value = data.draw(st.integers(0, 1 << 31))
            new: Any = uuid.UUID(int=value) if change == "cycle" else value
            other = replace(found, **{change: new})
            if other == found:
                return
            device.write(0, locator.put_in(device.read(0, BLOCK), other.pack()))
        else:
            at, form = {
                "entry": (48 + 8 * data.draw(st.integers(0, 40)), "<Q"),
                "next": (32, "<Q"),
                "number": (28, "<I"),
                "count": (40, "<I"),
                "cycle": (8, "<Q"),
            }[what]
            near = [offset for offset, _ in spans[:5]] + places + [0, 1, BLOCK, SIZE, SIZE - BLOCK]
            value = data.draw(st.sampled_from(near) | st.integers(0, (1 << 32) - 1))
            (old,) = struct.unpack_from(form, block, at)
            if old == value:
                return
            struct.pack_into(form, block, at, value)
            block[24:28] = bytes(4)
            device.write(places[number], locator._sealed(bytes(block), 24))
        _, found = locator.read(device, 0)
        assert found is not None
        try:
            accepted = locator.read_map(device, found, 0)
        except ImageDamaged:
            return
        # Other blocks, but nothing shows it: whole ones on the device, none of them used twice.
        assert what == "entry"
        taken = [(0, BLOCK), *((offset, BLOCK) for offset in places), *accepted]
        flat = [at for offset, length in taken for at in range(offset, offset + length, BLOCK)]
        assert len(set(flat)) == len(flat) == 1 + len(places) + found.size // BLOCK
        assert max(flat) < SIZE and not any(at % BLOCK for at in flat)


@settings(max_examples=at_most(60), deadline=None)
@given(st.data())
def test_flipped_bits_are_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    disk = tmp_path_factory.mktemp("d") / "disk"
    disk.write_bytes(SWAP_HEADER + bytes(SIZE - BLOCK))
    prepare.prepare_target(disk, cycle_id=CYCLE, hostname="h", area=AREA)
    places, _ = locator.lay_out(AREA.spans)
    block = data.draw(st.sampled_from([0, *places]))
    at = block + data.draw(st.integers(0, 1023 if block == 0 else BLOCK - 1))
    with disk.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
    with pytest.raises((ImageDamaged, ImageVersion, NoImage)):
        open_image(disk)


def test_a_map_that_is_a_loop_ends(disk: Path) -> None:
    written(disk)
    places, spans = locator.lay_out(AREA.spans)
    with DirectDevice(disk, writable=True) as device:
        again = list(locator.pack_map(CYCLE, [*places[:2], places[0]], spans[: 2 * ENTRIES + 1]))
        device.write(places[1], again[1])
        _, found = locator.read(device, 0)
        assert found is not None
        with pytest.raises(ImageDamaged):
            locator.read_map(device, found, 0)


def test_a_map_of_another_cycle_is_not_believed(disk: Path) -> None:
    """The locator was torn off and put on again for another image."""
    found = written(disk)
    with DirectDevice(disk, writable=True) as device:
        other = replace(found, cycle=uuid.UUID(int=8))
        device.write(0, locator.put_in(device.read(0, BLOCK), other.pack()))
    with pytest.raises(ImageDamaged):
        open_image(disk)


def test_a_superblock_of_another_cycle_is_not_believed(disk: Path) -> None:
    """An older image's, in slots that were given away and taken again."""
    written(disk)
    with DirectDevice(disk, writable=True, spans=locator.lay_out(AREA.spans)[1]) as device:
        superblock = superblocks.load(device)
        assert superblock is not None
        superblocks.store(device, superblock, cycle=uuid.UUID(int=8))
    with pytest.raises(ImageDamaged):
        open_image(disk)


def test_cut_off_before_the_locator_nothing_is_there(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locator is the last to be written, and an old one the first to go."""
    written(disk)

    def power_goes(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(locator, "write_map", power_goes)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_target(disk, cycle_id=uuid.UUID(int=9), hostname="h", area=AREA)
    assert disk.read_bytes()[:BLOCK] == SWAP_HEADER
    with pytest.raises(NoImage):
        open_image(disk)


def test_an_area_without_room_is_refused(disk: Path) -> None:
    with pytest.raises(TargetTooSmall):
        prepare.prepare_target(
            disk, cycle_id=CYCLE, hostname="h", area=Area(SWAP, 0, scattered(10))
        )


# -- the place -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "offset"),
    [
        ("/dev/vda2:4096", "/dev/vda2", 4096),
        ("/dev/vda2", "/dev/vda2", None),
        ("PARTUUID=AB-CD:0", "/dev/disk/by-partuuid/ab-cd", 0),
        ("PARTLABEL=swap", "/dev/disk/by-partlabel/swap", None),
        (
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
            None,
        ),
        ("/dev/disk/by-path/scsi-0:0:0:0:", "/dev/disk/by-path/scsi-0:0:0:0", None),
    ],
)
def test_places(text: str, path: str, offset: int | None) -> None:
    paths, found = parse_location(text)
    assert (paths[0], found) == (Path(path), offset)
    assert parse_location(format_location(Path(path), offset)) == ([Path(path)], offset)


def test_the_state_of_an_image_is_kept_over_reopening(disk: Path) -> None:
    written(disk)
    with open_image(disk) as device:
        superblock = superblocks.load(device)
    assert superblock is not None and superblock.state == COMPLETE
    assert os.path.getsize(disk) == SIZE

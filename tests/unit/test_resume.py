# SPDX-License-Identifier: GPL-2.0-or-later
"""The way back: what is refused, and the stream for /dev/snapshot."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import (
    ImageDamaged,
    KjumpError,
    MemoryMapChanged,
    OtherMachine,
    PagingModeDiffers,
    RestoreFailed,
)
from kjump.handoff.report import Report
from kjump.image.description import Description
from kjump.image.extents import Extents
from kjump.image.layout import DATA, EXTENT, ZERO, Extent
from kjump.machine import code
from kjump.machine.memory import Entry
from kjump.machine.ranges import PAGE
from kjump.resume import restore, snapshot
from kjump.resume.snapshot import END, Insert

from . import samples

MACHINE = restore.Machine("id", [Entry(0, 0x9FC00, 1), Entry(0x100000, 0x8000000, 1)], 32000, 5)
DESCRIPTION = samples.description(
    machine="id",
    firmware_map=(Entry(0, 0x9FC00, 1), Entry(0x100000, 0x8000000, 1)),
    page_count=32000,
    levels=5,
    ram=((0x1000, 0x9F000), (0x100000, 0x8000000)),
    window=(0x4000000, 0x6000000),
    low=((0x1000, 0x9F000),),
)


def test_the_same_machine_is_accepted() -> None:
    restore.check(DESCRIPTION, MACHINE)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"machine": "other"}, OtherMachine),
        ({"firmware_map": [[0, 0x9FC00, 1]]}, MemoryMapChanged),
        ({"page_count": 31999}, MemoryMapChanged),
        ({"levels": 4}, PagingModeDiffers),
        ({"firmware_map": None}, ImageDamaged),
    ],
)
def test_what_differs_is_refused_by_name(
    change: dict[str, object], error: type[KjumpError]
) -> None:
    with pytest.raises(error):
        document = {**DESCRIPTION.to_json(), **change}
        restore.check(Description.from_json(document), MACHINE)


@pytest.mark.parametrize(
    "extent",
    [Extent(0x9F, 1), Extent(0x7FFF, 2), Extent(0x4000, 1), Extent(0x3FFF, 2), Extent(5, 1)],
)
def test_pages_outside_ram_or_in_the_window_are_refused(extent: Extent) -> None:
    # The kernel would write them wherever they point.
    with pytest.raises(ImageDamaged):
        DESCRIPTION.check_pages(Extents.of([extent]))
    DESCRIPTION.check_pages(Extents.of([Extent(0x100, 10), Extent(0x6000, 0x2000)]))


INSERT = 2
SPANS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 700), st.sampled_from([DATA, ZERO, INSERT])),
    min_size=1,
    max_size=12,
)


@dataclass
class Loaded:
    """A chunk as the reader gives it."""

    extents: Extents
    data: bytes

    @property
    def pages(self) -> int:
        return self.extents.data_pages


def page(pfn: int) -> bytes:
    return struct.pack("<Q", pfn + 1) * 512


@given(SPANS, st.integers(0, 3), st.integers(1, 5), st.booleans())
def test_numbers_and_stream_agree(
    spans: list[tuple[int, int, int]], most: int, per_chunk: int, replaces: bool
) -> None:
    """``most``: extents of zeros that are not loaded; ``replaces``: the inserts take the place of
    pages that the image has as well."""
    extents: list[Extent] = []
    inserts: list[Insert] = []
    content: dict[int, bytes] = {}
    at = 0
    for gap, pages, kind in spans:
        at += gap
        for pfn in range(at, at + pages):
            content[pfn] = bytes(PAGE) if kind == ZERO else page(pfn)
        if kind == INSERT:
            inserts.append(Insert(at, b"".join(content[p] for p in range(at, at + pages))))
            if replaces:
                extents.append(Extent(at, pages, DATA))
        else:
            extents.append(Extent(at, pages, kind))
        at += pages
    data = [e for e in extents if e.kind == DATA]
    chunks = [
        Loaded(
            Extents.of(part), b"".join(page(p) for e in part for p in range(e.pfn, e.pfn + e.pages))
        )
        for part in (data[i : i + per_chunk] for i in range(0, len(data), per_chunk))
    ]
    zeros, rest = Extents.of(extents).split(most)
    plan = snapshot.plan(rest, inserts)
    numbers = list(plan.numbers())
    assert len(numbers) % 512 == 0
    listed = numbers[: numbers.index(END)]
    cleared = [p for e in zeros for p in range(e.pfn, e.pfn + e.pages)]
    assert listed == sorted(content.keys() - set(cleared)) and len(listed) == plan.pages
    assert all(content[n] == bytes(PAGE) for n in cleared) and len(zeros) <= most
    stream = b"".join(
        buffer[offset : offset + length]
        for buffer, offset, length in snapshot.stream(chunks, plan)  # type: ignore[arg-type]
    )
    assert stream == b"".join(content[n] for n in listed)


def test_pages_of_zeros_are_cleared_not_loaded() -> None:
    description = replace(DESCRIPTION, jump_back=0x7FFF000)
    index = Extents.of([Extent(0x100, 4), Extent(0x104, 3, ZERO), Extent(0x200, 9, ZERO)])
    plan, tables = restore.beside(index, description, Report())
    # The report's page is one that is written, whatever it was.
    assert list(plan.numbers())[:5] == [0x100, 0x101, 0x102, 0x103, 0x200]
    (jump,) = [i for i in plan.inserts if i.pfn == 0x4000000 // PAGE]
    assert plan.pages == 5 + jump.pages and 0x4000000 < tables < 0x4000000 + len(jump.data)
    at = struct.unpack_from("<4Q", jump.data, code.JUMP_PARAMETERS)[3] - 0x4000000
    found = list(EXTENT.iter_unpack(jump.data[at : at + 3 * EXTENT.size]))
    assert found == [(0x104, 3, ZERO), (0x201, 8, ZERO), (0, 0, 0)]


def test_what_the_list_of_zeros_has_no_room_for_is_loaded() -> None:

    def description(end: int) -> Description:
        facts = replace(DESCRIPTION.facts, report_page=0x100000, window=(0x4000000, end))
        return replace(DESCRIPTION, facts=facts, jump_back=0x7FFF000)

    zeros = [Extent(0x200 + 2 * n, 1, ZERO) for n in range(5000)]
    plan, _tables = restore.beside(Extents.of(zeros), description(0x4000000 + 64 * PAGE), Report())
    kept = 64 * PAGE // restore.ZEROS_SHARE // EXTENT.size
    jump = next(i for i in plan.inserts if i.pfn == 0x4000000 // PAGE)
    assert plan.pages == 1 + jump.pages + 5000 - kept
    with pytest.raises(RestoreFailed, match="no room"):
        restore.beside(Extents.of(zeros), description(0x4002000), Report())


def test_header_fields() -> None:
    page = snapshot.header(
        jump=0x31800000,
        tables=0x31802000,
        map_checksum=7,
        page_count=262000,
        data_pages=100,
        meta_pages=3,
    )
    assert struct.unpack_from("<5Q", page) == (
        0x31800000,
        0x31800000,
        0x31802000,
        0x23456789ABCDEF02,
        7,
    )
    assert struct.unpack_from("<Q", page, 400) == (262000,)
    assert struct.unpack_from("<3Q", page, 416) == (100, 104, 104 * PAGE)


@given(st.integers(0, 30), st.integers(1, 12), st.booleans())
def test_replaced_takes_out_pages_and_puts_others_in(pfn: int, count: int, put: bool) -> None:
    extents = Extents.of([Extent(3, 5), Extent(10, 1, ZERO), Extent(12, 9)])
    found = extents.replaced(pfn, count, Extent(pfn, count, ZERO) if put else None)

    def pages(es: Extents) -> set[tuple[int, int]]:
        return {(p, e.kind) for e in es for p in range(e.pfn, e.pfn + e.pages)}

    inside = {(p, ZERO) for p in range(pfn, pfn + count)} if put else set()
    assert pages(found) == inside | {
        (p, k) for p, k in pages(extents) if not pfn <= p < pfn + count
    }
    assert all(e.pages for e in found)


def test_feed_takes_pages_one_vector_each(tmp_path: Path) -> None:
    data = bytes(range(256)) * 16 * 1500
    device = snapshot.Snapshot.__new__(snapshot.Snapshot)
    with (tmp_path / "out").open("w+b") as file:
        device._fd = file.fileno()
        device.write_pages(data, PAGE, len(data) - PAGE)
        assert (tmp_path / "out").read_bytes() == data[PAGE:]
        with pytest.raises(ValueError):
            device.write_pages(data, PAGE, len(data))
    device._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(RestoreFailed):
        device.write_pages(data, 0, PAGE)
    os.close(device._fd)


def test_freezing_and_the_jump_are_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no /dev/snapshot knows none of its requests."""
    path = tmp_path / "snapshot"
    path.touch()
    monkeypatch.setattr(snapshot, "SNAPSHOT_DEVICE", path)
    with snapshot.Snapshot() as device, pytest.raises(RestoreFailed, match="restoring"):
        device.restore()
    assert not hasattr(snapshot, "fcntl")

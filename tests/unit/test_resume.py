"""The way back: what is refused, and the stream for /dev/snapshot."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import ImageDamaged, KjumpError, MemoryMapChanged, OtherMachine, PagingModeDiffers
from kjump.image.layout import DATA, ZERO, Extent
from kjump.image.place import check_pages
from kjump.machine.memory import Entry
from kjump.machine.ranges import PAGE
from kjump.resume import restore, snapshot
from kjump.resume.snapshot import END, ZERO_PAGE, Insert

MACHINE = restore.Machine("id", [Entry(0, 0x9FC00, 1), Entry(0x100000, 0x8000000, 1)], 32000, 5)
DESCRIPTION = {
    "machine": "id",
    "firmware_map": [[0, 0x9FC00, 1], [0x100000, 0x8000000, 1]],
    "page_count": 32000,
    "levels": 5,
    "ram": [[0x1000, 0x9F000], [0x100000, 0x8000000]],
    "window": [0x4000000, 0x6000000],
    "low": [[0x1000, 0x9F000]],
}


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
        restore.check({**DESCRIPTION, **change}, MACHINE)


@pytest.mark.parametrize(
    "extent",
    [Extent(0x9F, 1), Extent(0x7FFF, 2), Extent(0x4000, 1), Extent(0x3FFF, 2), Extent(5, 1)],
)
def test_pages_outside_ram_or_in_the_window_are_refused(extent: Extent) -> None:
    # The kernel would write them wherever they point.
    with pytest.raises(ImageDamaged):
        check_pages([extent], DESCRIPTION)
    check_pages([Extent(0x100, 10), Extent(0x6000, 0x2000)], DESCRIPTION)


INSERT = 2
SPANS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 700), st.sampled_from([DATA, ZERO, INSERT])),
    min_size=1,
    max_size=12,
)


@given(SPANS, st.booleans(), st.integers(1, 5))
def test_numbers_and_stream_agree(
    spans: list[tuple[int, int, int]], zero_pages: bool, per_chunk: int
) -> None:
    extents: list[Extent] = []
    inserts: list[Insert] = []
    content: dict[int, bytes] = {}
    at = 0
    for gap, pages, kind in spans:
        at += gap
        for pfn in range(at, at + pages):
            content[pfn] = bytes(PAGE) if kind == ZERO else struct.pack("<Q", pfn + 1) * 512
        if kind == INSERT:
            inserts.append(Insert(at, b"".join(content[p] for p in range(at, at + pages))))
        else:
            extents.append(Extent(at, pages, kind))
        at += pages
    data = [e for e in extents if e.kind == DATA]
    chunks = [
        (part, b"".join(content[p] for e in part for p in range(e.pfn, e.pfn + e.pages)))
        for part in (data[i : i + per_chunk] for i in range(0, len(data), per_chunk))
    ]
    numbers = snapshot.numbers(extents, inserts, zero_pages=zero_pages)
    assert len(numbers) % 512 == 0
    listed = list(numbers[: numbers.index(END)])
    plain = [n & ~ZERO_PAGE for n in listed]
    assert plain == sorted(content) and not listed[-1] & ZERO_PAGE
    assert zero_pages or not any(n & ZERO_PAGE for n in listed)
    stream = b"".join(snapshot.stream(chunks, extents, inserts, zero_pages=zero_pages))
    wanted = [n for n in listed if not n & ZERO_PAGE]
    assert restore._data_pages(numbers) == len(wanted)
    assert stream == b"".join(content[n] for n in wanted)
    assert all(content[n & ~ZERO_PAGE] == bytes(PAGE) for n in listed if n & ZERO_PAGE)


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
        0x31800000, 0x31800000, 0x31802000, 0x23456789ABCDEF02, 7,
    )  # fmt: skip
    assert struct.unpack_from("<Q", page, 400) == (262000,)
    assert struct.unpack_from("<3Q", page, 416) == (100, 104, 104 * PAGE)


@given(st.integers(0, 30))
def test_without_takes_out_one_page(pfn: int) -> None:
    extents = [Extent(3, 5), Extent(10, 1, ZERO), Extent(12, 9)]
    found = restore.without(extents, pfn)

    def pages(es: list[Extent]) -> set[tuple[int, int]]:
        return {(p, e.kind) for e in es for p in range(e.pfn, e.pfn + e.pages)}

    assert pages(found) == {(p, k) for p, k in pages(extents) if p != pfn}
    assert all(e.pages for e in found)


def test_array_is_of_64_bits() -> None:
    assert array("Q").itemsize == 8

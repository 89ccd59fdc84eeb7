# SPDX-License-Identifier: GPL-2.0-or-later
"""Page states: the native loops against plain ones, and struct page through page tables."""

from __future__ import annotations

import json
import mmap
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import MemoryUnreadable
from kjump.helper.states import SHARES, WINDOW, States
from kjump.image.extents import Extents
from kjump.image.layout import DATA, ZERO
from kjump.machine import pages, structpage, vmcoreinfo
from kjump.machine.ranges import PAGE

# Lines of a real VMCOREINFO: 6.12.117, x86_64.
VMCOREINFO = b"""\
OSRELEASE=6.12.117-kjump
PAGESIZE=4096
SYMBOL(init_top_pgt)=ffffffff82a10000
SYMBOL(vmemmap)=ffffea0000000000
NUMBER(phys_base)=-1048576
NUMBER(pgtable_l5_enabled)=0
NUMBER(sme_mask)=0
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page._refcount)=52
OFFSET(page._mapcount)=48
OFFSET(page.private)=40
LENGTH(zone.free_area)=11
NUMBER(PG_hwpoison)=20
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240
"""
FACTS = vmcoreinfo.parse(VMCOREINFO + bytes(7))
LAYOUT = structpage.layout(FACTS)


def struct_page(mapcount: int = 0xFFFFFFFF, private: int = 0, flags: int = 0) -> bytes:
    page = bytearray(64)
    struct.pack_into("<Q", page, 0, flags)
    struct.pack_into("<Q", page, 40, private)
    struct.pack_into("<I", page, 48, mapcount)
    return bytes(page)


BUDDY, OFFLINE = 0xF0000000, 0xF1000000


def classify(structs: list[bytes], step: int | None = None) -> list[int]:
    kinds = bytearray(len(structs))
    classifier = pages.Classifier(LAYOUT)
    step = step or len(structs)
    for at in range(0, len(structs), step):
        part = structs[at : at + step]
        classifier.classify(b"".join(part), 0, len(part), kinds, at)
    return list(kinds)


def test_layout_values_are_unsigned() -> None:
    assert (LAYOUT.buddy, LAYOUT.offline, LAYOUT.unaccepted) == (BUDDY, OFFLINE, None)
    assert LAYOUT.max_order == 11


def test_each_state() -> None:
    found = classify(
        [
            struct_page(),
            struct_page(BUDDY, private=1),
            struct_page(),  # the block's second page
            struct_page(OFFLINE),
            struct_page(flags=1 << 20),
            struct_page(0),
        ]
    )
    assert found == [
        pages.SAVE,
        pages.FREE,
        pages.FREE,
        pages.OFFLINE,
        pages.POISONED,
        pages.SAVE,
    ]


UNACCEPTED = {"NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)": "-150994944"}  # of 7.2.13


@pytest.mark.parametrize("step", [1, 64, 1000, 4096])
def test_unaccepted_memory_is_in_whole_blocks_of_the_highest_order(step: int) -> None:
    """Its first page only is marked, without an order, and none of it may be touched."""
    block = [struct_page(0xF7000000)] + [struct_page()] * 1023
    structs = [struct_page(), *block, *block, struct_page(BUDDY, private=1), *[struct_page()] * 2]
    kinds = bytearray(len(structs))
    classifier = pages.Classifier(structpage.layout(FACTS | UNACCEPTED))
    for at in range(0, len(structs), step):
        part = structs[at : at + step]
        classifier.classify(b"".join(part), 0, len(part), kinds, at)
    wanted = [pages.SAVE, *[pages.UNACCEPTED] * 2048, pages.FREE, pages.FREE, pages.SAVE]
    assert list(kinds) == wanted


@pytest.mark.parametrize(
    "line",
    [
        "LENGTH(zone.free_area)=0",
        "LENGTH(zone.free_area)=64",
        "SIZE(page)=16",
        "OFFSET(page.flags)=-8",
        "OFFSET(page.private)=60",
        "OFFSET(page._mapcount)=64",
        "NUMBER(PG_hwpoison)=64",
    ],
)
def test_an_impossible_layout_is_refused(line: str) -> None:
    key, _, value = line.partition("=")
    with pytest.raises(MemoryUnreadable, match="impossible struct page"):
        structpage.layout(FACTS | {key: value})


def test_an_impossible_order_is_rather_saved() -> None:
    assert classify([struct_page(BUDDY, private=11), struct_page()]) == [pages.SAVE, pages.SAVE]


@given(
    st.lists(st.one_of(st.integers(0, 4), st.just(None), st.just(-1)), max_size=30),
    st.integers(1, 40),
)
def test_blocks_go_on_across_calls(blocks: list[int | None], step: int) -> None:
    structs: list[bytes] = []
    wanted: list[int] = []
    for block in blocks:
        if block is None:
            structs.append(struct_page())
            wanted.append(pages.SAVE)
        elif block == -1:
            structs.append(struct_page(OFFLINE))
            wanted.append(pages.OFFLINE)
        else:
            structs += [struct_page(BUDDY, private=block)] + [struct_page()] * ((1 << block) - 1)
            wanted += [pages.FREE] * (1 << block)
    if structs:
        assert classify(structs, step) == wanted


KINDS = st.lists(st.sampled_from(["zero", "data", "free", "marked"]), max_size=60)


def memory_of(what: list[str]) -> tuple[bytes, bytearray]:
    """Pages, and their kinds; "marked" pages are known to be zero whatever they hold."""
    memory = b"".join(
        bytes(PAGE) if w == "zero" else bytes(PAGE - 1) + bytes([i % 255 + 1])
        for i, w in enumerate(what)
    )
    kinds = {"free": pages.FREE, "marked": pages.ZERO}
    return memory, bytearray(kinds.get(w, pages.SAVE) for w in what)


@given(KINDS, st.integers(1, 10))
def test_gather_copies_data_and_lists_zeros(what: list[str], room: int) -> None:
    memory, kinds = memory_of(what)
    held = pages.Kinds(kinds)
    bundle = pages.Bundle(room)
    buffer = mmap.mmap(-1, (room + 1) * PAGE)
    got: list[tuple[int, int]] = []
    data = b""
    at = 0
    while at < len(what):
        bundle.into(buffer, PAGE)
        looked = bundle.gather(memory, at * PAGE, len(what) - at, held, at, 100 + at)
        assert looked
        listed = Extents(bundle.extents())
        assert (bundle.used, bundle.zeros) == (listed.data_pages, listed.zero_pages)
        data += buffer[PAGE:][: bundle.used * PAGE]
        got += [(p, e.kind) for e in listed for p in range(e.pfn, e.pfn + e.pages)]
        at += looked
    assert data == b"".join(
        memory[i * PAGE : (i + 1) * PAGE] for i, w in enumerate(what) if w == "data"
    )
    kind_of = {"data": DATA, "zero": ZERO, "marked": ZERO}
    assert got == [(100 + i, kind_of[w]) for i, w in enumerate(what) if w != "free"]
    assert [k == pages.ZERO for k in kinds] == [w in ("zero", "marked") for w in what]


def test_hidden_ranges_are_marked_in_every_range_of_ram() -> None:
    states = States([(1, 5), (100, 110)])
    states.mark((pair for pair in [(2, 4), (105, 108)]), WINDOW)
    assert states.counts()["window"] == 5


@given(KINDS, st.integers(1, 10))
def test_a_span_never_has_more_than_a_bundle_has_room_for(what: list[str], most: int) -> None:
    memory, kinds = memory_of(what)
    held = pages.Kinds(kinds)
    bundle = pages.Bundle(most)
    buffer = mmap.mmap(-1, most * PAGE)
    at = 0
    while at < len(what):
        count = held.span(at, len(what), most)
        assert 0 < count <= len(what) - at
        bundle.into(buffer, 0)
        assert bundle.gather(memory, at * PAGE, count, held, at, at) == count
        at += count


def test_bounds_are_checked_before_the_native_code_is_called() -> None:
    with pytest.raises(ValueError):
        pages.Bundle(2).into(mmap.mmap(-1, 2 * PAGE), PAGE)
    with pytest.raises(ValueError):
        pages.Bundle(1).gather(bytes(PAGE), 0, 2, pages.Kinds(bytearray(2)), 0, 0)
    with pytest.raises(ValueError):
        pages.Bundle(1).gather(bytes(2 * PAGE), 0, 2, pages.Kinds(bytearray(1)), 0, 0)
    with pytest.raises(ValueError):
        pages.Kinds(bytearray(3)).span(1, 4, 1)
    with pytest.raises(ValueError):
        pages.Classifier(LAYOUT).classify(bytes(64), 0, 2, bytearray(2), 0)
    with pytest.raises(ValueError):
        pages.Classifier(LAYOUT).classify(bytes(128), 0, 2, bytearray(1), 0)


def test_states_hide_the_window_and_turn_free_to_zero() -> None:
    states = States([(1, 5), (100, 110)])
    states.mark([(3, 104)], WINDOW)
    states.mark([(1, 2)], pages.FREE)
    states.free_is_zero()
    counts = states.counts()
    assert (counts["window"], counts["zero"], counts["free"], counts["data"]) == (6, 1, 0, 7)
    spans = list(states.spans(2))
    assert [p for s in spans for p in range(s.first, s.last)] == [*range(1, 5), *range(100, 110)]
    assert all(s.kinds.kinds[s.at : s.at + 1] for s in spans)


def test_the_coarse_map_says_where_pages_of_each_kind_lie() -> None:
    states = States([(0, 40), (80, 400)])
    states.mark([(0, 10), (399, 400)], pages.ZERO)
    states.mark([(100, 200)], WINDOW)
    found = states.coarse(10)
    assert found.keys() == {"cell_pages", "data", "zero", "window"}
    assert found["cell_pages"] == 40
    shares = {
        name: [SHARES.index(c) for c in str(found[name])] for name in ("data", "zero", "window")
    }
    assert shares["data"] == [46, 0, 31, 0, 0, 61, 61, 61, 61, 60]
    assert shares["window"] == [0, 0, 31, 61, 61, 0, 0, 0, 0, 0]
    # A single page of a kind is seen, and the page that carries the report has room for it all.
    assert shares["zero"][9] == 2
    many = States([(i * 1000, i * 1000 + 700) for i in range(500)])
    for kind in range(7):
        many.mark([(i * 1000 + kind * 100, i * 1000 + kind * 100 + 100) for i in range(500)], kind)
    assert len(json.dumps(many.coarse())) < 1100
    assert States([]).coarse() == {"cell_pages": 1}


# -- walking page tables ---------------------------------------------------------------------------


class Memory:
    """Physical memory made of the quads that were set."""

    def __init__(self) -> None:
        self.quads: dict[int, int] = {}

    def read(self, start: int, size: int) -> bytes:
        return b"".join(
            struct.pack("<Q", self.quads.get(at, 0)) for at in range(start, start + size, 8)
        )


def test_translate_and_spans_through_2_mib_pages() -> None:
    memory = Memory()
    root = 0x82A10000 - 0x80000000 - 1048576
    vmemmap = 0xFFFFEA0000000000
    pgd, pud, pmd = (vmemmap >> s & 511 for s in (39, 30, 21))
    memory.quads |= {
        root + pgd * 8: 0x5000 | 0x63,
        0x5000 + pud * 8: 0x6000 | 0x63,
        0x6000 + pmd * 8: 0x4000000 | 0xE3 | 1 << 63,  # a leaf, no-execute
        0x6000 + pmd * 8 + 8: 0x8000000 | 0xE3,
    }
    space = structpage.AddressSpace(FACTS, memory.read)
    assert space.root == root
    assert space.translate(vmemmap + 0x1234) == (0x4001234, (2 << 20) - 0x1234)
    assert list(space.spans(vmemmap + (1 << 20), 2 << 20)) == [
        (0x4100000, 1 << 20),
        (0x8000000, 1 << 20),
    ]
    with pytest.raises(MemoryUnreadable):
        space.translate(vmemmap + (4 << 20))
    where = structpage.MemoryMap(FACTS, space, memory.read)
    assert where.struct_page(3) == vmemmap + 3 * 64


def test_what_the_kernel_does_not_tell_is_an_error_with_its_name() -> None:
    with pytest.raises(MemoryUnreadable, match="PAGE_BUDDY_MAPCOUNT_VALUE"):
        structpage.layout({k: v for k, v in FACTS.items() if "BUDDY" not in k})

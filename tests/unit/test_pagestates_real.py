# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper's page states against what real kernels say of the same pages.

Each fixture is the memory of a running kernel, as far as the way from a pfn to its struct page
leads through it, and /proc/kpageflags of these pfns (fixtures/pagestates/README.md).  The states
are found by the helper's own code, from VMCOREINFO on.
"""

from __future__ import annotations

import json
import mmap
import struct
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from kjump.errors import MemoryUnreadable
from kjump.helper.states import States, classify
from kjump.machine import pages, structpage, vmcoreinfo
from kjump.machine.ranges import PAGE, Range, merge
from kjump.machine.vmcore import Vmcore

FIXTURES = Path(__file__).parent / "fixtures/pagestates"
NAMES = sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("*.tar.xz"))

# include/uapi/linux/kernel-page-flags.h
SLAB, BUDDY, ANON, HEAD, TAIL, HUGE, HWPOISON, NOPAGE, THP, OFFLINE, PAGE_TABLE = (
    7,
    10,
    12,
    15,
    16,
    17,
    19,
    20,
    22,
    23,
    26,
)
RESERVED = 32  # include/linux/kernel-page-flags.h
CHANGED = (1 << 64) - 1
"""Stands for the flags of a page that changed while it was captured."""


@dataclass(frozen=True)
class Captured:
    """A kernel as it was captured; ``memory`` by physical address of whole pages."""

    about: Mapping[str, Any]
    facts: dict[str, str]
    flags: dict[int, int]
    memory: dict[int, bytes]

    @classmethod
    def load(cls, name: str) -> Captured:
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as tar:
            files = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
        about = json.loads(files["about.json"])
        given = struct.iter_unpack("<Q", files["kpageflags"])
        pfns = (pfn for start, end in about["runs"] for pfn in range(start, end))
        return cls(
            about,
            vmcoreinfo.parse(files["vmcoreinfo"]),
            {pfn: flags for pfn, (flags,) in zip(pfns, given, strict=True) if flags != CHANGED},
            {
                int(member.removeprefix("pages/"), 16): data
                for member, data in files.items()
                if member.startswith("pages/")
            },
        )

    @property
    def ram(self) -> list[Range]:
        return merge((start * PAGE, end * PAGE) for start, end in self.about["runs"])

    def read(self, start: int, size: int) -> bytes:
        first = start // PAGE * PAGE
        try:
            whole = b"".join(self.memory[at] for at in range(first, start + size, PAGE))
        except KeyError as error:
            raise MemoryUnreadable(f"Page {error.args[0]:#x} was not captured.") from error
        return whole[start - first : start - first + size]

    def map(self, start: int, size: int) -> tuple[mmap.mmap, int]:
        view = mmap.mmap(-1, size)
        view[:] = self.read(start, size)
        return view, 0

    def classify(self, facts: Mapping[str, str] | None = None) -> States:
        return classify(cast(Vmcore, self), facts or self.facts, self.ram, [])


@pytest.fixture(params=NAMES, scope="module")
def kernel(request: pytest.FixtureRequest) -> Captured:
    return Captured.load(request.param)


def expected(flags: int) -> int:
    """The state that the kernel's own flags stand for.

    KPF_BUDDY is set for every page of a free block, not for its first one only (stable_page_flags
    in fs/proc/page.c).  A broken page may be flagged otherwise, too; that it is broken counts.
    """
    if flags >> HWPOISON & 1:
        return pages.POISONED
    if flags >> BUDDY & 1:
        return pages.FREE
    if flags >> OFFLINE & 1:
        return pages.OFFLINE
    return pages.SAVE


def test_there_is_a_kernel_of_each_layout() -> None:
    assert {"6.1", "6.12", "7.2"} <= set(NAMES)
    for name in NAMES:
        assert Captured.load(name).facts["OSRELEASE"].startswith(f"{name}.")


def test_every_page_is_what_the_kernel_says(kernel: Captured) -> None:
    states = kernel.classify()
    wrong = {}
    for start, _end, kinds in states.ranges:
        for pfn, kind in enumerate(kinds, start):
            flags = kernel.flags.get(pfn)
            if flags is not None and kind != expected(flags):
                wrong[hex(pfn)] = (pages.NAMES[kind], pages.NAMES[expected(flags)], hex(flags))
    assert not wrong


def test_the_fixture_shows_something(kernel: Captured) -> None:
    """Else the test above would prove nothing."""
    assert len(kernel.flags) > 8000
    assert len(kernel.flags) > 0.99 * sum(end - start for start, end in kernel.ram) / PAGE
    seen = {
        bit: sum(flags >> bit & 1 for flags in kernel.flags.values())
        for bit in (SLAB, ANON, HEAD, TAIL, HUGE, THP, PAGE_TABLE, RESERVED, OFFLINE)
    }
    assert min(seen.values()) >= 4, seen
    kinds = Counter(expected(flags) for flags in kernel.flags.values())
    assert kinds[pages.FREE] > 1000 and kinds[pages.SAVE] > 1000 and kinds[pages.POISONED]
    assert len(orders(kernel)) >= 6


def orders(kernel: Captured) -> Counter[int]:
    """Free blocks by order, read from the struct pages in Python."""
    layout = structpage.layout(kernel.facts)
    space = structpage.AddressSpace(kernel.facts, kernel.read)
    where = structpage.MemoryMap(kernel.facts, space, kernel.read)
    found: Counter[int] = Counter()
    for pfn in kernel.flags:
        at, _room = space.translate(where.struct_page(pfn))
        page = kernel.read(at, layout.size)
        if struct.unpack_from("<I", page, layout.mapcount)[0] == layout.buddy:
            found[struct.unpack_from("<Q", page, layout.private)[0]] += 1
    return found


def test_free_blocks_are_of_orders_below_the_number_of_orders(kernel: Captured) -> None:
    """LENGTH(zone.free_area) counts the orders, 0 included; the largest one is among the blocks."""
    assert max(orders(kernel)) == int(kernel.facts["LENGTH(zone.free_area)"]) - 1


def test_both_ways_to_struct_page_agree(kernel: Captured) -> None:
    """By the symbol vmemmap, which 6.1 does not export, and by mem_section, which all have."""
    without = {key: value for key, value in kernel.facts.items() if key != "SYMBOL(vmemmap)"}
    assert ("SYMBOL(vmemmap)" in kernel.facts) == (not kernel.facts["OSRELEASE"].startswith("6.1."))
    assert kernel.classify(without).ranges == kernel.classify().ranges


NEEDED = (
    "SIZE(page)",
    "OFFSET(page.flags)",
    "OFFSET(page._mapcount)",
    "OFFSET(page.private)",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
    "LENGTH(zone.free_area)",
    "NUMBER(phys_base)",
)
NEEDED_WITHOUT_VMEMMAP = (
    "SYMBOL(mem_section)",
    "LENGTH(mem_section)",
    "SIZE(mem_section)",
    "OFFSET(mem_section.section_mem_map)",
    "NUMBER(SECTION_SIZE_BITS)",
)


@pytest.mark.parametrize("key", [*NEEDED, *NEEDED_WITHOUT_VMEMMAP])
def test_a_kernel_that_lacks_a_key_is_refused(kernel: Captured, key: str) -> None:
    gone = {key} | ({"SYMBOL(vmemmap)"} if key in NEEDED_WITHOUT_VMEMMAP else set())
    with pytest.raises(MemoryUnreadable) as caught:
        kernel.classify({k: v for k, v in kernel.facts.items() if k not in gone})
    assert key in caught.value.sentence


def test_a_kernel_without_page_tables_is_refused(kernel: Captured) -> None:
    gone = ("SYMBOL(init_top_pgt)", "SYMBOL(swapper_pg_dir)")
    with pytest.raises(MemoryUnreadable, match="init_top_pgt"):
        kernel.classify({k: v for k, v in kernel.facts.items() if k not in gone})

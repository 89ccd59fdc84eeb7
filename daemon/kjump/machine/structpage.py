# SPDX-License-Identifier: GPL-2.0-or-later
"""Struct page of the session's kernel: its layout, and where the page states lie.

Pure, except for the reader that the caller passes.  It walks the session's page tables from
``init_top_pgt`` to find the memory of ``vmemmap`` (virtual array of struct page, 2 MiB mappings).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kjump.errors import MemoryUnreadable
from kjump.machine.ranges import PAGE
from kjump.machine.vmcoreinfo import number, symbol

START_KERNEL_MAP = 0xFFFFFFFF80000000
ADDRESS = 0x000FFFFFFFFFF000
PRESENT, LARGE = 1, 1 << 7
U32 = 0xFFFFFFFF

ReadPhysical = Callable[[int, int], bytes]
"""Reads (physical address, bytes) of the session's memory; raises OSError or
`MemoryUnreadable`."""


@dataclass(frozen=True)
class Layout:
    """Sizes and offsets in bytes; values of ``_mapcount`` as unsigned 32 bits."""

    size: int
    flags: int
    mapcount: int
    private: int
    buddy: int
    offline: int | None
    unaccepted: int | None
    max_order: int
    hwpoison_bit: int | None


def layout(facts: Mapping[str, str]) -> Layout:
    """The layout that VMCOREINFO describes.  Raises `MemoryUnreadable`."""

    def optional(key: str) -> int | None:
        return number(facts, key) if key in facts else None

    def value(key: str) -> int | None:
        found = optional(key)
        return None if found is None else found & U32

    # LENGTH(zone.free_area) is the number of orders, so orders are below it.
    found = Layout(
        size=number(facts, "SIZE(page)"),
        flags=number(facts, "OFFSET(page.flags)"),
        mapcount=number(facts, "OFFSET(page._mapcount)"),
        private=number(facts, "OFFSET(page.private)"),
        buddy=number(facts, "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)") & U32,
        offline=value("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)"),
        # NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE) since 6.16
        unaccepted=value("NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)"),
        max_order=number(facts, "LENGTH(zone.free_area)"),
        hwpoison_bit=optional("NUMBER(PG_hwpoison)"),
    )
    inside = (
        0 <= found.flags <= found.size - 8
        and 0 <= found.mapcount <= found.size - 4
        and 0 <= found.private <= found.size - 8
        and 0 < found.max_order < 32
        and (found.hwpoison_bit is None or 0 <= found.hwpoison_bit < 64)
    )
    if not inside:
        raise MemoryUnreadable(f"VMCOREINFO describes an impossible struct page: {found}.")
    return found


class AddressSpace:
    """The session's kernel address space, by walking its page tables."""

    def __init__(self, facts: Mapping[str, str], read: ReadPhysical) -> None:
        self._read = read
        top = symbol(facts, "init_top_pgt", "swapper_pg_dir")
        self.root = top - START_KERNEL_MAP + number(facts, "NUMBER(phys_base)")
        self.levels = 5 if facts.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
        # With SME every entry contains the encryption bit.
        self._mask = ADDRESS & ~(
            number(facts, "NUMBER(sme_mask)") if "NUMBER(sme_mask)" in facts else 0
        )

    def translate(self, address: int) -> tuple[int, int]:
        """Physical address, and how many bytes from there on are contiguous.

        Raises `MemoryUnreadable` if nothing is mapped there.
        """
        table, shift = self.root, 12 + 9 * (self.levels - 1)
        while True:
            (entry,) = struct.unpack("<Q", self._read(table + (address >> shift & 511) * 8, 8))
            if not entry & PRESENT:
                raise MemoryUnreadable(
                    f"Virtual address {address:#x} is not mapped in the session."
                )
            if shift == 12 or (entry & LARGE and shift <= 30):
                inside = address & (1 << shift) - 1
                return (entry & self._mask & ~((1 << shift) - 1)) + inside, (1 << shift) - inside
            table, shift = entry & self._mask, shift - 9

    def spans(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """(physical address, bytes) pieces that make up the virtual bytes."""
        while size:
            physical, room = self.translate(address)
            room = min(room, size)
            yield physical, room
            address, size = address + room, size - room


class MemoryMap:
    """Where the struct page of a pfn lies (virtual address), for SPARSEMEM kernels."""

    def __init__(self, facts: Mapping[str, str], space: AddressSpace, read: ReadPhysical) -> None:
        self._size = number(facts, "SIZE(page)")
        self._space = space
        self._read = read
        self._facts = facts
        self._vmemmap: int | None = None
        if "SYMBOL(vmemmap)" in facts:  # absent on 6.1
            self._vmemmap = self._array(symbol(facts, "vmemmap"))

    def _array(self, address: int) -> int:
        """VMCOREINFO_SYMBOL_ARRAY gives the address of an array, VMCOREINFO_SYMBOL that of the
        pointer to it; a pointer variable lies in the kernel image, the array does not."""
        return self._dereference(address) if address >= START_KERNEL_MAP else address

    def _dereference(self, address: int) -> int:
        physical, _room = self._space.translate(address)
        return int(struct.unpack("<Q", self._read(physical, 8))[0])

    def struct_page(self, pfn: int) -> int:
        """Virtual address of the pfn's struct page.  Raises `MemoryUnreadable`."""
        if self._vmemmap is not None:
            return self._vmemmap + pfn * self._size
        return self._section(pfn) + pfn * self._size

    def _section(self, pfn: int) -> int:
        """``section_mem_map`` without its flag bits: the base to which a pfn is added."""
        facts = self._facts
        section = pfn >> (number(facts, "NUMBER(SECTION_SIZE_BITS)") - 12)
        size = number(facts, "SIZE(mem_section)")
        roots = number(facts, "LENGTH(mem_section)")
        table = self._array(symbol(facts, "mem_section"))
        if roots and size:
            per_root = PAGE // size
            root = self._dereference(table + section // per_root * 8)
            if not root:
                raise MemoryUnreadable(f"Memory section {section} of the session is absent.")
            coded = self._dereference(
                root
                + section % per_root * size
                + number(facts, "OFFSET(mem_section.section_mem_map)")
            )
            return coded & ~0x3F
        raise MemoryUnreadable(
            "VMCOREINFO of the session's kernel does not say where struct page is."
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Identity page tables for the jump back, for 4- and 5-level paging.

Pure.  CR4.LA57 cannot be switched in long mode, so the number of levels must be the session's; a
jump with the other number of levels is a triple fault.  Entries are supervisor, writable,
accessed and dirty, without NX because the mapped code runs (Intel SDM vol. 3, 4.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from kjump.machine.ranges import PAGE, Range

PRESENT, WRITABLE, ACCESSED, DIRTY, LARGE = 1 << 0, 1 << 1, 1 << 5, 1 << 6, 1 << 7
TABLE = PRESENT | WRITABLE | ACCESSED
LEAF = TABLE | DIRTY | LARGE


def identity(
    base: int, ranges: Iterable[Range], *, levels: int, gigabyte_pages: bool = False
) -> bytes:
    """Tables that map every byte of ``ranges`` (physical) to itself.

    ``base``: the physical address at which the tables will lie, page aligned; the top level comes
    first, so ``base`` is the value for CR3.  A leaf maps 1 GiB with ``gigabyte_pages``, else
    2 MiB.  Returns whole pages.  Raises ValueError for an address that the levels cannot reach.
    """
    if levels not in (4, 5):
        raise ValueError(f"{levels}-level paging")
    leaf_shift = 30 if gigabyte_pages else 21
    leaves = sorted(
        {
            n
            for start, end in ranges
            for n in range(start >> leaf_shift, (end - 1 >> leaf_shift) + 1)
        }
    )
    reach = 12 + 9 * levels - 1  # the lower half of the canonical addresses
    if leaves and leaves[-1] << leaf_shift >= 1 << reach:
        raise ValueError(f"{leaves[-1] << leaf_shift:#x} is out of reach of {levels} levels")
    pages: list[dict[int, int]] = [{}]
    for leaf in leaves:
        address = leaf << leaf_shift
        table, shift = 0, 12 + 9 * (levels - 1)
        while shift > leaf_shift:
            index = address >> shift & 511
            entry = pages[table].get(index)
            if entry is None:
                pages.append({})
                entry = (len(pages) - 1) * PAGE + base | TABLE
                pages[table][index] = entry
            table = ((entry & ~0xFFF) - base) // PAGE
            shift -= 9
        pages[table][address >> shift & 511] = address | LEAF
    return b"".join(struct.pack("<512Q", *(page.get(i, 0) for i in range(512))) for page in pages)


def translate(tables: bytes, base: int, address: int, *, levels: int) -> int | None:
    """The address to which the tables map a virtual address, or None; this checks `identity`."""
    at, shift = base, 12 + 9 * (levels - 1)
    while True:
        offset = at - base + (address >> shift & 511) * 8
        if not 0 <= offset < len(tables):
            return None
        (entry,) = struct.unpack_from("<Q", tables, offset)
        if not entry & PRESENT:
            return None
        if shift == 12 or entry & LARGE:
            mask = (1 << shift) - 1
            return int(entry & 0x000FFFFFFFFFF000 & ~mask | address & mask)
        at, shift = entry & 0x000FFFFFFFFFF000, shift - 9

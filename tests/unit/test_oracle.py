# SPDX-License-Identifier: GPL-2.0-or-later
"""The tools of the guest tests that compare page sets: they must not agree by mistake."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest

from kjump.image import prepare
from kjump.image.device import DirectDevice
from kjump.image.layout import ZERO, Extent
from kjump.machine import elf
from kjump.machine.ranges import PAGE

from ..vm import oracle
from ..vm.guest import GuestError
from . import samples
from .imaging import fill, prepared

RNG = random.Random(5)


def kdump(path: Path, first: bytes, second: bytes, count: int) -> Path:
    """A kdump-compressed file as far as its two bitmaps, each in one block."""
    header = struct.pack(
        "<8si390s6x16sIiiIIIIIii", b"KDUMP   ", 6, b"", b"", 0, PAGE, 1, 2, 0, 0, 0, 0, 0, 1
    )
    sub = bytes(96) + struct.pack("<Q", count)
    blocks = (header, sub, first, second)
    path.write_bytes(b"".join(block.ljust(PAGE, b"\0") for block in blocks))
    return path


def test_the_second_bitmap_is_read_lowest_bit_first(tmp_path: Path) -> None:
    path = kdump(tmp_path / "dump", b"\xff\xff", bytes([0b10000001, 0b00000110]), 13)
    assert oracle.bitmap(path) == bytes([1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0])


def test_pages_of_zeros_share_the_first_page_of_the_data(tmp_path: Path) -> None:
    path = kdump(tmp_path / "dump", b"\xff\xff", bytes([0b10000001, 0b00000110]), 13)
    shared = 5 * PAGE
    with path.open("ab") as file:
        for offset in (shared, shared + PAGE, shared, shared + 2 * PAGE):
            file.write(oracle.DESCRIPTOR.pack(offset, PAGE, 0, 0))
    assert oracle.bitmap(path, zeros_left_out=True) == bytes([0] * 7 + [1, 0, 0, 1, 0, 0])
    assert sum(oracle.bitmap(path)) == 4


def test_what_is_no_kdump_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"\x7fELF".ljust(2 * PAGE, b"\0"))
    with pytest.raises(GuestError, match="no kdump file"):
        oracle.bitmap(path)


def test_what_an_image_holds(tmp_path: Path) -> None:
    path = prepared(tmp_path / "target", 16 << 20)
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    data = RNG.randbytes(3 * PAGE)
    with DirectDevice(path, writable=True) as device:
        fill(
            device,
            [(5, data)],
            [Extent(9, 2, ZERO)],
            description=samples.description(vmcoreinfo="A=1\n"),
        )
    saved = oracle.Saved.of(path)
    assert saved.kinds == bytes([0] * 5 + [oracle.STORED] * 3 + [0] + [oracle.ZEROS] * 2)
    assert saved.pfns(oracle.STORED) == {5, 6, 7} and saved.vmcoreinfo == "A=1\n"
    assert list(saved.content()) == [(5, data)]


def test_a_core_has_memory_at_its_addresses(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    pages = RNG.randbytes(8 * PAGE)
    memory.write_bytes(pages)
    path = oracle.core(memory, [(1, 3), (6, 8)], "A=1\n", 1 << 46, tmp_path / "core")
    whole = path.read_bytes()
    found = [s for s in elf.parse(whole) if s.kind == elf.PT_LOAD]
    assert [(s.physical, s.virtual) for s in found] == [
        (PAGE, (1 << 46) + PAGE),
        (6 * PAGE, (1 << 46) + 6 * PAGE),
    ]
    for s in found:
        assert whole[s.offset : s.offset + s.size] == pages[s.physical : s.physical + s.size]


def test_sets_of_pages() -> None:
    one, other = bytes([1, 0, 1, 0]), bytes([1, 1, 0, 0])
    assert oracle.where(one, other) == [1, 2]
    assert oracle.union(one, other) == bytes([1, 1, 1, 0])
    assert oracle.both(one, other) == bytes([1, 0, 0, 0])
    assert bytes(oracle.in_ranges([(1, 3), (3, 9)], 5)) == bytes([0, 1, 1, 1, 1])
    assert oracle.select(bytes([0, 1, 2]), [1], 5) == bytes([0, 1, 0, 0, 0])

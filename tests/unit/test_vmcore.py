# SPDX-License-Identifier: GPL-2.0-or-later
"""The session's memory as the helper reads it, from cores that are files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump.errors import DamagedHandoff, MemoryUnreadable
from kjump.machine import elf
from kjump.machine.ranges import PAGE, Range
from kjump.machine.vmcore import Vmcore

from .descriptors import held

LOW, HIGH = 0x1000, 0x100000
"""Where the memory of the core lies, physical; it is in the file in the other order."""


def page(number: int) -> bytes:
    return bytes([number]) * PAGE


def core(
    path: Path, segments: Sequence[tuple[int, bytes]], notes: bytes = b"", cut: int = 0
) -> Path:
    """A core with memory (physical address, content) in this order, as the kernel lays it out:
    headers, notes, and memory from the next page on."""
    count = len(segments) + 1
    at = elf.EHDR.size + count * elf.PHDR.size
    headers = elf.PHDR.pack(elf.PT_NOTE, 0, at, 0, 0, len(notes), len(notes), 4)
    offset = -(-(at + len(notes)) // PAGE) * PAGE
    content = b""
    for physical, data in segments:
        where = offset + len(content)
        headers += elf.PHDR.pack(
            elf.PT_LOAD, elf.RWX, where, 0, physical, len(data), len(data), PAGE
        )
        content += data
    whole = (elf.file_header(count) + headers + notes).ljust(offset, b"\0") + content
    path.write_bytes(whole[: len(whole) - cut])
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Three pages at `HIGH`, then two at `LOW`."""
    notes = elf.pack_note(b"VMCOREINFO", 0, b"OSRELEASE=6\n") + elf.pack_note(b"KJUMP", 7, b"abc")
    return core(
        tmp_path / "vmcore",
        [(HIGH, page(3) + page(4) + page(5)), (LOW, page(1) + page(2))],
        notes,
    )


def test_a_page_is_found_by_its_physical_address(two: Path) -> None:
    with Vmcore(two) as found:
        assert [s.physical for s in found.memory] == [LOW, HIGH]
        assert found.readable() == [(1, 3), (0x100, 0x103)]
        for number, at in ((1, LOW), (2, LOW + PAGE), (3, HIGH), (5, HIGH + 2 * PAGE)):
            assert found.read(at, PAGE) == page(number)
        assert found.read(HIGH + PAGE - 2, 4) == b"\3\3\4\4"


def test_the_notes_are_all_there(two: Path) -> None:
    with Vmcore(two) as found:
        assert list(found.notes()) == [
            (b"VMCOREINFO", 0, b"OSRELEASE=6\n"),
            (b"KJUMP", 7, b"abc"),
        ]


def test_a_mapping_begins_where_it_is_said_to(two: Path) -> None:
    with Vmcore(two) as found:
        view, at = found.map(HIGH + PAGE - 1, PAGE + 2)
        with view:
            assert view[at : at + PAGE + 2] == b"\3" + page(4) + b"\5"
            with pytest.raises(TypeError):
                view[at] = 0  # read-only
        view, at = found.map(LOW + 5, 10)
        with view:
            assert len(view) == PAGE and view[at : at + 10] == page(1)[:10]


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (0, PAGE),  # before all memory
        (LOW - 1, 2),
        (LOW + 2 * PAGE - 1, 2),  # over the end of a range
        (HIGH + 3 * PAGE, 1),
        (LOW, HIGH + PAGE - LOW),  # over what lies in between
        (1 << 63, 1),
    ],
)
def test_what_is_not_memory_is_refused(two: Path, start: int, size: int) -> None:
    with Vmcore(two) as found:
        for get in (found.read, found.map):
            with pytest.raises(MemoryUnreadable, match=f"{start:#x} is not in"):
                get(start, size)


def test_the_window_is_not_the_sessions_memory(two: Path) -> None:
    hidden: tuple[Range, ...] = ((HIGH + PAGE, HIGH + 2 * PAGE),)
    with Vmcore(two, hidden) as found:
        assert found.readable() == [(1, 3), (0x100, 0x101), (0x102, 0x103)]
        assert found.read(HIGH + 2 * PAGE, PAGE) == page(5)
        for start, size in ((HIGH + PAGE, 1), (HIGH, PAGE + 1), (HIGH + 2 * PAGE - 1, 2)):
            for get in (found.read, found.map):
                with pytest.raises(MemoryUnreadable, match="lies in the window"):
                    get(start, size)


def test_pages_that_are_not_whole_are_not_copied(tmp_path: Path) -> None:
    with Vmcore(core(tmp_path / "vmcore", [(LOW + 1, page(1) + page(2))])) as found:
        assert found.readable() == [(2, 3)]


def test_a_core_that_ends_early_is_no_memory_of_zeros(tmp_path: Path) -> None:
    with Vmcore(core(tmp_path / "vmcore", [(LOW, page(1) + page(2))], cut=PAGE + 10)) as found:
        assert found.read(LOW, 100) == page(1)[:100]
        with pytest.raises(MemoryUnreadable, match=f"ends at {LOW + PAGE - 10:#x}"):
            found.read(LOW, PAGE)


def test_what_the_kernel_refuses_is_named(two: Path) -> None:
    found = Vmcore(two)
    found.close()  # so every call fails
    with pytest.raises(MemoryUnreadable, match=f"session's memory at {LOW:#x} cannot be read"):
        found.read(LOW, 1)
    with pytest.raises(MemoryUnreadable, match=f"session's memory at {LOW:#x} cannot be mapped"):
        found.map(LOW, 1)


def test_no_core_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemoryUnreadable, match="cannot be opened"):
        Vmcore(tmp_path / "vmcore")


@given(data=st.binary(max_size=300), count=st.integers(0, 0xFFFF), head=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_core_or_refused_by_name(
    tmp_path: Path, data: bytes, count: int, head: bool
) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes((elf.file_header(count) if head else b"") + data)
    try:
        with Vmcore(path) as found:
            list(found.notes())
            found.readable()
    except DamagedHandoff:
        pass
    assert not held(tmp_path)

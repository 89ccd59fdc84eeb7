# SPDX-License-Identifier: GPL-2.0-or-later
"""Laying out a kernel in the window: what the next kernel gets, and that nothing overlaps."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump.errors import NoHelperKernel
from kjump.handoff import cell, note, window_layout
from kjump.machine import memory
from kjump.machine.memory import HEADROOM
from kjump.machine.ranges import MIB, PAGE
from kjump.session.staging import helper_record

from .played_session import FIRMWARE, INIT_SIZE, LOW, bzimage

START = 0x10000000

if not os.access("/sys/kernel/boot_params/data", os.R_OK):
    pytest.skip("this kernel does not show its boot_params", allow_module_level=True)


@pytest.fixture(autouse=True)
def firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "firmware_map", lambda: list(FIRMWARE))


def test_the_parts_follow_each_other_in_the_first_pages() -> None:
    parts = [
        (window_layout.STUB, 0x800),
        (window_layout.CELL, cell.CELL.size),
        (window_layout.BOOT_PARAMS, PAGE),
        (window_layout.COMMAND_LINE, window_layout.COMMAND_LINE_ROOM),
        (window_layout.CORE_HEADER, window_layout.CORE_HEADER_ROOM),
        (window_layout.NOTE, note.LARGEST),
        (HEADROOM, 0),
    ]
    for (at, size), (following, _) in itertools.pairwise(parts):
        assert at + size <= following
    assert window_layout.NOTE + note.LARGEST < window_layout.USED <= HEADROOM


def test_consoles_are_the_running_kernels_unless_named() -> None:
    running = "BOOT_IMAGE=/vmlinuz root=/dev/x console=tty0 console=ttyS0,115200 quiet"
    words = window_layout.words(running, cpus=2)
    assert words[:2] == ["console=tty0", "console=ttyS0,115200"]
    assert window_layout.words(running, consoles=["hvc0"], cpus=2)[0] == "console=hvc0"
    assert not [w for w in window_layout.words("quiet", cpus=1) if w.startswith("console=")]


@given(st.lists(st.sampled_from([*window_layout.KEPT_WORDS, "quiet", "root=/dev/x", "init=/x"])))
def test_only_what_this_machine_needs_again_is_kept(running: list[str]) -> None:
    words = window_layout.words(" ".join(running), cpus=3)
    kept = [word for word in window_layout.KEPT_WORDS if word in running]
    assert [word for word in words if word in window_layout.KEPT_WORDS] == kept
    assert not {"quiet", "root=/dev/x", "init=/x"} & set(words)
    assert words.count("nr_cpus=3") == 1


def test_acpi_is_where_the_running_kernel_found_it() -> None:
    params = bytearray(PAGE)
    struct.pack_into("<Q", params, 0x70, 0x7FFE0014)
    assert window_layout.acpi_rsdp(bytes(params)) == 0x7FFE0014


def place(
    size: int, initrd: int, contents: dict[int, bytes] | None = None, line: str = "quiet"
) -> tuple[int, list[tuple[int, int, bytes]]]:
    """Entry point, and segments as (where, size, data)."""
    entry, segments = window_layout.place(
        (START, START + size),
        [LOW],
        bzimage(b"kernel" * 2000),
        b"initrd".ljust(initrd, b"x"),
        line,
        note_slot=START + window_layout.NOTE + 36,
        cell_slot=START + window_layout.CELL + cell.JUMP_BACK_OFFSET,
        contents=contents,
    )
    return entry, [(s.memory, s.size, bytes(s.data)) for s in segments]


@given(initrd=st.integers(1, 3 * MIB), size=st.integers(2, 5).map(lambda n: 2 * n * MIB))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_fill_the_window_without_a_gap(initrd: int, size: int) -> None:
    room = (size - initrd) // PAGE * PAGE
    fits = room >= HEADROOM + INIT_SIZE
    try:
        entry, segments = place(size, initrd)
    except window_layout.WindowTooSmall:
        assert not fits
        return
    assert fits and entry == START
    at = START
    for where, length, data in segments:
        assert where == at and len(data) <= length and length % PAGE == 0
        at += length
    assert at == START + size
    assert segments[2][2][:6] == b"initrd"


def test_what_is_given_besides_lies_at_its_offset() -> None:
    contents = {window_layout.CELL: b"cell", window_layout.NOTE: b"note" * 100}
    _, segments = place(8 * MIB, PAGE, contents)
    for at, data in contents.items():
        assert segments[0][2][at : at + len(data)] == data
    line = window_layout.COMMAND_LINE
    assert segments[0][2][line : line + 6] == b"quiet\0"


def test_a_command_line_may_hold_any_bytes() -> None:
    line = b"console=tty\xff quiet"
    _, segments = place(8 * MIB, PAGE, line=line.decode(errors="surrogateescape"))
    at = window_layout.COMMAND_LINE
    assert segments[0][2][at : at + len(line) + 1] == line + b"\0"


@pytest.mark.parametrize(("length", "good"), [(2046, True), (2047, False), (5000, False)])
def test_the_command_line_ends_within_what_the_kernel_reads(length: int, good: bool) -> None:
    if good:
        place(8 * MIB, PAGE, line="x" * length)
        return
    with pytest.raises(window_layout.CommandLineTooLong, match=f"has {length + 1} bytes"):
        place(8 * MIB, PAGE, line="x" * length)


def test_a_files_content_can_be_given_to_the_system_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content" * 1000)
    with helper_record.map_file(path, "", NoHelperKernel) as view:
        view[0] = 0  # copy-on-write
        assert view[1:7] == b"ontent"
    assert path.read_bytes()[0] == ord("c")

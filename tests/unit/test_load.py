# SPDX-License-Identifier: GPL-2.0-or-later
"""Staging: what is given to kexec is what the helper needs, where it looks for it."""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

import pytest

from kjump.errors import (
    DamagedHandoff,
    JumpFailed,
    NoHelperKernel,
    NoWindow,
    StagingFailed,
    TooLittleMemory,
)
from kjump.handoff import cell as cells
from kjump.handoff import documents, note, report, window_layout
from kjump.handoff.documents import SaveOrder
from kjump.handoff.report import Report
from kjump.machine import elf
from kjump.machine.memory import HEADROOM
from kjump.machine.ranges import MIB, PAGE, align_down, subtract
from kjump.session.staging import load
from kjump.session.staging.load import Staged
from kjump.settings import Helper, Settings

from .descriptors import held
from .played_session import INIT_SIZE, LOW, RAM, TARGET, VMCOREINFO, Session, bzimage

CYCLE = uuid.UUID(int=11)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    return Session(monkeypatch, tmp_path)


def stage(session: Session, settings: Settings | None = None, *, mode: str = "") -> Staged:
    return load.stage(
        settings or Settings(), session.sizing(), cycle_id=CYCLE, target=TARGET, mode=mode
    )


def descriptor_of(session: Session, staged: Staged) -> bytes:
    """Of our note, found as the helper's kernel finds it: by the core header."""
    at = staged.window.start + window_layout.CORE_HEADER
    _first, ours = [s for s in elf.parse(session.memory(at, 4096)) if s.kind == elf.PT_NOTE]
    ((owner, kind, descriptor),) = elf.iterate_notes(session.memory(ours.physical, ours.size))
    assert (owner, kind) == (note.OWNER, note.TYPE)
    return descriptor


def command_line_of(session: Session, staged: Staged) -> list[str]:
    at = staged.window.start + window_layout.COMMAND_LINE
    text = session.memory(at, window_layout.COMMAND_LINE_ROOM)
    return text[: text.index(b"\0")].decode().split()


# -- what lies where -------------------------------------------------------------------------------


def test_the_window_is_filled_and_nothing_else_but_low_memory(session: Session) -> None:
    staged = stage(session)
    window = staged.window
    assert window.size == 8 * MIB and session.done == ["load"]
    assert session.covered()[0] == LOW
    assert subtract([window.range], session.covered()) == []
    assert subtract(session.covered(), [window.range, LOW]) == []
    assert session.memory(LOW[0], PAGE) == bytes(PAGE)


def test_the_return_cell_leads_back_without_the_note(session: Session) -> None:
    staged = stage(session)
    at = staged.window.start + window_layout.CELL
    found = cells.unpack(session.memory(at, cells.CELL.size))
    assert (found.window_start, found.window_size) == (staged.window.start, staged.window.size)
    assert report.is_for(session.page(found.report_page), found.nonce)
    assert f"kjump.return={at:#x}" in command_line_of(session, staged)


def test_the_core_header_names_the_sessions_memory_without_the_window(session: Session) -> None:
    staged = stage(session)
    at = staged.window.start + window_layout.CORE_HEADER
    assert f"elfcorehdr={at:#x}" in command_line_of(session, staged)
    segments = elf.parse(session.memory(at, 4096))
    assert (segments[0].physical, segments[0].size) == VMCOREINFO
    named = [(s.physical, s.physical + s.size) for s in segments if s.kind == elf.PT_LOAD]
    assert named == subtract(RAM, [staged.window.range, LOW])


def test_the_note_says_what_this_cycle_is(session: Session) -> None:
    staged = stage(session)
    found = note.unpack(descriptor_of(session, staged))
    order = SaveOrder.from_json(found.document)
    assert order.cycle == CYCLE
    assert order.facts.window == staged.window.range
    assert found.jump_back == 0  # the entry stub writes it
    assert "mode" not in found.document
    tried = stage(session, mode=documents.DRY_RUN)
    assert note.unpack(descriptor_of(session, tried)).document["mode"] == documents.DRY_RUN


def test_kernel_and_initrd_lie_where_boot_params_say(session: Session) -> None:
    staged = stage(session)
    window = staged.window
    assert session.entry == window.start
    assert session.memory(window.start + HEADROOM, len(session.body)) == session.body
    initrd = align_down(window.end - len(session.ramdisk))
    assert initrd >= window.start + HEADROOM + INIT_SIZE
    assert session.memory(initrd, window.end - initrd).rstrip(b"\0") == session.ramdisk
    params = session.memory(window.start + window_layout.BOOT_PARAMS, PAGE)
    assert struct.unpack_from("<II", params, 0x218) == (initrd, len(session.ramdisk))
    assert struct.unpack_from("<I", params, 0x228)[0] == window.start + window_layout.COMMAND_LINE


def test_the_entry_stub_writes_the_way_back_into_note_and_cell(session: Session) -> None:
    staged = stage(session)
    start = staged.window.start
    stub = session.memory(start, window_layout.CELL)
    at = session.memory(start + window_layout.NOTE, 1 << 16).index(note.MAGIC)
    slots = (
        start + window_layout.NOTE + at + note.JUMP_BACK_OFFSET,
        start + window_layout.CELL + cells.JUMP_BACK_OFFSET,
    )
    assert all(struct.pack("<Q", slot) in stub for slot in slots)


def test_settings_reach_the_command_line(session: Session) -> None:
    helper = Helper(console="ttyS1,115200 tty0", command_line="debug quiet", cpu_count=3)
    words = command_line_of(session, stage(session, Settings(helper=helper)))
    assert {"console=ttyS1,115200", "console=tty0", "debug", "quiet", "nr_cpus=3"} <= set(words)


def test_a_damaged_note_can_be_played(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KJUMP_INJECT", "damaged-handoff")
    staged = stage(session)
    with pytest.raises(DamagedHandoff):
        note.unpack(descriptor_of(session, staged))


# -- what fails ------------------------------------------------------------------------------------


def test_too_little_memory_is_found_before_anything_is_done(session: Session) -> None:
    session.free = 7 * MIB
    with pytest.raises(TooLittleMemory, match="7 MiB are free"):
        stage(session)
    assert not session.done


def test_no_window_is_named(session: Session) -> None:
    session.iomem = "00001000-0009fbff : System RAM\n100000000-13fffffff : System RAM\n"
    with pytest.raises(NoWindow):
        stage(session)
    assert not session.done


def test_a_kernel_that_refuses_leaves_nothing_loaded(session: Session, tmp_path: Path) -> None:
    before = held(tmp_path, maps=True)
    session.refuse = "load"
    with pytest.raises(StagingFailed, match="refused the staged helper: Operation not permitted"):
        stage(session)
    assert not session.loaded and held(tmp_path, maps=True) <= before


def test_a_window_without_room_for_the_initrd_is_named(session: Session) -> None:
    session.initrd.write_bytes(bytes(4 * MIB))
    with pytest.raises(StagingFailed, match="no room"):
        stage(session)
    assert not session.done


def test_a_command_line_that_is_too_long_is_named(session: Session) -> None:
    with pytest.raises(StagingFailed, match="kernel command line has"):
        stage(session, Settings(helper=Helper(command_line="x" * 2048)))
    session.kernel.write_bytes(bzimage(session.body, cmdline_size=100))
    with pytest.raises(StagingFailed, match="kernel command line has"):
        stage(session)
    assert not session.done


def test_a_memory_map_that_is_too_long_is_named(session: Session) -> None:
    session.iomem += "".join(
        f"{start:x}-{start + PAGE - 1:x} : System RAM\n"
        for start in range(1 << 40, (1 << 40) + 2400 * PAGE, 2 * PAGE)
    )
    with pytest.raises(StagingFailed, match="memory map is too long"):
        stage(session)
    assert not session.done


def test_what_is_no_kernel_is_named(session: Session) -> None:
    session.kernel.write_bytes(b"\x7fELF" * 1000)
    with pytest.raises(NoHelperKernel):
        stage(session)
    assert not session.done


def test_vmcoreinfo_is_where_the_kernel_says() -> None:
    if not os.access("/sys/kernel/vmcoreinfo", os.R_OK):
        pytest.skip("this kernel does not say where VMCOREINFO lies")
    address, size = load.vmcoreinfo_note()
    assert 0 < size <= 16384 and address >= 0


# -- what is staged --------------------------------------------------------------------------------


def test_nobody_jumps_into_what_is_not_there_any_more(session: Session) -> None:
    staged = stage(session)
    staged.check()
    session.loaded = False
    with pytest.raises(StagingFailed, match="Another program unloaded"):
        staged.check()
    session.loaded = True
    session.moved = PAGE
    with pytest.raises(StagingFailed, match="report page moved"):
        staged.check()


def test_the_jump_returns_or_is_named(session: Session) -> None:
    staged = stage(session)
    staged.jump()
    assert session.done == ["load", "jump"]
    session.refuse = "jump"
    with pytest.raises(JumpFailed, match="Operation not permitted"):
        staged.jump()


def test_the_report_is_read_where_the_cell_says(session: Session) -> None:
    staged = stage(session)
    assert staged.report() is None
    at = staged.window.start + window_layout.CELL
    cell = cells.unpack(session.memory(at, cells.CELL.size))
    session.put(cell.report_page, report.pack(cell.nonce, Report("helper", "ok")))
    found = staged.report()
    assert found == Report("helper", "ok")


def test_a_spent_helper_is_unloaded_once(session: Session, tmp_path: Path) -> None:
    before = held(tmp_path, maps=True)
    with stage(session) as staged:
        assert staged.describe() == {
            "start": staged.window.start,
            "size": 8 * MIB,
            "reclaimed": (1 << 30) - MIB,
            "free": 1 << 30,
        }
    staged.close()
    assert session.done == ["load", "unload"]
    assert held(tmp_path, maps=True) <= before

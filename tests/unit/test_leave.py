# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaving the helper: memory is a file here, and kexec is played."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kjump.errors import DamagedHandoff, HelperFailed, NoWarmHelper, TargetWriteFailed
from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.helper import leave, watch, watchdog
from kjump.machine import code, memory

from .played_helper import CELL, CELL_AT, NONCE, PAGE_AT, WINDOW, Machine

REPORT = reports.Report(reports.HELPER)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "memory")


# -- the return cell -------------------------------------------------------------------------------


def test_the_cell_is_where_the_command_line_says(machine: Machine) -> None:
    machine.command_line.write_text(f"quiet kjump.return={CELL_AT:#x} panic=10\n")
    assert leave.find_cell() == CELL


@pytest.mark.parametrize(
    "line",
    [
        "quiet panic=10",
        "kjump.return=",
        "kjump.return=junk",
        "kjump.return=0x800",  # there is none
        f"xkjump.return={CELL_AT:#x}",
    ],
)
def test_no_cell_is_named(machine: Machine, line: str) -> None:
    machine.command_line.write_text(f"{line}\n")
    with pytest.raises(DamagedHandoff):
        leave.find_cell()


def test_a_damaged_cell_is_named(machine: Machine) -> None:
    machine.command_line.write_text(f"kjump.return={CELL_AT:#x}\n")
    machine.put(CELL_AT + 40, b"\xff")
    with pytest.raises(DamagedHandoff, match="checksum"):
        leave.find_cell()


def test_memory_that_cannot_be_read_is_named(machine: Machine) -> None:
    machine.command_line.write_text(f"kjump.return={CELL_AT:#x}\n")
    machine.path.unlink()
    with pytest.raises(DamagedHandoff, match="cannot be read"):
        leave.find_cell()


def test_this_kernel_was_not_started_by_kjump(machine: Machine) -> None:
    with pytest.raises(DamagedHandoff, match=r"no kjump\.return="):
        leave.find_cell()


# -- the report ------------------------------------------------------------------------------------


def test_a_report_arrives_in_its_page(machine: Machine) -> None:
    report = reports.failed(reports.HELPER, TargetWriteFailed("The disk is broken."))
    assert (report.by, report.result) == ("helper", "failed")
    assert (report.error, report.what) == ("TargetWriteFailed", "The disk is broken.")
    assert leave.write_report(CELL, report)
    assert machine.report() == report and not machine.said


def test_a_page_that_is_not_ours_stays_as_it_is(machine: Machine) -> None:
    machine.put(PAGE_AT, reports.blank(bytes(16)))
    before = machine.path.read_bytes()
    assert not leave.write_report(CELL, REPORT)
    assert machine.path.read_bytes() == before and "report page" in machine.said[0]


def test_without_a_page_nobody_reports(machine: Machine) -> None:
    before = machine.path.read_bytes()
    assert not leave.write_report(Cell(0, NONCE, WINDOW, 1 << 20), REPORT)
    assert machine.path.read_bytes() == before and not machine.said


def test_a_report_that_cannot_be_written_keeps_nobody_from_going_back(machine: Machine) -> None:
    machine.path.unlink()
    assert not leave.write_report(CELL, REPORT)
    assert "cannot be written" in machine.said[0]


# -- the jump --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("five", "levels"), [(False, 4), (True, 5)])
def test_the_way_back_is_for_the_sessions_address_and_paging(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, five: bool, levels: int
) -> None:
    monkeypatch.setattr(memory, "is_5_level", lambda: five)
    with pytest.raises(HelperFailed, match="returned"):
        leave.jump_back(CELL)
    at = WINDOW + memory.HEADROOM
    wanted = code.jump_pages(at, CELL.jump_back, levels=levels, gigabyte_pages=True).data
    assert machine.done == ["load for good", "jump"]
    assert machine.entry == at
    assert [(s.data, s.memory, s.size) for s in machine.segments] == [(wanted, at, len(wanted))]


@pytest.mark.parametrize("what", ["load", "jump"])
def test_a_kernel_that_cannot_be_left_for_good_is_named(machine: Machine, what: str) -> None:
    machine.refuse = what
    with pytest.raises(HelperFailed, match="cannot jump back: Operation not permitted"):
        leave.jump_back(CELL)


def test_a_helper_that_is_kept_comes_back_with_nothing_loaded(machine: Machine) -> None:
    leave.jump_back_kept(CELL)
    assert machine.done == ["load to come back", "jump", "unload"]
    assert machine.entry == WINDOW + memory.HEADROOM + code.JUMP_KEPT
    assert machine.segments[0].memory == WINDOW + memory.HEADROOM


@pytest.mark.parametrize("what", ["load", "jump"])
def test_a_kernel_that_cannot_be_kept_is_named(machine: Machine, what: str) -> None:
    machine.refuse = what
    with pytest.raises(NoWarmHelper, match="Operation not permitted"):
        leave.jump_back_kept(CELL)
    assert "unload" not in machine.done


# -- kjump-return ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alive", "error", "stopped"),
    [(None, "HelperFailed", 0), (1, "HelperFailed", 1), (60, "HelperHung", 1)],
)
def test_a_copy_that_died_is_reported_and_left(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    alive: int | None,
    error: str,
    stopped: int,
) -> None:
    """``alive``: seconds since the last sign of life; None: it never began."""
    sign = tmp_path / "alive"
    if alive is not None:
        sign.write_text("30")
        os.utime(sign, (time.time() - alive,) * 2)
    monkeypatch.setattr(watch, "ALIVE", sign)
    monkeypatch.setattr(watch.has_hung, "__defaults__", (sign,))
    monkeypatch.setattr(watchdog, "stop_all", lambda: machine.do("stop watchdogs"))
    monkeypatch.setattr(leave, "find_cell", lambda: CELL)
    with pytest.raises(HelperFailed):
        leave.main()
    assert machine.done == ["stop watchdogs"] * stopped + ["load for good", "jump"]
    found = machine.report()
    assert found is not None and found.error == error

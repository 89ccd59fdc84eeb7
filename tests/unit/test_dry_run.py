# SPDX-License-Identifier: GPL-2.0-or-later
"""A dry run in the helper: it looks at memory and at the target, and writes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import TargetMissing
from kjump.handoff.cell import Cell
from kjump.handoff.documents import DRY_RUN, SAVE
from kjump.handoff.note import Note
from kjump.handoff.report import Report
from kjump.helper import copy, leave
from kjump.helper.completion import Completion
from kjump.helper.screen import Screen
from kjump.helper.states import WINDOW, States
from kjump.helper.watch import Watch
from kjump.image import target
from kjump.image.device import DirectDevice
from kjump.machine import cmdline, syscalls

from . import samples

NONCE = bytes(range(16))
ORDER = samples.order(window=(0x100000, 0x200000), ram=((0, 1 << 30),), mode=DRY_RUN)


class Core:
    def __init__(self, **_more: Any) -> None: ...
    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A helper with this target, which must not change."""

    def classified(*_: object) -> States:
        states = States([(0, 1000)])
        states.mark([(256, 512)], WINDOW)
        return states

    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    monkeypatch.setattr(copy, "Vmcore", Core)
    monkeypatch.setattr(copy, "read_notes", lambda _core: ({}, Note(1, ORDER.to_json())))
    monkeypatch.setattr(copy, "classify", classified)
    monkeypatch.setattr(copy, "save", lambda *_: pytest.fail("it saves"))
    monkeypatch.setattr(target, "wait_for", lambda links, wait: disk)
    yield disk
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


class Off(BaseException):
    """The machine is off."""


def test_once_the_image_is_complete_no_deadline_takes_it_back(
    helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a dry run nor a failure: the display is given back, and the machine goes off."""
    left: list[object] = []

    class Ends(Screen):
        def begin(self, cmdline: str = "") -> None:
            left.append("begun")

        def end(self) -> None:
            left.append(signal.getitimer(signal.ITIMER_REAL)[0])

    def off() -> None:
        raise Off

    order = replace(ORDER, mode=SAVE).to_json()
    monkeypatch.setattr(copy, "read_notes", lambda _core: ({}, Note(1, order)))

    def saved(*arguments: Any) -> Report:
        watch, completion = arguments[-2:]
        with DirectDevice(helper) as device:
            completion.begin(device, ORDER.cycle, watch)
        return Report(image={"size": 1})

    monkeypatch.setattr(copy, "save", saved)
    monkeypatch.setattr(syscalls, "power_off", off)
    watch, completion = Watch(), Completion(helper.parent / "record")
    with pytest.raises(Off):
        copy.run(Cell(0, NONCE, 0x100000, 0x100000), copy.Clock(), watch, Ends([]), completion)
    watch.end()
    assert left == ["begun", 0.0]


def run() -> Report:
    return copy.run(
        Cell(0, NONCE, 0x100000, 0x100000), copy.Clock(), Watch(), Screen([]), Completion()
    )


def test_it_tells_what_would_be_saved_and_writes_nothing(helper: Path) -> None:
    figures = run()
    assert figures.pages["data"] == 744 and figures.pages["window"] == 256
    assert figures.map["cell_pages"] == 8
    assert helper.read_bytes() == bytes(1 << 16)


def test_a_target_that_the_helper_cannot_open_or_read_is_found_out(
    helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper.unlink()
    with pytest.raises(TargetMissing):
        run()

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    helper.write_bytes(bytes(4096))
    monkeypatch.setattr(DirectDevice, "read", broken)
    with pytest.raises(TargetMissing, match="cannot be read: Input/output error"):
        run()


def test_the_figures_reach_the_session(helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Report | str] = []
    monkeypatch.setattr(cmdline, "read_text", lambda *_: "quiet")
    cell = Cell(0, NONCE, 0x100000, 0x100000)
    monkeypatch.setattr(leave, "find_cell", lambda: cell)
    monkeypatch.setattr(leave, "write_report", lambda _cell, report: seen.append(report))
    monkeypatch.setattr(leave, "jump_back", lambda _cell: seen.append("jumped"))
    monkeypatch.setattr(copy, "own_memory", lambda: {"available": 1})
    copy.main()
    assert seen[-1] == "jumped"
    report = seen[0]
    assert isinstance(report, Report)
    assert (report.by, report.result) == ("helper", "returned")
    assert report.pages["data"] == 744 and {"scan", "find target"} <= set(report.phases)

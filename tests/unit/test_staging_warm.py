# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm helper in the session: staged, asked, and refused when it fits no more."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import DamagedHandoff, StagingFailed, StaleHelper, TooLittleMemory
from kjump.handoff import cell as cells
from kjump.handoff import note, request, window_layout
from kjump.handoff.documents import SaveOrder, WarmOrder
from kjump.handoff.report import Report
from kjump.machine import elf
from kjump.machine.ranges import MIB, PAGE
from kjump.session.staging import warm
from kjump.session.staging import window as windows
from kjump.session.staging.warm import Warm
from kjump.settings import Helper, Settings

from .descriptors import held
from .played_session import TARGET, Session

CYCLE = uuid.UUID(int=12)
SETTINGS = Settings(helper=Helper(cpu_count=2))
RESERVED = 1 << windows.KPF_RESERVED


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    return Session(monkeypatch, tmp_path)


def stage(session: Session, settings: Settings = SETTINGS) -> Warm:
    return warm.stage(settings, session.sizing(), TARGET)


def cell_of(session: Session, helper: Warm) -> cells.Cell:
    at = helper.window.start + window_layout.CELL
    return cells.unpack(session.memory(at, cells.CELL.size))


def note_of(session: Session, helper: Warm) -> note.Note:
    at = helper.window.start + window_layout.NOTE
    ((_owner, _kind, descriptor),) = elf.iterate_notes(session.memory(at, 1 << 16))
    return note.unpack(descriptor)


def order_of(session: Session, helper: Warm) -> WarmOrder:
    return WarmOrder.from_json(note_of(session, helper).document)


def request_of(session: Session, helper: Warm) -> bytes:
    """The request, as the helper reads it."""
    page = session.page(order_of(session, helper).request_page)
    hidden = [helper.window.range]
    return request.read(page, cell_of(session, helper).nonce, session.page, hidden)


def words_of(session: Session, helper: Warm) -> list[str]:
    at = helper.window.start + window_layout.COMMAND_LINE
    return session.memory(at, PAGE).split(b"\0")[0].decode().split()


def ask(session: Session, helper: Warm, settings: Settings = SETTINGS) -> None:
    helper.ask(settings, session.sizing(), cycle_id=CYCLE, target=TARGET)


# -- staging ---------------------------------------------------------------------------------------


def test_it_is_started_to_get_warm_and_asks_nobody_yet(session: Session) -> None:
    helper = stage(session)
    document = note_of(session, helper).document
    assert document["mode"] == "warm" and "cycle" not in document
    assert order_of(session, helper).devices == TARGET.links
    assert request_of(session, helper) == b""
    helper.check()
    assert helper.room is not None


def test_only_processors_that_are_switched_off_must_not_watch_memory(session: Session) -> None:
    assert warm.PARKED in words_of(session, stage(session))
    alone = Settings(helper=Helper(cpu_count=1))
    assert warm.PARKED not in words_of(session, stage(session, alone))


def test_what_cannot_be_staged_leaves_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(error: type[Exception], change: Callable[[], None]) -> None:
        before = held(tmp_path, maps=True)
        change()
        with pytest.raises(error):
            stage(session)
        assert not session.loaded
        assert held(tmp_path, maps=True) <= before

    fails(StagingFailed, lambda: setattr(session, "refuse", "load"))
    session.refuse = ""

    def no_flags(_first: int, _count: int) -> bytearray:
        if session.loaded:
            raise OSError(1, "Operation not permitted")
        return bytearray(8 * _count)

    fails(StagingFailed, lambda: monkeypatch.setattr(windows, "read_kpageflags", no_flags))
    assert session.done == ["load", "unload"]
    fails(TooLittleMemory, lambda: setattr(session, "free", MIB))


# -- asking ----------------------------------------------------------------------------------------


def test_the_request_says_what_the_cycle_wants(session: Session) -> None:
    helper = stage(session)
    ask(session, helper)
    order = SaveOrder.from_json(note.unpack(request_of(session, helper)).document)
    assert order.cycle == CYCLE and order.target.links == TARGET.links
    request.check(order_of(session, helper).facts, order.facts)
    helper.check()


def test_a_damaged_request_can_be_played(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = stage(session)
    monkeypatch.setenv("KJUMP_INJECT", "damaged-request")
    ask(session, helper)
    with pytest.raises(DamagedHandoff):
        note.unpack(request_of(session, helper))


def another_initrd(session: Session) -> None:
    session.initrd.write_bytes(b"newer")


def more_memory(session: Session) -> None:
    session.iomem += "140000000-17fffffff : System RAM\n"


def moved(session: Session) -> None:
    session.moved = 1 << 30


def unloaded(session: Session) -> None:
    session.loaded = False


CHANGES: list[tuple[Callable[[Session], None], str]] = [
    (another_initrd, "its initrd or its settings"),
    (more_memory, "the machine changed: ram"),
    (unloaded, "another program unloaded it"),
]


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_what_changed_meanwhile_makes_it_stale(
    session: Session, change: Callable[[Session], None], why: str
) -> None:
    helper = stage(session)
    assert helper.misfit(SETTINGS, session.sizing()) is None
    change(session)
    found = helper.misfit(SETTINGS, session.sizing())
    assert found is not None and why in found.what
    with pytest.raises(StaleHelper, match=why):
        ask(session, helper)


def test_other_settings_take_another_helper(session: Session) -> None:
    helper = stage(session)
    other = replace(SETTINGS, helper=replace(SETTINGS.helper, command_line="debug"))
    found = helper.misfit(other, session.sizing())
    assert found is not None and "settings" in found.what


def test_pages_that_were_moved_are_noticed_just_before_the_jump(session: Session) -> None:
    helper = stage(session)
    moved(session)
    with pytest.raises(StaleHelper, match="its report or request pages were moved"):
        helper.check()


def test_what_the_kernel_put_into_the_window_is_noticed(session: Session) -> None:
    helper = stage(session)
    pfn = helper.window.start // PAGE + 5
    session.flags[pfn] = 1 << windows.KPF_PGTABLE  # comes and goes wherever memory is free
    helper.check()
    session.flags[pfn] = RESERVED
    with pytest.raises(StaleHelper, match="memory of its own in the window"):
        helper.check()


def test_what_is_the_kernels_from_the_start_does_no_harm(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that kexec took in the window itself."""
    real = session.load

    def load(*arguments: object, **more: object) -> None:
        real(*arguments, **more)  # type: ignore[arg-type]
        session.flags[min(s[0] for s in session.segments if s[0] > MIB) // PAGE] = RESERVED

    monkeypatch.setattr("kjump.machine.syscalls.kexec_load", load)
    stage(session).check()


# -- whose image it is -----------------------------------------------------------------------------


def test_its_way_back_shows_whose_image_is_loaded(session: Session) -> None:
    helper = stage(session)
    session.put(cell_of(session, helper).report_page, b"old report")
    session.flags[0x300] = RESERVED
    helper.welcome(Report("helper", jump_back=0x300 * PAGE + 16))
    assert helper.report() is None and helper.is_ours()
    session.flags[0x300] = 0  # who loads another image sets that page free
    assert not helper.is_ours()
    helper.close()
    helper.close()
    assert session.done == ["load"]  # somebody else's stays


def test_its_own_is_unloaded_once(session: Session, tmp_path: Path) -> None:
    before = held(tmp_path, maps=True)
    helper = stage(session)
    helper.close()
    helper.close()
    assert session.done == ["load", "unload"]
    assert held(tmp_path, maps=True) <= before

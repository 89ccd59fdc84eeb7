# SPDX-License-Identifier: GPL-2.0-or-later
"""What the helper is made of, and what it costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kjump.errors import NoHelperInitrd, NoHelperKernel
from kjump.handoff import window_layout
from kjump.machine.memory import HEADROOM
from kjump.machine.ranges import MIB
from kjump.session.staging import sizing
from kjump.session.staging import window as windows
from kjump.settings import Helper, Settings

from .played_session import INIT_SIZE, RAM, Session


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    return Session(monkeypatch, tmp_path)


def settings(session: Session, size: int = 0, processors: int = 2) -> Settings:
    return Settings(
        helper=Helper(
            kernel=str(session.kernel),
            initrd=str(session.initrd),
            window_size=size,
            cpu_count=processors,
        )
    )


def test_the_window_has_room_for_all_parts(session: Session) -> None:
    found = sizing.size_helper(settings(session), "6.1.0-1")
    assert (found.kernel, found.initrd) == (session.kernel, session.initrd)
    ram = sum(end - start for start, end in RAM)
    assert found.parts["handoff"] == HEADROOM
    assert found.parts["kernel"] == INIT_SIZE
    assert found.parts["unpacked"] == 4 * len(session.ramdisk)
    assert found.parts["processors"] == 2 * sizing.PROCESSOR
    assert found.parts["pages"] == pytest.approx(ram // 4096 * sizing.PAGE_STATE, abs=64)
    needed = sum(found.parts.values())
    assert needed <= found.window_size < needed + windows.ALIGNMENT
    assert found.window_size % windows.ALIGNMENT == 0
    assert found.available_needed == found.window_size + sizing.MARGIN


def test_a_size_that_is_configured_is_rounded_up(session: Session) -> None:
    found = sizing.size_helper(settings(session, 33 * MIB), "6.1.0-1")
    assert found.window_size == 34 * MIB


def test_what_is_recorded_of_the_initrd_counts(session: Session) -> None:
    session.initrd.with_suffix(".json").write_text('{"unpacked": 12345678, "splash": 1000}')
    parts = sizing.size_helper(settings(session), "6.1.0-1").parts
    assert (parts["unpacked"], parts["splash"]) == (12345678, 1000)


@pytest.mark.parametrize("text", ["{}", '{"splash": 1000}'])
def test_a_size_that_was_not_recorded_is_estimated(session: Session, text: str) -> None:
    session.initrd.with_suffix(".json").write_text(text)
    parts = sizing.size_helper(settings(session), "6.1.0-1").parts
    assert parts["unpacked"] == 4 * len(session.ramdisk)


@pytest.mark.parametrize("text", ["", "[]", '{"unpacked": "much"}', '{"unpacked": null}'])
def test_a_size_that_makes_no_sense_counts_as_damage(session: Session, text: str) -> None:
    session.initrd.with_suffix(".json").write_text(text)
    with pytest.raises(NoHelperInitrd, match="record of the helper initrd"):
        sizing.size_helper(settings(session), "6.1.0-1")


def test_what_is_missing_is_named(session: Session) -> None:
    session.initrd.unlink()
    with pytest.raises(NoHelperInitrd, match=str(session.initrd)):
        sizing.size_helper(settings(session), "6.1.0-1")
    session.kernel.unlink()
    with pytest.raises(NoHelperKernel, match=str(session.kernel)):
        sizing.size_helper(settings(session), "6.1.0-1")


def test_without_a_configured_kernel_it_is_the_running_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there: set[str] = set()
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path) in there)
    with pytest.raises(NoHelperKernel, match=r"/boot/vmlinuz-6\.1\.0-1 or "):
        sizing.find_kernel(Settings(), "6.1.0-1")
    for name in (
        "/lib/modules/6.1.0-1/vmlinuz",
        "/usr/lib/modules/6.1.0-1/vmlinuz",
        "/var/lib/kjump/helper-6.1.0-1.vmlinuz",
        "/boot/vmlinuz-6.1.0-1",
    ):
        there.add(name)
        assert sizing.find_kernel(Settings(), "6.1.0-1") == Path(name)


def test_processors_are_four_at_the_most_unless_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert sizing.cpu_count(Settings()) == window_layout.CPUS == 4
    assert sizing.cpu_count(Settings(helper=Helper(cpu_count=9))) == 9
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert sizing.cpu_count(Settings()) == 1

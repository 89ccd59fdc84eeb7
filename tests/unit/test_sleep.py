# SPDX-License-Identifier: GPL-2.0-or-later
"""Around a cycle, as around systemd's sleep: hooks run in their unit, and sessions go on after."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kjump.errors import HooksFailed
from kjump.session.systemd import hooks, sleep, systemd_bus
from kjump.session.systemd.systemd_bus import BusError


class Systemd:
    """``fails``: so many calls are not served; ``result``: of a unit's job."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.fails = 0
        self.result = "done"
        self.started: list[tuple[str, float]] = []
        self.thawed = 0
        self.slept = 0.0
        self.freezer = folder / "cgroup.freeze"
        self.freezer.write_text("1")
        monkeypatch.setattr(systemd_bus, "start", self.start)
        monkeypatch.setattr(systemd_bus, "thaw", self.thaw)
        monkeypatch.setattr(sleep, "FREEZER", self.freezer)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(hooks, "find_hooks", lambda: [Path("/usr/lib/systemd/system-sleep/x")])

    def serve(self) -> None:
        if self.fails:
            self.fails -= 1
            raise BusError("Connection reset by peer")

    def start(self, _connection: object, unit: str, *, seconds: float) -> str:
        self.serve()
        self.started.append((unit, seconds))
        return self.result

    def thaw(self, _connection: object) -> None:
        self.serve()
        self.thawed += 1

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    return Systemd(monkeypatch, tmp_path)


def nobody() -> None:
    """A connection."""


def test_hooks_have_their_time_and_a_little_more(systemd: Systemd) -> None:
    assert sleep.run_hooks(None, "pre", 90) == []
    assert systemd.started == [("kjump-hooks@pre.service", 90 + sleep.GRACE)]


def test_without_hooks_no_unit_is_started(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "find_hooks", list)
    assert sleep.run_hooks(None, "post", 90) == []
    assert not systemd.started


@pytest.mark.parametrize("result", ["failed", "timeout", "canceled"])
def test_hooks_that_do_not_end_well_are_named(systemd: Systemd, result: str) -> None:
    systemd.result = result
    with pytest.raises(HooksFailed, match=f"ended with: {result}"):
        sleep.run_hooks(None, "pre", 90)


def test_hooks_that_cannot_be_started_are_named(systemd: Systemd) -> None:
    systemd.fails = 1
    with pytest.raises(HooksFailed, match="could not be started: Connection reset"):
        sleep.run_hooks(None, "pre", 90)


@pytest.mark.parametrize("fails", [0, 1, sleep.THAW_TRIES - 1])
def test_sessions_go_on_however_often_it_takes(systemd: Systemd, fails: int) -> None:
    systemd.fails = fails
    with capture_logs() as lines:
        sleep.thaw(nobody)
    assert systemd.thawed == 1 and len(lines) == fails == systemd.slept
    assert systemd.freezer.read_text() == "1"  # that is systemd's business


def test_at_last_they_go_on_without_systemd(systemd: Systemd) -> None:
    systemd.fails = 100
    with capture_logs():
        sleep.thaw(nobody)
    assert systemd.freezer.read_text() == "0" and not systemd.thawed


def lost() -> None:
    raise BusError("no bus")


def test_a_lost_connection_is_no_reason_to_leave_them_frozen(systemd: Systemd) -> None:
    with capture_logs():
        sleep.thaw(lost)
    assert systemd.freezer.read_text() == "0"

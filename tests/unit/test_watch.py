# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a copy from outside: a person, or no progress."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kjump.console.keys import ESC, POWER
from kjump.errors import Cancelled, HelperHung, KjumpError, TargetWriteFailed
from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.handoff.report import Report
from kjump.helper import copy, watch, watchdog
from kjump.helper.completion import Completion
from kjump.helper.screen import Screen
from kjump.helper.watch import Watch


class FakeKeys:
    """Presses the keys that a test names, once; and is the clock, too: each look for keys takes
    `STEP` seconds of it."""

    waiting: list[str] = []  # noqa: RUF012
    now = 0.0

    def read(self, seconds: float) -> list[str]:
        time.sleep(min(seconds, 0.001))
        FakeKeys.now += STEP
        found, FakeKeys.waiting = FakeKeys.waiting, []
        return found

    def close(self) -> None:
        pass


STEP = 0.25


def clock() -> float:
    return FakeKeys.now


class FakeDog(watchdog.Watchdog):
    def __init__(self) -> None:
        super().__init__(-1, "i6300esb", 60)
        self.pets = 0
        self.stopped = False

    def pet(self) -> None:
        self.pets += 1

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    FakeKeys.waiting = []
    FakeKeys.now = 100.0
    monkeypatch.setattr(watch, "Keys", FakeKeys)
    monkeypatch.setattr(watch, "TICK", 0.02)
    monkeypatch.setattr(watch, "ALIVE", tmp_path / "alive")
    monkeypatch.setattr(watchdog, "take", lambda *_: None)
    monkeypatch.setattr(watchdog, "take_soft", lambda *_: None)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)


def hangs(looks: Watch, seconds: float = 3600) -> KjumpError | None:
    """What is raised in this thread while it waits, as the copy waits for its threads; on the
    clock."""
    end = clock() + seconds
    try:
        until(lambda: clock() > end)
    except KjumpError as error:
        return error
    finally:
        looks.end()
    return None


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait for it: the machine that runs this may be busy."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


@pytest.mark.parametrize(("key", "name"), [(ESC, "Esc"), (POWER, "The power button")])
def test_a_key_ends_the_copy(key: str, name: str) -> None:
    looks = Watch(clock=clock)
    looks.begin(0)
    FakeKeys.waiting = ["x", key]
    error = hangs(looks)
    assert isinstance(error, Cancelled)
    assert name in error.what


def test_other_keys_do_not() -> None:
    looks = Watch(clock=clock)
    looks.begin(0)
    FakeKeys.waiting = ["x", "\x03", "q"]
    until(lambda: not FakeKeys.waiting)
    assert hangs(looks, 2) is None


def test_at_the_commit_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watch, "say", said.append)
    looks = Watch(clock=clock)
    looks.begin(0)
    looks.too_late()
    FakeKeys.waiting = [ESC]
    until(lambda: said)
    assert hangs(looks, 2) is None
    assert said == ["Esc was pressed too late: the image is being completed"]


def test_what_was_pressed_just_before_the_commit_counts() -> None:
    looks = Watch(clock=clock)
    looks.begin(0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as if the signal was still on its way
    FakeKeys.waiting = [ESC]
    until(lambda: looks._error)
    with pytest.raises(Cancelled):
        looks.too_late()
    looks.end()


def test_no_progress_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Watch(clock=clock)
    begun = clock()
    looks.begin(10)
    error = hangs(looks)
    assert isinstance(error, HelperHung)
    assert 10 < looks._raised - begun < 10 + 3 * STEP


def test_progress_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Watch(clock=clock)
    now = clock()

    class Working(FakeKeys):
        """A copy makes progress every two seconds on the clock, until it has made it a while."""

        last = now

        def read(self, seconds: float) -> list[str]:
            if self.last + 2 < clock() < now + 30:
                Working.last = clock()
                looks.beat()
            return super().read(seconds)

    monkeypatch.setattr(watch, "Keys", Working)
    looks.begin(3)
    assert isinstance(hangs(looks), HelperHung)
    assert Working.last > now + 27
    assert 3 < looks._raised - Working.last < 3 + 3 * STEP


def test_not_watched_it_may_take_its_time() -> None:
    looks = Watch(clock=clock)
    looks.begin(0)
    assert hangs(looks, 20) is None


def drained(listens: socket.socket) -> bytes:
    try:
        return listens.recv(100)
    except BlockingIOError:
        return b""


def test_signs_of_life_stop_when_the_copy_does_not_follow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """systemd and the watchdog hear of it while it works, and no longer when it does not come
    out of what it is in."""
    dog = FakeDog()
    monkeypatch.setattr(watchdog, "take", lambda *_: dog)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listens:
        listens.bind(str(tmp_path / "notify"))
        listens.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        looks = Watch(clock=clock)
        looks.begin(1)
        assert looks.watchdog == "i6300esb, 60 s"
        until(lambda: dog.pets > 1)  # who does not listen does not stop it
        assert listens.recv(100) == b"WATCHDOG_USEC=1000000\nWATCHDOG=1"
        assert listens.recv(100) == b"WATCHDOG=1"
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it does not follow
        until(lambda: looks._raised)
        raised = looks._raised, dog.pets
        until(lambda: clock() - raised[0] > watch.DEAF + 2 * STEP)
        pets = dog.pets
        assert pets > raised[1]
        until(lambda: clock() - raised[0] > watch.DEAF + 10)
        assert dog.pets == pets
        assert not dog.stopped
        while drained(listens):
            pass
        looks.end()
        assert dog.stopped
        assert drained(listens) == b"WATCHDOG_USEC=18446744073709551615"


def test_kjump_return_tells_a_hang_from_a_death(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    assert not watch.has_hung(alive)  # it never began
    alive.write_text("30")
    assert not watch.has_hung(alive)
    os.utime(alive, (time.time() - 31,) * 2)
    assert watch.has_hung(alive)
    alive.write_text("junk")
    assert not watch.has_hung(alive)


def test_frozen_is_noticed_before_the_machine_is_restarted() -> None:
    for seconds in (1, 10, 120, 86400):
        looks = Watch()
        looks._seconds = seconds
        bark, least = looks._bark()
        assert watch.frozen_after(seconds) + 10 <= least <= bark


def test_whatever_comes_after_the_copy_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation on the heels of another failure must not keep the helper from going back."""
    looks = Watch()

    def fail(*_: object) -> None:
        looks.begin(0)
        raise TargetWriteFailed("It broke.")

    def failed(by: str, error: KjumpError) -> Report:
        FakeKeys.waiting = [ESC]
        until(lambda: looks._error)
        return Report(by, error=error.name)

    monkeypatch.setattr(copy, "run", fail)
    monkeypatch.setattr(reports, "failed", failed)
    found = copy.attempt(Cell(0, bytes(16), 0, 0), copy.Clock(), looks, Screen([]), Completion())
    assert found == Report("helper", error="TargetWriteFailed")
    looks.end()


def test_one_that_may_still_appear_is_reported() -> None:
    assert Watch().watchdog == ""
    looks = Watch()
    looks._seconds = 20
    assert looks.watchdog == watch.UNKNOWN
    looks._dog = FakeDog()
    assert looks.watchdog != watch.UNKNOWN

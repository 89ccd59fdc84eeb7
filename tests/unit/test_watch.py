# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a copy from outside: a person, or no progress."""

from __future__ import annotations

import os
import signal
import socket
import threading
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
    """Presses what it is told, once."""

    waiting: list[str] = []  # noqa: RUF012

    def read(self, seconds: float) -> list[str]:
        time.sleep(min(seconds, 0.01))
        found, FakeKeys.waiting = FakeKeys.waiting, []
        return found

    def close(self) -> None:
        pass


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
    monkeypatch.setattr(watch, "Keys", FakeKeys)
    monkeypatch.setattr(watch, "TICK", 0.02)
    monkeypatch.setattr(watch, "ALIVE", tmp_path / "alive")
    monkeypatch.setattr(watchdog, "take", lambda *_: None)
    monkeypatch.setattr(watchdog, "take_soft", lambda *_: None)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    yield
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)


def hangs(looks: Watch, seconds: float = 3) -> KjumpError | None:
    """What is raised in this thread while it waits, as the copy waits for its threads."""
    waiting = threading.Event()
    try:
        waiting.wait(seconds)
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
    looks = Watch()
    looks.begin(0)
    FakeKeys.waiting = ["x", key]
    error = hangs(looks)
    assert isinstance(error, Cancelled)
    assert name in error.what


def test_other_keys_do_not() -> None:
    looks = Watch()
    looks.begin(0)
    FakeKeys.waiting = ["x", "\x03", "q"]
    until(lambda: not FakeKeys.waiting)
    assert hangs(looks, 0.2) is None


def test_at_the_commit_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watch, "say", said.append)
    looks = Watch()
    looks.begin(0)
    looks.too_late()
    FakeKeys.waiting = [ESC]
    until(lambda: said)
    assert hangs(looks, 0.1) is None
    assert said == ["Esc was pressed too late: the image is being completed"]


def test_what_was_pressed_just_before_the_commit_counts() -> None:
    looks = Watch()
    looks.begin(0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as if the signal was still on its way
    FakeKeys.waiting = [ESC]
    until(lambda: looks._error)
    with pytest.raises(Cancelled):
        looks.too_late()
    looks.end()


def test_no_progress_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Watch()
    begun = time.monotonic()
    looks.begin(1)
    error = hangs(looks, 20)
    assert isinstance(error, HelperHung)
    assert 0.9 < time.monotonic() - begun < 15


def test_progress_is_none() -> None:
    looks = Watch()
    looks.begin(3)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.1):
            looks.beat()

    thread = threading.Thread(target=work)
    thread.start()
    assert hangs(looks, 4) is None
    stop.set()
    thread.join()


def test_not_watched_it_may_take_its_time() -> None:
    looks = Watch()
    looks.begin(0)
    assert hangs(looks, 1.2) is None


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
    monkeypatch.setattr(watch, "DEAF", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listens:
        listens.bind(str(tmp_path / "notify"))
        listens.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        looks = Watch()
        looks.begin(1)
        assert looks.watchdog == "i6300esb, 60 s"
        until(lambda: dog.pets > 1)  # who does not listen does not stop it
        assert listens.recv(100) == b"WATCHDOG_USEC=1000000\nWATCHDOG=1"
        assert listens.recv(100) == b"WATCHDOG=1"
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it does not follow
        until(lambda: looks._raised and time.monotonic() - looks._raised > 0.5)
        pets = dog.pets
        time.sleep(0.3)
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


# -- the machine's watchdog ------------------------------------------------------------------------


def test_only_a_watchdog_that_stops_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "watchdog0"
    driver = node / "device/driver/module"
    driver.mkdir(parents=True)
    assert not watchdog.stops(node)  # built in: nobody knows its nowayout
    (driver / "initstate").write_text("live\n")
    assert watchdog.stops(node)  # a module of our initrd
    (node / "nowayout").write_text("1\n")
    assert not watchdog.stops(node)
    (node / "nowayout").write_text("0\n")
    assert watchdog.stops(node)
    # One that does not tell what it hangs from, as softdog and i6300esb.
    options, modules = tmp_path / "kjump.conf", tmp_path / "modules"
    monkeypatch.setattr(watchdog, "OPTIONS", options)
    monkeypatch.setattr(watchdog, "MODULES", modules)
    (tmp_path / "watchdog1").mkdir()
    assert not watchdog.stops(tmp_path / "watchdog1")
    options.write_text("options i6300esb nowayout=0\noptions softdog nowayout=0\n")
    assert not watchdog.stops(tmp_path / "watchdog1")  # built in, as far as anyone knows
    (modules / "i6300esb").mkdir(parents=True)
    (modules / "i6300esb/initstate").write_text("live\n")
    assert watchdog.stops(tmp_path / "watchdog1")


@pytest.mark.parametrize(
    ("granted", "good"), [(0, False), (39, False), (40, True), (60, True), (600, False)]
)
def test_a_time_that_is_of_no_use_is_refused(granted: int, good: bool) -> None:
    assert watchdog.fits(granted, 60, 40) is good


def test_it_is_petted_and_stopped_with_the_magic_letter(tmp_path: Path) -> None:
    path = tmp_path / "watchdog0"
    path.touch()
    dog = watchdog.Watchdog(os.open(path, os.O_WRONLY), "x", 60)
    dog.pet()
    dog.pet()
    dog.stop()
    assert path.read_bytes() == b"\0\0V"


def test_it_is_told_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "CLASS", tmp_path / "class")
    driver = tmp_path / "drivers/i6300ESB timer"
    driver.mkdir(parents=True)
    device = tmp_path / "class/watchdog0/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    assert watchdog._name(Path("/dev/watchdog0"), -1) == "i6300ESB timer"
    module = tmp_path / "module/i6300esb"
    module.mkdir(parents=True)
    (driver / "module").symlink_to(module)
    assert watchdog._name(Path("/dev/watchdog0"), -1) == "i6300esb"
    # Where nothing leads to the module, by what the driver calls itself.
    said = watchdog.INFO.pack(0x8180, 0, b"i6300ESB timer")
    monkeypatch.setattr("fcntl.ioctl", lambda *_: said)
    assert watchdog._name(Path("/dev/watchdog1"), -1) == "i6300ESB timer"


def test_one_that_may_still_appear_is_told_of() -> None:
    assert Watch().watchdog == ""
    looks = Watch()
    looks._seconds = 20
    assert looks.watchdog == watch.UNKNOWN
    looks._dog = FakeDog()
    assert looks.watchdog != watch.UNKNOWN

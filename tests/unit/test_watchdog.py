# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's watchdog, as a driver that is played: what is started, stops."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from kjump.helper import watchdog


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
    # One that does not show its device, as softdog and i6300esb.
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


def test_it_is_known_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # If nothing leads to the module, it is known by the driver's own name.
    said = watchdog.INFO.pack(0x8180, 0, b"i6300ESB timer")
    monkeypatch.setattr("fcntl.ioctl", lambda *_: said)
    assert watchdog._name(Path("/dev/watchdog1"), -1) == "i6300ESB timer"


class Machine:
    """Watchdogs that are played.  ``grants``: seconds that each sets itself to, by name; 0: it says
    nothing.  What is written to a node is what the driver was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.grants: dict[str, int] = {}
        self.asked: list[int] = []
        for name in ("dev", "class", "modules"):
            (root / name).mkdir()
        monkeypatch.setattr(watchdog, "DEVICES", root / "dev")
        monkeypatch.setattr(watchdog, "CLASS", root / "class")
        monkeypatch.setattr(watchdog, "MODULES", root / "modules")
        monkeypatch.setattr(watchdog, "OPTIONS", root / "kjump.conf")
        monkeypatch.setattr("fcntl.ioctl", self.ioctl)
        (root / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        self.modprobe("exit 1")

    def modprobe(self, script: str) -> None:
        path = self.root / "bin/modprobe"
        path.write_text(f'#!/bin/sh\necho "$@" >>{self.root}/asked\n{script}\n')
        path.chmod(0o755)

    def add(self, name: str, grants: int, *, nowayout: str = "0") -> None:
        self.grants[name] = grants
        (self.root / "dev" / name).touch()
        (self.root / "class" / name).mkdir()
        (self.root / "class" / name / "nowayout").write_text(f"{nowayout}\n")

    def sent(self, name: str) -> bytes:
        return (self.root / "dev" / name).read_bytes()

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        if request == watchdog.WDIOC_SETTIMEOUT:
            self.asked += struct.unpack("i", argument)
            return argument
        if request == watchdog.WDIOC_GETTIMEOUT and self.grants[name]:
            return struct.pack("i", self.grants[name])
        if request == watchdog.WDIOC_GETSUPPORT:
            return watchdog.INFO.pack(0, 0, b"dog of " + name.encode())
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_the_first_that_is_of_use_is_taken(machine: Machine) -> None:
    machine.add("watchdog0", 60, nowayout="1")
    machine.add("watchdog1", 10)  # too short
    machine.add("watchdog2", 0)  # says nothing
    machine.add("watchdog3", 45)
    machine.add("watchdog4", 60)
    (machine.root / "dev/watchdog").touch()  # the first of them again
    found = watchdog.take(60, 40)
    assert found is not None and (found.name, found.seconds) == ("dog of watchdog3", 45)
    assert set(machine.asked) == {60}
    assert machine.sent("watchdog0") == b""  # one that would not stop is not even opened
    assert machine.sent("watchdog1") == machine.sent("watchdog2") == b"V"
    found.pet()
    found.stop()
    assert machine.sent("watchdog3") == b"\0V"
    assert machine.sent("watchdog4") == b""


def test_none_of_use_is_none(machine: Machine) -> None:
    assert watchdog.take(60, 40) is None
    machine.add("watchdog0", 6000)
    assert watchdog.take(60, 40) is None
    assert machine.sent("watchdog0") == b"V"


def test_one_that_somebody_else_has_is_passed_over(machine: Machine) -> None:
    machine.add("watchdog0", 60)
    (machine.root / "dev/watchdog0").unlink()
    (machine.root / "dev/watchdog0").mkdir()  # opening it fails
    machine.add("watchdog1", 60)
    found = watchdog.take(60, 40)
    assert found is not None and found.name == "dog of watchdog1"
    found.stop()
    watchdog.stop_all()
    assert machine.sent("watchdog1") == b"V"


def test_the_kernels_own_is_loaded_such_that_it_stops(machine: Machine) -> None:
    machine.add("watchdog0", 60, nowayout="1")
    machine.grants["watchdog1"] = 60
    machine.modprobe(f"touch {machine.root}/dev/watchdog1")
    found = watchdog.take_soft(60, 40)
    assert found is not None and found.name == "dog of watchdog1"
    found.stop()
    assert (machine.root / "asked").read_text() == "-q softdog nowayout=0\n"
    assert machine.sent("watchdog0") == b""
    # It is there already: not one that was loaded with nowayout=0.
    assert watchdog.take_soft(60, 40) is None


def test_a_kernel_without_its_own_has_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add("watchdog0", 60)
    assert watchdog.take_soft(60, 40) is None
    monkeypatch.setenv("PATH", str(machine.root / "nonesuch"))
    assert watchdog.take_soft(60, 40) is None
    assert machine.sent("watchdog0") == b""


def test_what_a_killed_copy_left_ticking_is_stopped(machine: Machine) -> None:
    machine.add("watchdog0", 60)
    machine.add("watchdog1", 60, nowayout="1")
    machine.add("watchdog2", 60)
    watchdog.stop_all()
    assert [machine.sent(f"watchdog{n}") for n in range(3)] == [b"V", b"", b"V"]


def test_a_watchdog_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "watchdog0"
    path.touch()
    fd = os.open(path, os.O_RDONLY)  # so writing fails
    dog = watchdog.Watchdog(fd, "x", 60)
    dog.pet()
    dog.stop()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_driver_that_does_not_say_what_it_is_has_its_nodes_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> bytes:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    assert watchdog._name(Path("/dev/watchdog7"), -1) == "watchdog7"


@pytest.mark.parametrize(
    "text", ["", "blacklist x\n", "options\n", "options i6300esb nowayout=0\n"]
)
def test_options_without_a_module_that_is_loaded_prove_nothing(machine: Machine, text: str) -> None:
    (machine.root / "kjump.conf").write_text(text)
    assert not watchdog.stops(machine.root / "class/watchdog0")

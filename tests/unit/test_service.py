# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.service: kjumpd's life, polkit and systemd's notifications, without a bus."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gi.repository import GLib

from kjump import errors
from kjump.session.cycle.history import CycleReport, History
from kjump.session.cycle.kinds import Cycle, WarmUp
from kjump.session.cycle.operation import Operation
from kjump.session.service import main
from kjump.session.service.authority import Polkit
from kjump.session.service.main import Service
from kjump.session.service.manager import Manager
from kjump.session.service.notify import ServiceManager
from kjump.session.service.values import flatten, flatten_target, window_figures
from kjump.session.systemd import resume_device
from kjump.settings import Settings
from tests.unit.played import Authority, Machine, settle, until
from tests.unit.test_readiness import DISK, READY

# -- kjumpd's life


class Bus:
    """A pydbus bus, as far as a service needs one."""

    def __init__(self) -> None:
        self.con = self
        self.done: list[str] = []
        self.is_taken = False

    def register_object(self, *_about: object) -> int:
        self.done.append("register")
        return 1

    def unregister_object(self, _number: int) -> bool:
        self.done.append("unregister")
        return True

    def request_name(self, name: str, *, allow_replacement: bool) -> Bus:
        if self.is_taken:
            raise RuntimeError("name already exists on the bus")
        assert not allow_replacement
        self.done.append(name)
        return self

    def unown(self) -> None:
        self.done.append("unown")


class Notices(ServiceManager):
    """What systemd would hear."""

    def __init__(self) -> None:
        self.watchdog_ms = 90
        self.sent: list[str] = []

    def send(self, *lines: str) -> None:
        self.sent += lines


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def service(machine: Machine, tmp_path: Path) -> Service:
    notices = Notices()
    manager = Manager(
        settings=Settings,
        authority=Authority(),
        history=History(tmp_path / "history"),
        actions=machine.actions(),
        status=notices.status,
    )
    return Service(Bus(), manager, notices)


def sent(service: Service) -> list[str]:
    notices = service._manages
    assert isinstance(notices, Notices)
    return notices.sent


def ignore(_operation: Operation, _report: CycleReport) -> None:
    pass


def test_a_life(service: Service) -> None:
    GLib.timeout_add(200, service.stop)
    service.run(watch=False)
    lines = sent(service)
    assert lines[:2] == ["READY=1", "STATUS=Ready"] and lines.count("WATCHDOG=1") >= 1
    assert lines[-1] == "STOPPING=1"
    assert service._bus.done == ["register", "org.kjump1", "unown", "unregister"]


def test_a_name_that_is_taken(machine: Machine, tmp_path: Path) -> None:
    bus = Bus()
    bus.is_taken = True
    manager = Manager(settings=Settings, authority=Authority(), history=History(tmp_path / "h"))
    with pytest.raises(RuntimeError):
        Service(bus, manager, Notices())
    assert bus.done == ["register", "unregister"]


def test_stopping_waits_for_what_runs_and_begins_nothing(
    service: Service, machine: Machine
) -> None:
    jumping = machine.hold("jump")
    worker = service.manager.worker
    worker.begin(WarmUp, ignore)
    until(machine.at("jump"))
    refused: list[errors.KjumpError] = []
    worker.request(Cycle, ignore, refused.append)

    def release() -> bool:
        jumping.set()
        return False

    GLib.idle_add(lambda: not service.stop())
    GLib.timeout_add(200, release)
    service.run(watch=False)
    assert [error.name for error in refused] == ["Interrupted"]
    assert worker.operation is None and machine.done.count("jump") == 1
    assert worker.has_warm_helper
    worker.close()
    assert not machine.staged


def test_a_burst_of_device_events_is_one_reading(
    service: Service, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "SETTLE_MS", 10)
    for _ in range(10):
        service._devices_changed()
    until(machine.at("read"))
    settle()
    assert machine.done.count("read") == 1
    # What runs reads for itself.
    jumping = machine.hold("jump")
    service.manager.worker.begin(Cycle, ignore)
    until(machine.at("jump"))
    service._settled()
    jumping.set()
    until(lambda: service.manager.worker.operation is None)


def test_reloading_by_signal(service: Service, machine: Machine) -> None:
    assert service.reload()
    until(machine.at("read"))


# -- logind's resume device


@pytest.mark.parametrize("taken_over", [False, True])
@pytest.mark.parametrize("error", [None, OSError(22, "Invalid argument")])
def test_a_resume_device_is_named_only_if_kjump_hibernates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    taken_over: bool,
    error: OSError | None,
) -> None:
    named: list[object] = []

    def name(target: object, _words: object) -> tuple[str, int]:
        named.append(target)
        if error is not None:
            raise error
        return "8:1", 0

    drop_in = tmp_path / "drop-in"
    if taken_over:
        drop_in.touch()
    monkeypatch.setattr(main, "TAKEN_OVER", drop_in)
    monkeypatch.setattr(resume_device, "set_resume_device", name)
    main.set_resume_device(READY)
    assert named == ([DISK] if taken_over else [])


# -- systemd's notifications


def test_notifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    notices = ServiceManager()
    assert notices.watchdog_ms == 3000
    notices.status("Größe\nand more")
    assert listener.recv(100) == b"STATUS=Gr??e"
    assert notices.pet() and listener.recv(100) == b"WATCHDOG=1"
    listener.close()


# -- polkit


class Answers:
    """A `Gio.DBusConnection` that gives these answers, one a call."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, Any]] = []

    def call(self, *arguments: Any) -> None:
        self.calls.append((arguments[3], arguments[4].unpack()))
        done: Callable[[Any, Any], None] = arguments[-1]
        done(self, None)

    def call_finish(self, _result: object) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, GLib.Error):
            raise answer
        return answer


def decided(*answers: Any, interactive: bool = False) -> tuple[str, Answers]:
    connection, box = Answers(*answers), list[str]()
    Polkit(connection).check(":1.7", "org.kjump1.manage", interactive=interactive, done=box.append)
    (answer,) = box
    return answer, connection


ROOT, USER = GLib.Variant("(u)", (0,)), GLib.Variant("(u)", (1000,))


def says(authorized: bool, challenge: bool) -> GLib.Variant:
    return GLib.Variant("((bba{ss}))", ((authorized, challenge, {}),))


def test_root_is_allowed_and_polkit_not_asked() -> None:
    answer, connection = decided(ROOT)
    assert answer == "yes" and [name for name, _ in connection.calls] == ["GetConnectionUnixUser"]


@pytest.mark.parametrize(
    ("authorized", "challenge", "word"),
    [(True, False, "yes"), (False, True, "challenge"), (False, False, "no")],
)
def test_polkit_decides(authorized: bool, challenge: bool, word: str) -> None:
    for interactive in (False, True):
        answer, connection = decided(USER, says(authorized, challenge), interactive=interactive)
        assert answer == word
        _name, (subject, action, _details, flags, _cancel) = connection.calls[1]
        assert subject == ("system-bus-name", {"name": ":1.7"}) and action == "org.kjump1.manage"
        assert flags == interactive


def test_without_an_answer_nobody_is_allowed() -> None:
    gone = GLib.Error("no such name")
    assert decided(gone)[0] == "no"  # the caller has left
    assert decided(USER, gone)[0] == "no"


# -- values


def test_values_of_a_machine_that_lacks_something() -> None:
    assert flatten(None) == flatten({}) == {}
    assert window_figures(replace(READY, sizing=None)) == {}
    assert window_figures(replace(READY, sizing=errors.NoHelperKernel("x"))) == {}
    file = flatten_target("/swapfile", replace(DISK, file="/swapfile"))
    assert file["file"].unpack() == "/swapfile" and file["present"].unpack()
    missing = flatten_target("/dev/x", errors.TargetMissing("x"))
    assert {key: value.unpack() for key, value in missing.items()} == {
        "spec": "/dev/x",
        "present": False,
    }


def test_a_report_as_values() -> None:
    error = errors.TargetWriteFailed("EIO.")
    found = flatten(
        {**error.report(), "started": 1, "phases": {"copy": 2, "odd": "x"}, "pages": {"data": -1}}
    )
    assert found["sentence"].unpack() == error.sentence
    assert found["phases"].unpack() == {"copy": 2.0} and found["pages"].unpack() == {}
    assert flatten({"what": "W.", "todo": ""})["sentence"].unpack() == "W."

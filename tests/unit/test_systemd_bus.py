# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.systemd: what is asked of systemd, logind and homed, on a bus of the test's own."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump.errors import HooksFailed
from kjump.session.log import set_up
from kjump.session.systemd import hooks, sleep, systemd_bus
from kjump.session.systemd.systemd_bus import BusError, Inhibitor

if shutil.which("dbus-daemon") is None:
    pytest.skip("dbus-daemon is not installed", allow_module_level=True)

JOB = "/org/freedesktop/systemd1/job/7"
SYSTEMD_XML = """
<node><interface name="org.freedesktop.systemd1.Manager">
  <method name="Subscribe"/>
  <method name="StartUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
  <method name="StopUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
  <method name="FreezeUnit"><arg type="s"/></method>
  <method name="ThawUnit"><arg type="s"/></method>
</interface></node>"""
LOGIND_XML = """
<node><interface name="org.freedesktop.login1.Manager">
  <method name="ListInhibitors"><arg type="a(ssssuu)" direction="out"/></method>
</interface></node>"""
HOMED_XML = """
<node><interface name="org.freedesktop.home1.Manager">
  <method name="LockAllHomes"/>
</interface></node>"""
NAMES = {"systemd1": SYSTEMD_XML, "login1": LOGIND_XML, "home1": HOMED_XML}


def connected(address: str) -> Any:
    flags = Gio.DBusConnectionFlags
    return Gio.DBusConnection.new_for_address_sync(
        address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
    )


class Others:
    """Plays systemd, logind and homed in a thread; notes every call."""

    def __init__(self, address: str) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.result: str | None = "done"
        """How a job ends; None: it does not."""
        self.fails: dict[str, str] = {}
        """Methods that fail, with the error's name."""
        self._address = address
        self._context = GLib.MainContext.new()
        self._loop = GLib.MainLoop.new(self._context, False)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def _serve(self, ready: threading.Event) -> None:
        self._context.push_thread_default()
        self._connection = connected(self._address)
        for name, text in NAMES.items():
            (interface,) = Gio.DBusNodeInfo.new_for_xml(text).interfaces
            path = f"/org/freedesktop/{name}"
            self._connection.register_object(path, interface, self._called, None, None)
            self.own(name)
        ready.set()
        self._loop.run()

    def own(self, name: str, method: str = "RequestName") -> None:
        arguments = (f"org.freedesktop.{name}", 0) if method == "RequestName" else None
        given = GLib.Variant("(su)", arguments) if arguments else None
        given = given or GLib.Variant("(s)", (f"org.freedesktop.{name}",))
        bus = "org.freedesktop.DBus"
        self._connection.call_sync(
            bus, "/org/freedesktop/DBus", bus, method, given, None, 0, 5000, None
        )

    def _called(self, *arguments: Any) -> None:
        _connection, _sender, path, interface, method, given, invocation = arguments[:7]
        self.calls.append((method, given.unpack()))
        if method in self.fails:
            invocation.return_dbus_error(self.fails[method], "as the test wants it")
            return
        if method in ("StartUnit", "StopUnit"):
            invocation.return_value(GLib.Variant("(o)", (JOB,)))
            if method == "StartUnit" and self.result is not None:
                ended = GLib.Variant("(uoss)", (7, JOB, given.unpack()[0], self.result))
                self._connection.emit_signal(None, path, interface, "JobRemoved", ended)
        elif method == "ListInhibitors":
            found = [("sleep", "a player", "music", "block", 1000, 7)]
            invocation.return_value(GLib.Variant("(a(ssssuu))", (found,)))
        else:
            invocation.return_value(None)

    def close(self) -> None:
        self._loop.quit()
        self._thread.join()
        self._connection.close_sync(None)


@pytest.fixture
def bus() -> Iterator[str]:
    set_up()
    daemon = Gio.TestDBus.new(Gio.TestDBusFlags.NONE)
    daemon.up()
    try:
        yield str(daemon.get_bus_address())
    finally:
        daemon.stop()


@pytest.fixture
def others(bus: str) -> Iterator[Others]:
    played = Others(bus)
    try:
        yield played
    finally:
        played.close()


@pytest.fixture
def connection(bus: str) -> Any:
    return connected(bus)


def in_thread(function: Callable[[], Any]) -> Any:
    """As these functions are called: in a thread, while others use the main loop."""
    box: list[Any] = []

    def work() -> None:
        try:
            box.append(function())
        except Exception as error:  # noqa: BLE001 (the caller looks at it)
            box.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    return box[0]


@pytest.mark.parametrize("result", ["done", "failed", "dependency"])
def test_a_unit_is_started_and_its_job_waited_for(
    others: Others, connection: Any, result: str
) -> None:
    others.result = result
    assert in_thread(lambda: systemd_bus.start(connection, "x.service", seconds=10)) == result
    # Another time, on the same connection.
    others.fails["Subscribe"] = "org.freedesktop.systemd1.AlreadySubscribed"
    assert in_thread(lambda: systemd_bus.start(connection, "x.service", seconds=10)) == result
    assert [name for name, _ in others.calls] == ["Subscribe", "StartUnit"] * 2
    assert others.calls[1][1] == ("x.service", "replace")


def test_a_job_that_does_not_end_is_stopped(others: Others, connection: Any) -> None:
    others.result = None
    assert in_thread(lambda: systemd_bus.start(connection, "x", seconds=0.2)) == "timeout"
    assert others.calls[-1] == ("StopUnit", ("x", "replace"))


@pytest.mark.parametrize("method", ["Subscribe", "StartUnit"])
def test_a_unit_that_cannot_be_started(others: Others, connection: Any, method: str) -> None:
    others.fails[method] = "org.freedesktop.systemd1.NoSuchUnit"
    found = in_thread(lambda: systemd_bus.start(connection, "x", seconds=5))
    assert isinstance(found, BusError) and found.name == "org.freedesktop.systemd1.NoSuchUnit"
    assert method in str(found)


def test_hooks_run_in_their_unit(
    others: Others, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "find_hooks", lambda: [Path("/hook")])
    assert in_thread(lambda: sleep.run_hooks(connection, "pre", 5)) == []
    assert others.calls[-1] == ("StartUnit", ("kjump-hooks@pre.service", "replace"))
    others.result = "failed"
    found = in_thread(lambda: sleep.run_hooks(connection, "post", 5))
    assert isinstance(found, HooksFailed) and "kjump-hooks@post.service" in found.what
    others.fails["StartUnit"] = "org.freedesktop.DBus.Error.AccessDenied"
    found = in_thread(lambda: sleep.run_hooks(connection, "post", 5))
    assert isinstance(found, HooksFailed) and "could not be started" in found.what
    monkeypatch.setattr(hooks, "find_hooks", list)
    others.calls.clear()
    assert sleep.run_hooks(connection, "pre", 5) == [] and not others.calls


def test_sessions_are_frozen_and_thawed(others: Others, connection: Any) -> None:
    systemd_bus.freeze(connection)
    sleep.thaw(lambda: connection)
    assert others.calls == [("FreezeUnit", ("user.slice",)), ("ThawUnit", ("user.slice",))]
    others.fails["FreezeUnit"] = "org.freedesktop.DBus.Error.NotSupported"
    with pytest.raises(BusError, match="FreezeUnit"):
        systemd_bus.freeze(connection)


def test_a_thaw_is_tried_again_and_then_made_without_systemd(
    others: Others, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer = tmp_path / "cgroup.freeze"
    freezer.write_text("1")
    monkeypatch.setattr(sleep, "FREEZER", freezer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    others.fails["ThawUnit"] = "org.freedesktop.DBus.Error.Failed"
    sleep.thaw(lambda: connection)
    assert freezer.read_text() == "0"
    assert [name for name, _ in others.calls] == ["ThawUnit"] * sleep.THAW_TRIES


def test_homes_are_locked_if_somebody_does_that(others: Others, connection: Any) -> None:
    systemd_bus.lock_homes(connection)
    assert others.calls == [("LockAllHomes", ())]
    others.fails["LockAllHomes"] = "org.freedesktop.home1.HomeBusy"
    with pytest.raises(BusError):
        systemd_bus.lock_homes(connection)
    others.own("home1", "ReleaseName")
    systemd_bus.lock_homes(connection)  # no homed: nothing to lock


def test_who_inhibits_sleep(others: Others, connection: Any) -> None:
    player = Inhibitor("sleep", "a player", "music", "block", 1000, 7)
    loop = GLib.MainLoop()
    answers: list[Any] = []

    def done(found: Any) -> None:
        answers.append(found)
        loop.quit()

    systemd_bus.list_inhibitors(connection, done)
    loop.run()
    assert answers == [[player]]
    assert systemd_bus.blocking(
        [
            player,
            player._replace(mode="delay"),
            player._replace(what="shutdown:sleep", mode="block-weak"),
            player._replace(what="idle"),
        ]
    ) == [player, player._replace(what="shutdown:sleep", mode="block-weak")]


def test_whether_this_systemd_freezes_sessions(tmp_path: Path) -> None:
    program = tmp_path / "systemd-sleep"
    assert not systemd_bus.freezes_sessions(program)
    program.write_bytes(b"\x7fELF SYSTEMD_SLEEP_FREEZE_USER_SESSIONS\0")
    assert systemd_bus.freezes_sessions(program)
    assert systemd_bus.says_no("No") and not systemd_bus.says_no("yes")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests on the private bus: inhibitors, falling back, what is offered; systemd, played."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gi.repository import GLib

from kjump import errors
from kjump.session.connection import connect
from kjump.session.systemd import hooks, sleep, systemd_bus

from .conftest import Client, Daemon, Polkit, Refused, wait_for_name


def asked(client: Client, **wanted: bool) -> dict[str, Any]:
    """The report of a request, with these options; raises `Refused`."""
    box = client.hibernate({name.replace("_", "-"): value for name, value in wanted.items()})
    (found,) = client.until(lambda: box)
    if isinstance(found, GLib.Error):
        raise Refused(found)
    report: dict[str, Any] = found[0]
    return report


def refused(client: Client, **wanted: bool) -> Refused:
    with pytest.raises(Refused) as found:
        asked(client, **wanted)
    return found.value


# -- options


def test_unknown_options_and_other_types_are_refused(client: Client, daemon: Daemon) -> None:
    for name, value in (("fast", GLib.Variant("b", True)), ("fallback", GLib.Variant("s", "yes"))):
        with pytest.raises(Refused) as found:
            client.call("Hibernate", GLib.Variant("(a{sv})", ({name: value},)))
        assert found.value.name == "org.kjump1.Error.BadRequest"
    assert "prepare" not in daemon.done


def test_sessions_are_frozen_unless_the_caller_says_no(client: Client, daemon: Daemon) -> None:
    asked(client, freeze=False)
    assert "freeze" not in daemon.done
    asked(client)
    assert daemon.done.count("freeze") == daemon.done.count("thaw") == 1


# -- inhibitors


@pytest.mark.parametrize("mode", ["block", "block-weak"])
def test_who_blocks_sleep_is_heeded(client: Client, daemon: Daemon, mode: str) -> None:
    daemon.set("inhibited", mode)
    found = refused(client)
    assert found.name == "org.kjump1.Error.Inhibited"
    assert "Burner (burning)" in str(found)
    assert "prepare" not in daemon.done and client.get("State") == "idle"
    # It is of who asks, not of the machine: nothing else is done instead.
    daemon.set("kernel-hibernation")
    assert refused(client, fallback=True).name == "org.kjump1.Error.Inhibited"


def test_who_delays_sleep_does_not_block_it(client: Client, daemon: Daemon) -> None:
    daemon.set("inhibited", "delay")
    assert asked(client)["result"] == "ok"


def test_inhibitors_can_be_ignored(client: Client, daemon: Daemon) -> None:
    daemon.set("inhibited", "block")
    assert asked(client, ignore_inhibitors=True)["result"] == "ok"


@pytest.mark.skipif(os.getuid() == 0, reason="root is never asked")
def test_ignoring_them_takes_an_administrator(
    client: Client, daemon: Daemon, polkit: Polkit
) -> None:
    asked(client, ignore_inhibitors=True)
    assert [action for action, _ in polkit.asked()] == ["org.kjump1.hibernate", "org.kjump1.manage"]


# -- falling back


def test_a_request_that_wants_it_falls_back(client: Client, daemon: Daemon) -> None:
    daemon.set("reasons", "NoKexecJump")
    daemon.set("kernel-hibernation")
    report = asked(client, fallback=True)
    assert (report["result"], report["error"]) == ("failed", "NoKexecJump")
    assert report["fallback"] == "stock"
    last = client.get("LastCycle")
    assert (last["error"], last["fallback"]) == ("NoKexecJump", "stock")
    # Who does not ask for it gets the error.
    assert refused(client).name == "org.kjump1.Error.NoKexecJump"
    assert "fallback" not in client.get("LastCycle")


def test_where_neither_works_the_error_is_named(client: Client, daemon: Daemon) -> None:
    daemon.set("reasons", "NoKexecJump")
    assert refused(client, fallback=True).name == "org.kjump1.Error.NoKexecJump"
    assert client.get("LastCycle")["no_fallback"] == "No swap is in use."
    daemon.set("kernel-hibernation")
    daemon.set("kjump.conf", "[Target]\nPath=/dev/vda3\n[Session]\nFallback=none\n")
    client.call("Reload")
    assert refused(client, fallback=True).name == "org.kjump1.Error.NoKexecJump"
    assert "Fallback=none" in client.get("LastCycle")["no_fallback"]


def test_after_a_jump_nothing_is_done_instead(client: Client, daemon: Daemon) -> None:
    daemon.set("kernel-hibernation")
    daemon.set("fail", "JumpFailed")
    assert refused(client, fallback=True).name == "org.kjump1.Error.JumpFailed"
    assert "fallback" not in client.get("LastCycle")


def test_a_warm_helper_is_unloaded_before_another_hibernation(
    client: Client, daemon: Daemon
) -> None:
    box = client.start("Stage", GLib.Variant("(a{sv})", ({"warm": GLib.Variant("b", True)},)))
    client.until(lambda: box)
    daemon.set("reasons", "NoTarget")
    daemon.set("kernel-hibernation")
    assert asked(client, fallback=True)["fallback"] == "stock"
    assert client.get("Staged") == "no" and daemon.done[-1] != "ask"
    assert "close" in daemon.done


# -- what logind offers


def test_what_is_offered_follows_the_machine(client: Client, daemon: Daemon) -> None:
    def offers(wanted: str) -> None:
        # An assessment that had begun before the change may be the one that is waited for.
        end = time.monotonic() + 30
        while True:
            client.call("CanHibernate")
            if (found := (daemon.folder / "offered").read_text()) == wanted:
                return
            assert time.monotonic() < end, found

    offers("yes")
    daemon.set("reasons", "NoTarget")
    offers("no")
    daemon.set("kernel-hibernation")
    offers("yes")
    daemon.unset("kernel-hibernation")
    offers("no")
    daemon.unset("reasons")
    offers("yes")
    # What comes and goes unseen is no reason to take the menu's entry away.
    daemon.set("reasons", "TooLittleMemory")
    client.until(lambda: client.call("CanHibernate")[0] == "no")
    offers("yes")


def test_while_nothing_is_offered_the_machine_is_looked_at_again(
    client: Client, daemon: Daemon
) -> None:
    daemon.set("reasons", "NoTarget")
    client.call("CanHibernate")
    assert (daemon.folder / "offered").read_text() == "no"
    # Nobody sends word of this, and nobody asks, as nothing is offered.
    daemon.unset("reasons")
    client.until(lambda: (daemon.folder / "offered").read_text() == "yes")
    before = daemon.done.count("read")
    time.sleep(2.5)
    assert daemon.done.count("read") == before


# -- systemd


@pytest.fixture
def systemd(address: str) -> Iterator[Client]:
    """systemd on the bus, played by dbusmock."""
    pytest.importorskip("dbusmock")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dbusmock",
            "--system",
            systemd_bus.SYSTEMD[0],
            systemd_bus.SYSTEMD[1],
            systemd_bus.MANAGER,
        ],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
        stdout=subprocess.DEVNULL,
    )
    try:
        client = Client(address)
        wait_for_name(client.connection, systemd_bus.SYSTEMD[0], process)
        yield client
    finally:
        process.terminate()
        process.wait(10)


def plays(client: Client, method: str, signature: str, returns: str, code: str) -> None:
    client.call(
        "AddMethod",
        GLib.Variant("(sssss)", (systemd_bus.MANAGER, method, signature, returns, code)),
        interface="org.freedesktop.DBus.Mock",
        name=systemd_bus.SYSTEMD[0],
        path=systemd_bus.SYSTEMD[1],
    )


def in_thread(client: Client, function: Any) -> Any:
    """What a worker thread gets from it, or the error it raises."""
    box: list[Any] = []

    def work() -> None:
        try:
            box.append(function())
        except Exception as error:  # noqa: BLE001 (the caller looks at it)
            box.append(error)

    threading.Thread(target=work, daemon=True).start()
    return client.until(lambda: box)[0]


JOB = "/org/freedesktop/systemd1/job/7"
ENDS = f"""
ret = dbus.ObjectPath('{JOB}')
self.EmitSignal('{systemd_bus.MANAGER}', 'JobRemoved', 'uoss',
                [dbus.UInt32(7), dbus.ObjectPath('{JOB}'), args[0], 'RESULT'])
"""


@pytest.mark.parametrize("result", ["done", "failed"])
def test_a_unit_is_started_and_its_job_waited_for(
    systemd: Client, address: str, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "find_hooks", lambda: [Path("/usr/lib/systemd/system-sleep/x")])
    once = """
if getattr(self, 'subscribed', False):
    raise dbus.exceptions.DBusException('Client is already subscribed.',
                                        name='org.freedesktop.systemd1.AlreadySubscribed')
self.subscribed = True
"""
    plays(systemd, "Subscribe", "", "", once)
    plays(systemd, "StartUnit", "ss", "o", ENDS.replace("RESULT", result))
    connection = connect(address).con
    # pre and post come from the same client.
    assert (
        in_thread(systemd, lambda: systemd_bus.start(connection, "x.service", seconds=10)) == result
    )
    assert (
        in_thread(systemd, lambda: systemd_bus.start(connection, "x.service", seconds=10)) == result
    )
    found = in_thread(systemd, lambda: sleep.run_hooks(connection, "pre", 5))
    if result == "done":
        assert found == []
    else:
        assert isinstance(found, errors.HooksFailed) and "kjump-hooks@pre" in str(found)


def test_a_job_that_does_not_end_is_stopped(systemd: Client, address: str) -> None:
    plays(systemd, "Subscribe", "", "", "")
    plays(systemd, "StartUnit", "ss", "o", f"ret = dbus.ObjectPath('{JOB}')")
    plays(systemd, "StopUnit", "ss", "o", f"ret = dbus.ObjectPath('{JOB}')")
    connection = connect(address).con
    begun = time.monotonic()
    assert in_thread(systemd, lambda: systemd_bus.start(connection, "x", seconds=0.5)) == "timeout"
    assert time.monotonic() - begun < 10


def test_where_there_are_no_hooks_no_unit_is_started(
    client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "find_hooks", lambda: [])
    connection = connect(address).con
    assert in_thread(client, lambda: sleep.run_hooks(connection, "pre", 5)) == []


def test_without_systemd_hooks_are_not_run(
    client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "find_hooks", lambda: [Path("/usr/lib/systemd/system-sleep/x")])
    connection = connect(address).con
    found = in_thread(client, lambda: sleep.run_hooks(connection, "pre", 5))
    assert isinstance(found, errors.HooksFailed)


def test_a_thaw_is_tried_again_and_then_forced(
    client: Client, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer = tmp_path / "cgroup.freeze"
    monkeypatch.setattr(sleep, "FREEZER", freezer)
    monkeypatch.setattr(sleep, "THAW_TRIES", 2)
    connection = connect(address).con
    assert in_thread(client, lambda: sleep.thaw(lambda: connection)) is None
    assert freezer.read_text() == "0"


def test_freezing_and_thawing(systemd: Client, address: str, tmp_path: Path) -> None:
    for method in ("FreezeUnit", "ThawUnit"):
        plays(systemd, method, "s", "", "assert args[0] == 'user.slice'")
    connection = connect(address).con
    assert in_thread(systemd, lambda: systemd_bus.freeze(connection)) is None
    assert in_thread(systemd, lambda: systemd_bus.thaw(connection)) is None
    # No homed on this bus: nothing to lock, and no error.
    assert in_thread(systemd, lambda: systemd_bus.lock_homes(connection)) is None
    program = tmp_path / "systemd-sleep"
    assert not systemd_bus.freezes_sessions(program)
    program.write_bytes(b"\0" + systemd_bus.FREEZE_VARIABLE.encode() + b"\0")
    assert systemd_bus.freezes_sessions(program)
    program.write_bytes(b"an older one")
    assert not systemd_bus.freezes_sessions(program)
    assert systemd_bus.says_no("0") and systemd_bus.says_no("False") and not systemd_bus.says_no("")


def test_inhibitors_are_listed_without_logind(client: Client, address: str) -> None:
    box: list[Any] = []
    systemd_bus.list_inhibitors(client.connection, box.append)
    assert client.until(lambda: box) == [[]]

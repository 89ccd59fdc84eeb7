# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that mean harm, or are broken: always a named answer, and the others are served."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump.session.connection import connect
from tests.bus.conftest import MANAGER, Client, Daemon, Refused

PROPERTIES = "org.freedesktop.DBus.Properties"
FLOOD = Path(__file__).with_name("flood.py")
CALLS = 3000


def resident(daemon: Daemon) -> int:
    """Bytes of memory the daemon has."""
    assert daemon.process is not None
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def flood(address: str, mix: str, *, calls: int = CALLS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["/usr/bin/python3", "-I", FLOOD, address, "20", str(calls), mix],
        stdout=subprocess.PIPE,
        text=True,
    )


def answers(process: subprocess.Popen[str]) -> dict[str, int]:
    """The answers to the flood, without the number of unanswered calls, which must be 0."""
    out, _ = process.communicate(timeout=80)
    found: dict[str, int] = json.loads(out)
    assert found.pop("never") == 0, found
    return found


def send(client: Client, message: Gio.DBusMessage) -> Gio.DBusMessage:
    """Any message, however odd, and its answer."""
    box: list[Any] = []

    def answered(connection: Any, result: Any) -> None:
        box.append(connection.send_message_with_reply_finish(result))

    client.connection.send_message_with_reply(
        message, Gio.DBusSendMessageFlags.NONE, 20000, None, answered
    )
    client.until(lambda: box)
    return box[0]


def call_to(interface: str | None, method: str, path: str = "/org/kjump1") -> Gio.DBusMessage:
    return Gio.DBusMessage.new_method_call("org.kjump1", path, interface, method)


# -- floods


def test_a_flood_costs_neither_memory_nor_answers(
    client: Client, daemon: Daemon, address: str
) -> None:
    """Thousands of calls of all kinds over many connections: each is answered with what it is
    owed, a bystander is served meanwhile, and nothing of it stays."""
    mix = "ask,state,bad,set,none,all,hibernate,ask"
    answers(flood(address, mix))  # what is loaded and cached once
    before, open_before = resident(daemon), descriptors(daemon)
    running, longest = flood(address, mix), 0.0
    while running.poll() is None:
        begun = time.monotonic()
        client.get("State")
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.05)
    found = answers(running)
    share = CALLS // 8
    cycles = {key: number for key, number in found.items() if key.startswith("hibernate ")}
    assert {key: number for key, number in found.items() if key not in cycles} == {
        "ask ok": 2 * share,
        "state ok": share,
        "all ok": share,
        "bad org.kjump1.Error.BadRequest": share,
        "set org.freedesktop.DBus.Error.InvalidArgs": share,
        "none org.freedesktop.DBus.Error.UnknownMethod": share,
    }
    assert set(cycles) == {"hibernate ok", "hibernate org.kjump1.Error.Busy"}
    assert sum(cycles.values()) == share
    assert longest < 10, f"a bystander waited {longest:.1f} s"
    # 2 KiB or more for each call, were they kept.
    grown = resident(daemon) - before
    assert grown < 3 << 20, f"{grown >> 10} KiB for {CALLS} calls"
    assert descriptors(daemon) == open_before


def test_a_flood_of_large_messages(client: Client, daemon: Daemon, address: str) -> None:
    running = flood(address, "huge", calls=300)
    while running.poll() is None:
        assert client.get("State") == "idle"
    assert answers(running) == {"huge org.kjump1.Error.BadRequest": 300}


def test_callers_that_do_not_wait_for_the_answer(
    client: Client, daemon: Daemon, address: str
) -> None:
    client.call("CanHibernate")
    daemon.set("slow")
    leavers = [connect(address).con for _ in range(10)]
    for leaver in leavers:
        for _ in range(100):
            leaver.call(
                "org.kjump1",
                "/org/kjump1",
                MANAGER,
                "CanHibernate",
                None,
                None,
                Gio.DBusCallFlags.NONE,
                60000,
                None,
                None,
            )
        leaver.flush_sync(None)
    for leaver in leavers:
        leaver.close_sync(None)
    assert client.get("State") == "idle"
    daemon.unset("slow")
    assert client.call("CanHibernate") == ("yes", [])


def test_a_call_that_wants_no_answer_is_done(client: Client, daemon: Daemon) -> None:
    message = call_to(MANAGER, "Hibernate")
    message.set_body(GLib.Variant("(a{sv})", ({},)))
    message.set_flags(Gio.DBusMessageFlags.NO_REPLY_EXPECTED)
    client.connection.send_message(message, Gio.DBusSendMessageFlags.NONE)
    client.until(lambda: client.get("LastCycle").get("result") == "ok")
    assert daemon.done.count("jump") == 1


# -- odd messages


def test_large_arguments_are_refused_at_once(client: Client, daemon: Daemon) -> None:
    """Reading 16 MiB of them would take a minute, and everybody would wait."""
    options = {
        "x": GLib.Variant.new_from_bytes(
            GLib.VariantType("ay"), GLib.Bytes.new(bytes(16 << 20)), True
        )
    }
    begun = time.monotonic()
    with pytest.raises(Refused) as refused:
        client.call("Hibernate", GLib.Variant("(a{sv})", (options,)))
    assert refused.value.name == "org.kjump1.Error.BadRequest"
    name = "x" * 1_000_000
    with pytest.raises(Refused) as refused:
        client.call("Get", GLib.Variant("(ss)", (MANAGER, name)), interface=PROPERTIES)
    assert name not in str(refused.value) or "InvalidArgs" in refused.value.name
    assert time.monotonic() - begun < 10
    assert "stage" not in daemon.done


ODD = {
    "no such method": (call_to(MANAGER, "Explode"), None),
    "no such interface": (call_to("org.kjump1.Other", "CanHibernate"), None),
    "no such object": (call_to(MANAGER, "CanHibernate", "/org/kjump1/other"), None),
    "the root": (call_to(MANAGER, "CanHibernate", "/"), None),
    "no interface named": (call_to(None, "CanHibernate"), None),
    "no interface, no method": (call_to(None, "Explode"), None),
    "arguments to none": (call_to(MANAGER, "CanHibernate"), GLib.Variant("(s)", ("x",))),
    "too few": (call_to(MANAGER, "Hibernate"), None),
    "too many": (call_to(MANAGER, "Hibernate"), GLib.Variant("(a{sv}s)", ({}, ""))),
    "of other types": (call_to(MANAGER, "Hibernate"), GLib.Variant("(a{ss})", ({},))),
    "an option of a strange type": (
        call_to(MANAGER, "Stage"),
        GLib.Variant("(a{sv})", ({"warm": GLib.Variant("a{sv}", {"warm": GLib.Variant("d", 1)})},)),
    ),
    "a descriptor that is not there": (
        call_to(MANAGER, "Stage"),
        GLib.Variant("(a{sv})", ({"warm": GLib.Variant("h", 7)},)),
    ),
    "an empty option": (
        call_to(MANAGER, "Hibernate"),
        GLib.Variant("(a{sv})", ({"": GLib.Variant("b", True)},)),
    ),
    "a property that cannot be set": (
        call_to(PROPERTIES, "Set"),
        GLib.Variant("(ssv)", (MANAGER, "Version", GLib.Variant("s", "9"))),
    ),
    "a property of a wrong type set": (
        call_to(PROPERTIES, "Set"),
        GLib.Variant("(ssv)", (MANAGER, "State", GLib.Variant("u", 9))),
    ),
    "no such property set": (
        call_to(PROPERTIES, "Set"),
        GLib.Variant("(ssv)", (MANAGER, "Nope", GLib.Variant("s", "9"))),
    ),
    "no such property": (call_to(PROPERTIES, "Get"), GLib.Variant("(ss)", (MANAGER, "Nope"))),
    "an attribute that is no property": (
        call_to(PROPERTIES, "Get"),
        GLib.Variant("(ss)", (MANAGER, "_settings")),
    ),
    "a method that is not the interface's": (call_to(MANAGER, "reload"), None),
}


def test_odd_messages_are_answered_with_a_name(client: Client, daemon: Daemon) -> None:
    for odd, (message, body) in ODD.items():
        if body is not None:
            message.set_body(body)
        name = send(client, message).get_error_name()
        assert name is not None, odd
        assert name.startswith(("org.kjump1.Error.", "org.freedesktop.DBus.Error.")), (odd, name)
        assert name != "org.kjump1.Error.Internal", odd
        assert client.get("State") == "idle"
    assert not {"stage", "stage-warm", "prepare"} & set(daemon.done)


def test_descriptors_that_come_along_are_closed(
    client: Client, daemon: Daemon, address: str
) -> None:
    """At once, not when the call is answered: that may take as long as a person is asked."""
    client.call("CanHibernate")
    before = descriptors(daemon)
    daemon.set("slow")
    running = flood(address, "fd", calls=200)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        client.get("State")
    assert running.poll() is None
    assert descriptors(daemon) <= before + 3
    daemon.unset("slow")
    found = answers(running)
    # The bus itself lets only so many be under way.
    assert set(found) <= {"fd ok", "fd org.freedesktop.DBus.Error.LimitsExceeded"}
    assert found["fd ok"] > 50
    client.until(lambda: descriptors(daemon) <= before)

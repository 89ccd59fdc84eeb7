# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that flood: ``python3 -I flood.py ADDRESS CONNECTIONS CALLS MIX``.

Each connection keeps as many calls under way as the bus allows, until CALLS are answered.  Prints
a JSON object: how often each answer came (an error's name, or "ok"), and how many never did.
``MIX``: names from `KINDS`, separated by commas, taken in turn.  Nothing of this checkout is
needed, so that any user can run it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

from gi.repository import Gio, GLib

NAME, PATH, MANAGER = "org.kjump1", "/org/kjump1", "org.kjump1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
UNDER_WAY = 100  # the bus lets one client wait for 128 answers
PATIENCE = 120


def options(**keys: GLib.Variant) -> GLib.Variant:
    return GLib.Variant("(a{sv})", (keys,))


KINDS = {
    "ask": (MANAGER, "CanHibernate", None),
    "state": (PROPERTIES, "Get", GLib.Variant("(ss)", (MANAGER, "State"))),
    "all": (PROPERTIES, "GetAll", GLib.Variant("(s)", (MANAGER,))),
    "set": (PROPERTIES, "Set", GLib.Variant("(ssv)", (MANAGER, "State", GLib.Variant("s", "x")))),
    "bad": (MANAGER, "Hibernate", options(fast=GLib.Variant("b", True))),
    "huge": (MANAGER, "Hibernate", options(**{"x" * 100_000: GLib.Variant("ay", b"x" * 100_000)})),
    "none": (MANAGER, "Nonesuch", None),
    "hibernate": (MANAGER, "Hibernate", options()),
    # With a descriptor that nobody has asked for.
    "fd": (MANAGER, "CanHibernate", None),
}


def main() -> None:
    address, connections, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    mix = sys.argv[4].split(",")
    flags = (
        Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT
        | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
    )
    buses = [
        Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
        for _ in range(connections)
    ]
    answers: Counter[str] = Counter()
    loop = GLib.MainLoop()
    sent = 0

    def send(bus: Any) -> None:
        nonlocal sent
        if sent == calls:
            return
        kind = mix[sent % len(mix)]
        interface, method, arguments = KINDS[kind]
        sent += 1
        message = Gio.DBusMessage.new_method_call(NAME, PATH, interface, method)
        if arguments is not None:
            message.set_body(arguments)
        if kind == "fd":
            handles = Gio.UnixFDList()
            end = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            handles.append(end)
            os.close(end)
            message.set_unix_fd_list(handles)
        bus.send_message_with_reply(
            message, Gio.DBusSendMessageFlags.NONE, PATIENCE * 1000, None, answered, kind
        )

    def answered(bus: Any, result: Any, kind: str) -> None:
        try:
            reply = bus.send_message_with_reply_finish(result)
            answers[f"{kind} {reply.get_error_name() or 'ok'}"] += 1
        except GLib.Error as error:
            answers[f"{kind} {error.message}"] += 1
        send(bus)
        if sum(answers.values()) == calls:
            loop.quit()

    for _ in range(UNDER_WAY):
        for bus in buses:
            send(bus)
    GLib.timeout_add_seconds(PATIENCE, loop.quit)
    loop.run()
    print(json.dumps({**answers, "never": calls - sum(answers.values())}))


main()

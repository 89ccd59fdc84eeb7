# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.cli.client: what is asked over the bus, and what comes of the answer.

With a connection that notes the calls; tests/bus asks a real kjumpd.
"""

from __future__ import annotations

from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump import errors
from kjump.cli import client
from kjump.names import BUS_NAME, INTERFACE, OBJECT_PATH


class Connection:
    """Answers every call with the next of its answers."""

    def __init__(self, *answers: GLib.Variant | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []

    def call_sync(self, *call: Any) -> GLib.Variant:
        self.calls.append(call)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def connected(*answers: GLib.Variant | Exception) -> tuple[client.Client, Connection]:
    connection = Connection(*answers)
    out = client.Client.__new__(client.Client)
    out._connection = connection
    return out, connection


def remote(name: str, message: str) -> GLib.Error:
    return Gio.dbus_error_new_for_dbus_error(name, message)


REPORT = GLib.Variant("(a{sv})", ({"result": GLib.Variant("s", "ok")},))


def test_hibernate_waits_as_long_as_it_takes_and_lets_polkit_ask() -> None:
    kjumpd, connection = connected(REPORT)
    assert kjumpd.hibernate(ignore_inhibitors=True) == {"result": "ok"}
    (call,) = connection.calls
    assert call[:4] == (BUS_NAME, OBJECT_PATH, INTERFACE, "Hibernate")
    assert call[4].unpack() == ({"ignore-inhibitors": True},)
    assert call[6] == Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION
    assert call[7] == GLib.MAXINT32


def test_can_hibernate_has_the_usual_time_limit_and_asks_nobody() -> None:
    kjumpd, connection = connected(GLib.Variant("(sa(ss))", ("no", [("Busy", "Wait.")])))
    assert kjumpd.can_hibernate() == ("no", [("Busy", "Wait.")])
    (call,) = connection.calls
    assert call[3] == "CanHibernate" and call[6] == Gio.DBusCallFlags.NONE and call[7] == -1


def test_the_other_methods() -> None:
    kjumpd, connection = connected(
        GLib.Variant("(a(sssss))", ([("a", "ok", "", "Well.", "")],)),
        REPORT,
        REPORT,
        GLib.Variant("()", ()),
        GLib.Variant("(as)", (["line 3"],)),
        GLib.Variant("(a{sv})", ({"Version": GLib.Variant("s", "1")},)),
    )
    assert kjumpd.check() == [("a", "ok", "", "Well.", "")]
    assert kjumpd.dry_run() == {"result": "ok"}
    assert kjumpd.stage(warm=True) == {"result": "ok"}
    kjumpd.unstage()
    assert kjumpd.reload() == ["line 3"]
    assert kjumpd.properties() == {"Version": "1"}
    names = [call[3] for call in connection.calls]
    assert names == ["Check", "DryRun", "Stage", "Unstage", "Reload", "GetAll"]
    assert connection.calls[2][4].unpack() == ({"warm": True},)
    assert connection.calls[5][4].unpack() == (INTERFACE,)


def test_an_error_of_kjumpd_keeps_its_kind_and_its_sentence() -> None:
    kjumpd, _ = connected(remote("org.kjump1.Error.NoTarget", "None.  Name one."))
    with pytest.raises(errors.NoTarget) as raised:
        kjumpd.properties()
    assert raised.value.sentence == "None.  Name one."


def test_no_kjumpd() -> None:
    kjumpd, _ = connected(remote("org.freedesktop.DBus.Error.ServiceUnknown", "No such name"))
    with pytest.raises(errors.ServiceUnreachable, match="does not answer"):
        kjumpd.reload()


def test_no_bus() -> None:
    with pytest.raises(errors.ServiceUnreachable, match="no system bus"):
        client.Client("unix:path=/nonexistent")


def test_what_logind_offers() -> None:
    kjumpd, connection = connected(
        GLib.Variant("(s)", ("challenge",)), remote("org.freedesktop.DBus.Error.Failed", "Gone")
    )
    assert kjumpd.logind_can_hibernate() == "challenge"
    assert connection.calls[0][0] == "org.freedesktop.login1"
    assert "Gone" in kjumpd.logind_can_hibernate()


def test_reports_are_whole() -> None:
    assert client.full_report({"json": '{"a": {"b": 1}}'}) == {"a": {"b": 1}}
    for broken in ({"json": "{"}, {"json": "[]"}, {"result": "ok"}):
        assert client.full_report(broken) == broken


def test_progress_without_a_bus_shows_nothing() -> None:
    shown: list[tuple[int, str]] = []
    stop = client.watch(lambda *step: shown.append(step), "unix:path=/nonexistent")
    stop()
    assert shown == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl's connection to kjumpd: calls over the system bus, errors as our exceptions.

Runs in the session, in a user's process.  Decides nothing.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kjump.errors import DBUS_PREFIX, Internal, KjumpError, ServiceUnreachable, split_message, table
from kjump.names import BUS_NAME, INTERFACE, OBJECT_PATH

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport


class RemoteError(Internal):
    """An error of the daemon that this kjumpctl does not know."""

    exit_code = 1
    advice = ""


def error_of(dbus_name: str, message: str) -> KjumpError:
    """The exception a D-Bus error stands for; ``message`` is a `KjumpError.message`."""
    if dbus_name.startswith(DBUS_PREFIX):
        what, todo = split_message(message)
        cls = table().get(dbus_name.removeprefix(DBUS_PREFIX), RemoteError)
        return cls(what, advice=todo)
    return ServiceUnreachable(f"kjumpd does not answer: {message}.".replace("..", "."))


def full_report(report: CycleReport) -> CycleReport:
    """A report from the bus with all of its content, which is in its ``json`` text."""
    try:
        found = json.loads(report["json"])
    except (KeyError, ValueError):
        return dict(report)
    return found if isinstance(found, dict) else dict(report)


class Client:
    """kjumpd, as called from a command line."""

    def __init__(self, address: str | None = None) -> None:
        """``address``: another bus than the system's (or KJUMP_BUS_ADDRESS), for tests."""
        try:
            import pydbus  # noqa: F401
            from gi.repository import GLib

            from kjump.session.connection import connect
        except ImportError as error:
            raise ServiceUnreachable(
                f"The D-Bus library is missing: {error}.",
                advice="Install python3-pydbus and python3-gi.",
            ) from error
        address = address or os.environ.get("KJUMP_BUS_ADDRESS")
        try:
            bus = connect(address)
        except GLib.Error as error:
            raise ServiceUnreachable(f"There is no system bus: {error.message}.") from error
        self._connection: Any = bus.con

    def _call(
        self, interface: str, method: str, arguments: Any = None, *, forever: bool = False
    ) -> Any:
        """One call.  ``forever``: without a time limit, and polkit may ask the person."""
        from gi.repository import Gio, GLib

        flags = Gio.DBusCallFlags.NONE
        if forever:
            flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION
        try:
            answer = self._connection.call_sync(
                BUS_NAME,
                OBJECT_PATH,
                interface,
                method,
                arguments,
                None,
                flags,
                GLib.MAXINT32 if forever else -1,
                None,
            )
        except GLib.Error as error:
            name = Gio.DBusError.get_remote_error(error) or ""
            # strip_remote_error() changes a copy only under PyGObject.
            message = error.message.removeprefix(f"GDBus.Error:{name}: ")
            raise error_of(name, message) from error
        return answer.unpack()

    def can_hibernate(self) -> tuple[str, list[tuple[str, str]]]:
        """The answer and its reasons."""
        answer, reasons = self._call(INTERFACE, "CanHibernate")
        return str(answer), [(str(code), str(sentence)) for code, sentence in reasons]

    def hibernate(self, **options: bool) -> CycleReport:
        """Hibernate; returns the report when the session runs again.  Raises kjumpd's error.

        ``options``: those of the interface, with ``_`` for ``-``.
        """
        from gi.repository import GLib

        given = {
            name.replace("_", "-"): GLib.Variant("b", value) for name, value in options.items()
        }
        arguments = GLib.Variant("(a{sv})", (given,))
        (report,) = self._call(INTERFACE, "Hibernate", arguments, forever=True)
        return dict(report)

    def check(self) -> list[tuple[str, str, str, str, str]]:
        """All checks: (name, state, error, sentence, advice)."""
        (found,) = self._call(INTERFACE, "Check", forever=True)
        return [
            (str(name), str(state), str(error), str(sentence), str(advice))
            for name, state, error, sentence, advice in found
        ]

    def dry_run(self) -> CycleReport:
        """Jump to the helper and straight back; returns the report.  Raises kjumpd's error."""
        (report,) = self._call(INTERFACE, "DryRun", forever=True)
        return dict(report)

    def logind_can_hibernate(self) -> str:
        """logind's answer: yes, challenge, no or na; if it gives none, the error's text."""
        from gi.repository import GLib

        try:
            (answer,) = self._connection.call_sync(
                "org.freedesktop.login1",
                "/org/freedesktop/login1",
                "org.freedesktop.login1.Manager",
                "CanHibernate",
                None,
                None,
                0,
                -1,
                None,
            ).unpack()
        except GLib.Error as error:
            return str(error.message)
        return str(answer)

    def stage(self, *, warm: bool) -> CycleReport:
        """Start a helper ahead of time; returns the report, empty if one was running already."""
        from gi.repository import GLib

        arguments = GLib.Variant("(a{sv})", ({"warm": GLib.Variant("b", warm)},))
        (report,) = self._call(INTERFACE, "Stage", arguments, forever=True)
        return dict(report)

    def unstage(self) -> None:
        """Unload a helper that was started ahead of time."""
        self._call(INTERFACE, "Unstage", forever=True)

    def reload(self) -> list[str]:
        """Have kjumpd read its configuration again; returns the lines that it could not use."""
        (warnings,) = self._call(INTERFACE, "Reload", forever=True)
        return list(warnings)

    def properties(self) -> dict[str, Any]:
        """All properties."""
        from gi.repository import GLib

        (values,) = self._call(
            "org.freedesktop.DBus.Properties", "GetAll", GLib.Variant("(s)", (INTERFACE,))
        )
        return dict(values)


def watch(show: Callable[[int, str], None], address: str | None = None) -> Callable[[], None]:
    """Call ``show`` (per cent, step) from a thread at each step of kjumpd; returns what stops it.

    Progress is optional: without a bus connection nothing is shown.
    """
    from gi.repository import Gio, GLib

    from kjump.session.connection import connect

    context = GLib.MainContext()
    loop = GLib.MainLoop(context=context)
    ready = threading.Event()

    def changed(*arguments: Any) -> None:
        values = arguments[5].unpack()[1]
        if "Progress" in values:
            percent, message = values["Progress"]
            if message:
                show(int(percent), str(message))

    def run() -> None:
        context.push_thread_default()
        try:
            connection = connect(address or os.environ.get("KJUMP_BUS_ADDRESS")).con
            number = connection.signal_subscribe(
                BUS_NAME,
                "org.freedesktop.DBus.Properties",
                "PropertiesChanged",
                OBJECT_PATH,
                INTERFACE,
                Gio.DBusSignalFlags.NONE,
                changed,
            )
            ready.set()
            loop.run()
            connection.signal_unsubscribe(number)
        except GLib.Error:
            pass  # the call itself reports what is wrong
        finally:
            ready.set()
            context.pop_thread_default()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    ready.wait(5)

    def stop() -> None:
        # As an event of the loop, so that a loop that has not started yet ends, too.
        source = GLib.idle_source_new()
        source.set_callback(lambda *_: loop.quit())
        source.attach(context)
        thread.join(5)

    return stop

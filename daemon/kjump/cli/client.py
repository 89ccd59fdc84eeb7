"""kjumpctl's line to kjumpd: calls over the system bus, errors as ours.

Runs in the session, in a user's process.  Decides nothing.
"""

from __future__ import annotations

import os
from typing import Any

from kjump.errors import DBUS_PREFIX, Internal, KjumpError, ServiceUnreachable, table

NAME = "org.kjump1"
PATH = "/org/kjump1"
INTERFACE = "org.kjump1.Manager"


class RemoteError(Internal):
    """An error of the daemon that this kjumpctl does not know."""

    exit_code = 1
    advice = ""


def error_of(dbus_name: str, message: str) -> KjumpError:
    """The exception a D-Bus error stands for; ``message`` is already the whole sentence."""
    if dbus_name.startswith(DBUS_PREFIX):
        cls = table().get(dbus_name.removeprefix(DBUS_PREFIX))
        return cls(message, advice="") if cls else RemoteError(message, advice="")
    return ServiceUnreachable(f"kjumpd does not answer: {message}.".replace("..", "."))


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
                NAME,
                PATH,
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

    def hibernate(self, **options: bool) -> dict[str, Any]:
        """Hibernate; returns the report when the session runs again.  Raises how it failed.

        ``options``: as the interface has them, with ``_`` for ``-``.
        """
        from gi.repository import GLib

        given = {
            name.replace("_", "-"): GLib.Variant("b", value) for name, value in options.items()
        }
        arguments = GLib.Variant("(a{sv})", (given,))
        (report,) = self._call(INTERFACE, "Hibernate", arguments, forever=True)
        return dict(report)

    def stage(self, *, warm: bool) -> dict[str, Any]:
        """Start a helper ahead; returns the report, empty where one was there already."""
        from gi.repository import GLib

        arguments = GLib.Variant("(a{sv})", ({"warm": GLib.Variant("b", warm)},))
        (report,) = self._call(INTERFACE, "Stage", arguments, forever=True)
        return dict(report)

    def unstage(self) -> None:
        """Unload a helper that was started ahead."""
        self._call(INTERFACE, "Unstage", forever=True)

    def reload(self) -> list[str]:
        """Have the configuration read again; the lines that were not used."""
        (warnings,) = self._call(INTERFACE, "Reload", forever=True)
        return list(warnings)

    def properties(self) -> dict[str, Any]:
        """All properties."""
        from gi.repository import GLib

        (values,) = self._call(
            "org.freedesktop.DBus.Properties", "GetAll", GLib.Variant("(s)", (INTERFACE,))
        )
        return dict(values)

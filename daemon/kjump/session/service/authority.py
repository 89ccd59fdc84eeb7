# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may ask for what: polkit, asked without waiting.

Runs in the session, on the main loop; nothing here blocks.  Root is always allowed and polkit not
asked, so that systemd-hibernate.service works where there is no polkit.  Without polkit nobody
else is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gi.repository import Gio, GLib

from kjump.session.log import logger

HIBERNATE = "org.kjump1.hibernate"
MANAGE = "org.kjump1.manage"
YES, CHALLENGE, NO = "yes", "challenge", "no"
ALLOW_USER_INTERACTION = 1
FOREVER = GLib.MAXINT32
"""GDBus's timeout in ms that means none: a person may have to find the password first."""

log = logger()


class Authority(Protocol):
    """Decides; the answer comes through ``done`` on the main loop: yes, challenge or no."""

    def check(
        self, sender: str, action: str, *, interactive: bool, done: Callable[[str], None]
    ) -> None: ...


def answer(authorized: bool, challenge: bool) -> str:
    """polkit's two booleans as one word."""
    if authorized:
        return YES
    return CHALLENGE if challenge else NO


class Polkit:
    """The system's authority, over an existing bus connection (`Gio.DBusConnection`)."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def check(
        self, sender: str, action: str, *, interactive: bool, done: Callable[[str], None]
    ) -> None:
        """Whether the bus client ``sender`` (unique name) may do ``action``."""

        def have_user(connection: Any, result: Any) -> None:
            try:
                (user,) = connection.call_finish(result).unpack()
            except GLib.Error:
                done(NO)  # the caller has left the bus
                return
            if user == 0:
                done(YES)
            else:
                self._ask(sender, action, interactive=interactive, done=done)

        self._connection.call(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "GetConnectionUnixUser",
            GLib.Variant("(s)", (sender,)),
            GLib.VariantType("(u)"),
            Gio.DBusCallFlags.NONE,
            -1,
            None,
            have_user,
        )

    def _ask(
        self, sender: str, action: str, *, interactive: bool, done: Callable[[str], None]
    ) -> None:
        def have_answer(connection: Any, result: Any) -> None:
            try:
                ((authorized, challenge, _details),) = connection.call_finish(result).unpack()
            except GLib.Error as error:
                log.warning(f"polkit did not answer, so the caller is refused: {error.message}")
                done(NO)
                return
            done(answer(authorized, challenge))

        subject = ("system-bus-name", {"name": GLib.Variant("s", sender)})
        flags = ALLOW_USER_INTERACTION if interactive else 0
        self._connection.call(
            "org.freedesktop.PolicyKit1",
            "/org/freedesktop/PolicyKit1/Authority",
            "org.freedesktop.PolicyKit1.Authority",
            "CheckAuthorization",
            GLib.Variant("((sa{sv})sa{ss}us)", (subject, action, {}, flags, "")),
            GLib.VariantType("((bba{ss}))"),
            Gio.DBusCallFlags.NONE,
            FOREVER if interactive else -1,
            None,
            have_answer,
        )

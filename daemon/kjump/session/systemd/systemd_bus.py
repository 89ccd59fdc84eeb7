# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls to systemd, logind and homed: start, freeze and thaw units, lock homes, list inhibitors.

Runs in the session, in worker threads: these calls block.  Only `list_inhibitors` is for the main
loop; it does not block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gi.repository import Gio, GLib

from kjump.errors import Inhibited
from kjump.session.systemd import kernel_hibernation

SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
MANAGER = "org.freedesktop.systemd1.Manager"
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1")
LOGIND_MANAGER = "org.freedesktop.login1.Manager"
HOMED = ("org.freedesktop.home1", "/org/freedesktop/home1")
HOMED_MANAGER = "org.freedesktop.home1.Manager"

SESSIONS = "user.slice"
FREEZE_VARIABLE = "SYSTEMD_SLEEP_FREEZE_USER_SESSIONS"
FREEZE_SECONDS = 20
HOMES_SECONDS = 60
POLL = 0.02


class BusError(Exception):
    """A call that failed; the text says why."""

    def __init__(self, text: str, name: str = "") -> None:
        """``name``: the D-Bus error's, empty if there is none."""
        super().__init__(text)
        self.name = name


def _call(
    connection: Any,
    place: tuple[str, str],
    interface: str,
    method: str,
    arguments: Any = None,
    *,
    seconds: float = 25,
    start: bool = True,
) -> Any:
    flags = Gio.DBusCallFlags.NONE if start else Gio.DBusCallFlags.NO_AUTO_START
    try:
        answer = connection.call_sync(
            *place, interface, method, arguments, None, flags, int(seconds * 1000), None
        )
    except GLib.Error as error:
        name = Gio.DBusError.get_remote_error(error) or ""
        raise BusError(f"{method}: {error.message}", name) from error
    return answer.unpack()


def start(connection: Any, unit: str, *, seconds: float) -> str:
    """Start a unit and wait for the job; its result ("done", "failed", ...; systemd's JobRemoved).

    "timeout" after ``seconds``; the unit is stopped then.  Raises `BusError` if it could not be
    started.
    """
    # A context of its own, so that this thread receives the signals, not the main loop.
    context = GLib.MainContext.new()
    context.push_thread_default()
    results: dict[str, str] = {}

    def removed(*arguments: Any) -> None:
        _number, job, _unit, result = arguments[5].unpack()
        results[job] = result

    watch = connection.signal_subscribe(
        SYSTEMD[0], MANAGER, "JobRemoved", SYSTEMD[1], None, Gio.DBusSignalFlags.NONE, removed
    )
    try:
        _subscribe(connection)
        arguments = GLib.Variant("(ss)", (unit, "replace"))
        (job,) = _call(connection, SYSTEMD, MANAGER, "StartUnit", arguments)
        end = time.monotonic() + seconds
        while job not in results:
            if not context.iteration(False):
                time.sleep(POLL)
            if time.monotonic() > end:
                _call(connection, SYSTEMD, MANAGER, "StopUnit", arguments)
                return "timeout"
        return results[job]
    finally:
        connection.signal_unsubscribe(watch)
        context.pop_thread_default()


def _subscribe(connection: Any) -> None:
    """Make systemd send signals, for as long as the connection lasts."""
    try:
        _call(connection, SYSTEMD, MANAGER, "Subscribe")
    except BusError as error:
        if error.name != "org.freedesktop.systemd1.AlreadySubscribed":
            raise


def freezes_sessions(program: Path = kernel_hibernation.PROGRAM) -> bool:
    """Whether this systemd freezes sessions while the machine sleeps ("freeze user.slice", v256).
    Freezing whole slices was not reliable before; the text of its program shows it."""
    try:
        return FREEZE_VARIABLE.encode() in program.read_bytes()
    except OSError:
        return False


def says_no(text: str) -> bool:
    """Whether a variable's text is systemd's for no (parse_boolean())."""
    return text.lower() in ("0", "no", "n", "false", "f", "off")


def freeze(connection: Any, unit: str = SESSIONS) -> None:
    """Stop all that runs in a unit.  Raises `BusError`; it may be frozen then all the same."""
    _call(
        connection,
        SYSTEMD,
        MANAGER,
        "FreezeUnit",
        GLib.Variant("(s)", (unit,)),
        seconds=FREEZE_SECONDS,
    )


def thaw(connection: Any, unit: str = SESSIONS) -> None:
    """Let a unit run on, also one that is not frozen.  Raises `BusError`."""
    _call(
        connection,
        SYSTEMD,
        MANAGER,
        "ThawUnit",
        GLib.Variant("(s)", (unit,)),
        seconds=FREEZE_SECONDS,
    )


def lock_homes(connection: Any) -> None:
    """Make systemd-homed forget the keys of homes that want that, if it runs.  Raises
    `BusError`."""
    try:
        _call(connection, HOMED, HOMED_MANAGER, "LockAllHomes", seconds=HOMES_SECONDS, start=False)
    except BusError as error:
        if error.name not in (
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
        ):
            raise


# -- inhibitors ------------------------------------------------------------------------------------


class Inhibitor(NamedTuple):
    """One of logind's ListInhibitors."""

    what: str
    who: str
    why: str
    mode: str
    uid: int
    pid: int


def blocking(inhibitors: Sequence[Inhibitor]) -> list[Inhibitor]:
    """Those that forbid sleep.  ("block-weak", new in systemd 257, does not bind root and its
    owner.  Here it binds everybody: the caller can override it.)"""
    return [
        one
        for one in inhibitors
        if one.mode in ("block", "block-weak") and "sleep" in one.what.split(":")
    ]


NOBODY_THERE = frozenset(
    {
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.systemd1.NoSuchUnit",
        "org.freedesktop.systemd1.UnitMasked",
    }
)
"""Names of the D-Bus errors that say that a service does not exist on this machine."""


def list_inhibitors(connection: Any, done: Callable[[list[Inhibitor] | Inhibited], None]) -> None:
    """Ask logind; the answer comes through ``done`` on the main loop.

    Without logind nobody can inhibit anything.  If logind is there and does not answer, somebody
    may: a program that burns a disc, or installs packages.  So that is an error.
    """

    def answered(connection: Any, result: Any) -> None:
        try:
            (found,) = connection.call_finish(result).unpack()
        except GLib.Error as error:
            name = Gio.DBusError.get_remote_error(error) or ""
            message = error.message.removeprefix(f"GDBus.Error:{name}: ").rstrip(".")
            if name in NOBODY_THERE:
                done([])
            else:
                done(
                    Inhibited(
                        f"logind does not say whether sleep is inhibited: {message}.",
                        advice="Try again, or override inhibitors as administrator with"
                        " --ignore-inhibitors.",
                    )
                )
            return
        done([Inhibitor(*one) for one in found])

    connection.call(
        *LOGIND,
        LOGIND_MANAGER,
        "ListInhibitors",
        None,
        GLib.VariantType("(a(ssssuu))"),
        Gio.DBusCallFlags.NONE,
        5000,
        None,
        answered,
    )

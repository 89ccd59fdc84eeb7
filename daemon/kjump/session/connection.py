# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to the bus, made once and kept until the process ends.

Runs in the session, in kjumpd and in kjumpctl.

The connection is never freed, because that may deadlock.  When Python drops the last reference to a
`Gio.DBusConnection`, GLib takes a global lock while the GIL is held.  For every message on any
connection, GDBus's thread takes the two locks in the other order: ``on_worker_message_received``
holds message_bus_lock and takes a reference, and PyGObject handles that under the GIL.  This was
seen as an occasional hang with GLib 2.74 and PyGObject 3.42; at the end of kjumpctl it would hang
systemd-hibernate.service for ever.
"""

from __future__ import annotations

import ctypes
from typing import Any


def connect(address: str | None = None) -> Any:
    """A pydbus bus: the system's, or the one at a D-Bus address.  Raises `GLib.Error`."""
    import pydbus

    bus = pydbus.connect(address) if address else pydbus.SystemBus()
    # One reference that nobody ever drops, so that not even the end of the interpreter frees it.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(bus.con))
    return bus

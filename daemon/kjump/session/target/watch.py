# SPDX-License-Identifier: GPL-2.0-or-later
"""Device events and swap events, on the main loop.

Runs in the session.  Only listens; it changes nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from kjump.session.target.swaps import SWAPS


def watch_devices(changed: Callable[[], None]) -> Callable[[], None]:
    """Call ``changed`` on the main loop whenever a block device comes, goes or changes, memory or
    a processor does, and when swap is switched on or off.

    Returns what stops it.
    """
    import pyudev
    from gi.repository import GLib

    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    for subsystem in ("block", "memory", "cpu"):
        monitor.filter_by(subsystem)
    monitor.start()

    # Not pyudev's MonitorObserver: that stops for good when events came faster than they were read
    # (ENOBUFS, netlink(7)), as they can where we may not have as much memory for them as libudev
    # asks for (SO_RCVBUFFORCE takes CAP_NET_ADMIN).
    def woken(*_arguments: object) -> bool:
        lost = _pending_error(monitor.fileno()) != 0
        device = None
        try:
            device = monitor.poll(timeout=0)
        except OSError:
            lost = True
        # Which were lost is not known, so all is looked at again.
        if lost or device is not None:
            changed()
        return True

    source = GLib.io_add_watch(
        monitor.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_ERR, woken
    )
    stop_swaps = watch_swaps(changed)

    def stop() -> None:
        stop_swaps()
        GLib.source_remove(source)

    return stop


def _pending_error(descriptor: int) -> int:
    """The error that a socket holds for us, which it reports once (SO_ERROR, socket(7))."""
    with socket.socket(fileno=os.dup(descriptor)) as same:
        return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def watch_swaps(changed: Callable[[], None]) -> Callable[[], None]:
    """Call ``changed`` on the main loop when swap is switched on or off; returns what stops it.

    The kernel wakes whoever polls /proc/swaps, and the poll itself acknowledges the event
    (mm/swapfile.c, swaps_poll): nothing has to be read.
    """
    from gi.repository import GLib

    try:
        file = SWAPS.open("rb")
    except OSError:
        return lambda: None  # a kernel without swap

    def woken(*_arguments: object) -> bool:
        changed()
        return True

    source = GLib.io_add_watch(
        file.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_PRI | GLib.IO_ERR, woken
    )

    def stop() -> None:
        GLib.source_remove(source)
        file.close()

    return stop

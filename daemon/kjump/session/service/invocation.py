# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller may send, and what is left of a call once it is answered.

Runs in the session, on kjumpd's main loop.  Knows nothing of what a method does.

Anyone may call kjumpd, as often as they like, with whatever the bus lets through: messages of up
to 128 MiB, with descriptors attached to them that nobody has asked for.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from gi.repository import GLib

LARGEST = 16 << 10
"""Bytes of a call's arguments.  Unpacking is done on the main loop, byte by byte in Python: 100 kB
take as long as reading the whole machine, and everybody waits."""


def is_too_large(parameters: Any) -> bool:
    """Whether unpacking a call's arguments (`GLib.Variant`) would take too long."""
    return bool(parameters.get_size() > LARGEST)


def close_descriptors(message: Any) -> None:
    """Close what came with a call (`Gio.DBusMessage`): no method of ours takes any."""
    handles = message.get_unix_fd_list()
    if handles is not None:
        for descriptor in handles.steal_fds():
            os.close(descriptor)


def forget(invocation: Any) -> None:
    """Give back a call's memory, once it is answered.

    GLib before 2.84 hands a reference to the handler of a call that PyGObject never takes
    (PyGObject#519): the call and its message stay for ever, 2 KiB or more each.  Whether that is so
    here is seen from the count of references when nobody but Python can hold one any more.
    """

    def when_all_returned() -> bool:
        if invocation.__grefcount__ > 1:
            # PyGObject has no unref(); the hash of one of its objects is the object's address.
            _gobject.g_object_unref(ctypes.c_void_p(hash(invocation)))
        return False

    GLib.idle_add(when_all_returned)


def text(words: str) -> str:
    """Words as the bus takes them: what is no Unicode (from a file's name) or a NUL replaced."""
    return words.encode("utf-8", "replace").decode().replace("\0", "?")


_gobject = ctypes.CDLL("libgobject-2.0.so.0")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls on the bus that are answered later, with results or with named errors.

Runs in the session, on the main loop.  Knows nothing of what a method does.  pydbus registers the
object, but its own wrapper makes unnamed errors of all exceptions and answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gi.repository import Gio, GLib
from pydbus.registration import ObjectWrapper

from kjump.errors import (
    BadRequest,
    Internal,
    KjumpError,
)
from kjump.session.log import logger
from kjump.session.service.invocation import close_descriptors, forget, is_too_large, text

log = logger()

PROPERTIES = "org.freedesktop.DBus.Properties"


class Call:
    """One method call that waits for its answer.  Main loop only."""

    def __init__(self, invocation: Any, sender: str, signature: str) -> None:
        self._invocation = invocation
        self._signature = signature
        self.sender = sender
        flags = invocation.get_message().get_flags()
        self.interactive = bool(flags & Gio.DBusMessageFlags.ALLOW_INTERACTIVE_AUTHORIZATION)

    def reply(self, *values: Any) -> None:
        """Answer with the method's results."""
        try:
            answer = GLib.Variant(f"({self._signature})", values)
        except (TypeError, ValueError, OverflowError) as error:
            log.exception("an answer does not fit the bus")
            self.fail(Internal(f"{type(error).__name__}: {error}"))
            return
        invocation, self._invocation = self._invocation, None
        if invocation is not None:
            invocation.return_value(answer)
            forget(invocation)

    def fail(self, error: KjumpError) -> None:
        """Answer with a named error."""
        invocation, self._invocation = self._invocation, None
        if invocation is not None:
            refuse(invocation, error.dbus_name, error.message)

    @contextmanager
    def answers_errors(self) -> Iterator[None]:
        """Answer with the error that ends the block, by its name."""
        try:
            yield
        except KjumpError as error:
            self.fail(error)
        except Exception as error:
            log.exception("a call failed")
            self.fail(Internal(f"{type(error).__name__}: {error}"))

    def __del__(self) -> None:
        # Whoever should have answered has failed; that is in the journal.
        if self._invocation is not None:
            self.fail(Internal("The call was dropped."))


def refuse(invocation: Any, name: str, message: str) -> None:
    """Answer a call with an error, by its D-Bus name."""
    invocation.return_dbus_error(name, text(message))
    forget(invocation)


class Wrapper(ObjectWrapper):  # type: ignore[misc]
    """pydbus's wrapper with answers that may come later and errors that have names."""

    def call_method(
        self,
        connection: Any,
        sender: str,
        object_path: str,
        interface_name: str,
        method_name: str,
        parameters: Any,
        invocation: Any,
    ) -> None:
        """What GDBus calls for every call; the arguments' types were checked by then."""
        close_descriptors(invocation.get_message())
        if is_too_large(parameters):
            refuse(invocation, BadRequest("").dbus_name, "The arguments are too large.")
            return
        if interface_name == PROPERTIES:
            self._property(method_name, parameters, invocation)
            return
        signature = "".join(self.outargs[f"{interface_name}.{method_name}"])
        call = Call(invocation, sender, signature)
        with call.answers_errors():
            getattr(self.object, method_name)(call, *parameters.unpack())

    def _property(self, method: str, parameters: Any, invocation: Any) -> None:
        """Get and GetAll; GDBus itself refuses unknown and unwritable ones."""
        arguments = parameters.unpack()
        try:
            if method == "Get":
                value = GLib.Variant("(v)", (self.Get(*arguments),))
            elif method == "GetAll":
                value = GLib.Variant("(a{sv})", (self.GetAll(*arguments),))
            else:
                raise KeyError(method)
        except KeyError:
            refuse(
                invocation,
                "org.freedesktop.DBus.Error.PropertyReadOnly",
                "No property here can be set.",
            )
        except Exception as error:
            log.exception("a property could not be read")
            refuse(invocation, Internal("").dbus_name, str(error))
        else:
            invocation.return_value(value)
            forget(invocation)

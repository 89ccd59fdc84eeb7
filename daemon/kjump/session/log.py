# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: structlog to the journal with fields, or to stderr for a person.

Runs in the session.  Fields in capitals (KJUMP_CYCLE=, KJUMP_PHASE=, MESSAGE_ID=) become journal
fields.  The journal is spoken to in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), which
is a datagram and needs no library.  Logging never raises.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

JOURNAL = "/run/systemd/journal/socket"
IDENTIFIER = "kjumpd"
LARGEST = 48 << 10
"""Bytes of one field; a datagram holds somewhat over 200 KiB."""
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def logger() -> Any:
    """The one logger of the daemon (structlog's are not typed)."""
    return structlog.get_logger("kjump")


@contextmanager
def bound(**values: str) -> Iterator[None]:
    """Add fields to all that is logged in this thread while inside."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def encode(fields: Mapping[str, str]) -> bytes:
    """Fields in the journal's native protocol: values with line ends carry their length."""
    out = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")[:LARGEST]
        if b"\n" in value:
            out += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            out += name.encode() + b"=" + value + b"\n"
    return bytes(out)


def journal_fields(event: Mapping[str, Any]) -> dict[str, str]:
    """A structlog event as journal fields; small-letter keys go into the message."""
    message = str(event.get("event", ""))
    level = str(event.get("level", "info"))
    fields = {
        "PRIORITY": str(PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    for key, value in event.items():
        if key in ("event", "level", "exception", "timestamp"):
            continue
        if key.isupper():
            fields[key] = str(value)
        else:
            message += f" {key}={value}"
    if event.get("exception"):
        message += "\n" + str(event["exception"])
    return {"MESSAGE": message, **fields}


class _Journal:
    """A structlog logger whose lines are fields for the journal; to stderr where it fails."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def msg(self, fields: Mapping[str, str]) -> None:
        try:
            self._socket.send(encode(fields))
        except OSError:
            print(f"<{fields['PRIORITY']}>{fields['MESSAGE']}", file=sys.stderr, flush=True)

    log = debug = info = warning = error = critical = exception = msg


def _render_journal(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Any:
    return (journal_fields(event),), {}


def _render_plain(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    fields = journal_fields(event)
    cycle = fields.get("KJUMP_CYCLE", "")[:8]
    phase = fields.get("KJUMP_PHASE", "")
    where = " ".join(word for word in (cycle, phase) if word)
    return f"{IDENTIFIER}{f' [{where}]' if where else ''}: {fields['MESSAGE']}"


def set_up(*, debug: bool = False) -> None:
    """Choose where lines go: the journal where systemd connected stderr to it, else stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    level = logging.DEBUG if debug else logging.INFO
    factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    render: Any = _render_plain
    if "JOURNAL_STREAM" in os.environ:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(JOURNAL)
        except OSError:
            connection.close()
        else:
            journal = _Journal(connection)
            factory, render = (lambda *_names: journal), _render_journal
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )

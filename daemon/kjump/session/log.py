# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: structlog to the journal with fields, or to stderr for a person.

Runs in the session.  Fields in capitals (KJUMP_CYCLE=, KJUMP_PHASE=, MESSAGE_ID=) become journal
fields, which python3-systemd sends.  Logging never raises.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

JOURNAL = "/run/systemd/journal/socket"
"""Where journald listens; libsystemd sends to it."""
IDENTIFIER = "kjumpd"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def logger() -> Any:
    """The one logger of the daemon (structlog's are not typed)."""
    return structlog.get_logger("kjump")


@contextmanager
def bound(**values: str) -> Iterator[None]:
    """Inside this context, add fields to everything that this thread logs."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def journal_fields(event: Mapping[str, Any]) -> dict[str, str]:
    """A structlog event as journal fields; lower-case keys go into the message."""
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
    """A structlog logger that sends fields to the journal, or prints to stderr if that fails."""

    def __init__(self, send: Callable[..., Any]) -> None:
        """``send``: systemd.journal.sendv, which expects ``NAME=value`` for each field."""
        self._send = send

    def msg(self, fields: Mapping[str, str]) -> None:
        try:
            self._send(
                *(f"{name}={text}".encode(errors="replace") for name, text in fields.items())
            )
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
    """Choose where lines go: to the journal if systemd connected stderr to it, else to stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    level = logging.DEBUG if debug else logging.INFO
    factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    render: Any = _render_plain
    if "JOURNAL_STREAM" in os.environ and os.path.exists(JOURNAL):
        from systemd.journal import sendv

        journal = _Journal(sendv)
        factory, render = (lambda *_names: journal), _render_journal
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )

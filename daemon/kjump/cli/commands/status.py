# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl status`` and ``can-hibernate``: kjumpd's state, and whether the machine can hibernate.

Runs in the session, as any user.  Changes nothing.
"""

from __future__ import annotations

from typing import Any

from kjump.cli import client, show
from kjump.cli.commands import add_command
from kjump.cli.terminal import Options, colour, print_result
from kjump.errors import table


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    add_command(subparsers, "status", status, "Show state, target, window and the last cycle.")
    add_command(
        subparsers,
        "can-hibernate",
        can_hibernate,
        "Say whether the machine can hibernate, and every reason why not.",
    )


def status(options: Options) -> int:
    """Print kjumpd's properties."""
    values = client.Client().properties()
    last = values.get("LastCycle")
    values["LastCycle"] = client.full_report(last) if last else {}
    print_result(options, values, lambda: show.status_text(values, colour=colour()))
    return 0


def can_hibernate(options: Options) -> int:
    """Print kjumpd's answer; returns the exit code of the first reason why not."""
    answer, reasons = client.Client().can_hibernate()
    document = {
        "answer": answer,
        "reasons": [{"code": code, "sentence": sentence} for code, sentence in reasons],
    }
    shade = show.COLOURS.get(answer, show.BOLD)
    parts = (show.paint(answer, shade, on=colour()), show.reasons_text(reasons))
    print_result(options, document, lambda: "\n".join(part for part in parts if part))
    if answer in ("yes", "challenge"):
        return 0
    cls = table().get(reasons[0][0]) if reasons else None
    return cls.exit_code if cls else 1

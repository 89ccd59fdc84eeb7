# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl stage`` and ``unstage``: a helper kernel that runs ahead of the next hibernation.

Runs in the session, as any user.  kjumpd does the work; nothing here stages a kernel or jumps.
"""

from __future__ import annotations

from typing import Any

from kjump.cli import client, show
from kjump.cli.commands import add_command
from kjump.cli.terminal import Options, colour, print_result, service_progress
from kjump.errors import BadRequest


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    parser = add_command(
        subparsers, "stage", stage, "Start the helper kernel ahead of the next hibernation."
    )
    parser.add_argument(
        "--warm", action="store_true", help="keep it running (the only kind there is)"
    )
    add_command(
        subparsers, "unstage", unstage, "Unload a helper kernel that was started ahead of time."
    )


def stage(options: Options) -> int:
    """Start a warm helper, and print the report."""
    if not options.warm:
        raise BadRequest("Only a warm helper can be started ahead of time.", advice="Add: --warm.")
    with service_progress(options):
        report = client.full_report(client.Client().stage(warm=True))

    def text() -> str:
        if not report:
            return "A warm helper was running already."
        return show.report_text(report, colour=colour())

    print_result(options, report, text)
    return 0


def unstage(options: Options) -> int:
    """Unload the helper."""
    client.Client().unstage()
    print_result(options, {}, lambda: "Nothing is staged.")
    return 0

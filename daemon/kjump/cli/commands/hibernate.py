# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl hibernate``: one cycle, or the kernel's own hibernation if kjump cannot.

Runs in the session, as any user; as root if it has to fall back.  kjumpd does the
work; nothing here stages a kernel or jumps.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from kjump import settings as configuration
from kjump.cli import client, show
from kjump.cli.commands import add_command
from kjump.cli.terminal import Options, colour, print_result, service_progress
from kjump.errors import Internal, ServiceUnreachable


def add(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "hibernate", run, "Hibernate, and report when the session runs again."
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    parser.add_argument(
        "--ignore-inhibitors", action="store_true", help="also while a program blocks sleep"
    )
    parser.add_argument(
        "--fallback",
        action="store_true",
        help="use systemd-sleep if kjump cannot hibernate; as root",
    )


def run(options: Options) -> int:
    """Have kjumpd hibernate, and print its report.

    Without kjumpd, and if kjumpd decides so, systemd-sleep hibernates instead of it.
    """
    from kjump.session.systemd import kernel_hibernation, systemd_bus

    wanted = {}
    if options.fallback:
        wanted["fallback"] = True
    if options.ignore_inhibitors:
        wanted["ignore_inhibitors"] = True
    # systemd-sleep reads the same variable, which is set in systemd-hibernate.service.
    if systemd_bus.says_no(os.environ.get(systemd_bus.FREEZE_VARIABLE, "")):
        wanted["freeze"] = False
    try:
        kjumpd = client.Client()
        # Fails if kjumpd does not answer.  After this only kjumpd knows how far the cycle went.
        kjumpd.properties()
    except ServiceUnreachable as error:
        if not options.fallback:
            raise
        chosen = configuration.load().session.fallback
        decision = kernel_hibernation.decide(
            error, jumped=False, fallback=chosen, facts=kernel_hibernation.read_state()
        )
        if not decision.fall_back:
            raise ServiceUnreachable(f"{error.what}  {decision.why_not}") from error
        return _hibernate_by_systemd(error.what)
    with service_progress(options):
        report = client.full_report(kjumpd.hibernate(**wanted))
    if report.get("fallback"):
        return _hibernate_by_systemd(str(report.get("what", "")))
    print_result(options, report, lambda: show.report_text(report, colour=colour()))
    return 0


def _hibernate_by_systemd(what: str) -> int:
    """Become systemd-sleep; its exit status becomes kjumpctl's.  ``what``: why."""
    from kjump.session.systemd import kernel_hibernation

    print(f"kjumpctl: {what}  The kernel's own hibernation is done instead.", file=sys.stderr)
    sys.stderr.flush()
    program, *arguments = kernel_hibernation.command()
    try:
        os.execv(program, [program, *arguments])
    except OSError as error:
        raise Internal(f"{program} cannot be started: {error.strerror}.") from error

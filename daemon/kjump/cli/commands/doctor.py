# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl doctor``: every check, and a jump as a dry run if the person agrees.

Runs in the session, as any user.  Decides nothing: `kjump.cli.doctor` looks and decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kjump.cli import client
from kjump.cli.commands import add_command
from kjump.cli.terminal import Options, ask, can_ask, colour, print_result, service_progress
from kjump.errors import KjumpError

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport


def add(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "doctor", run, "Check everything, and say what to do about each problem."
    )
    jumps = parser.add_mutually_exclusive_group()
    jumps.add_argument(
        "--jump",
        "--yes",
        dest="jump",
        action="store_true",
        default=None,
        help="jump to the helper and back as a dry run, without asking",
    )
    jumps.add_argument(
        "--no-jump", dest="jump", action="store_false", help="do not jump, and do not ask"
    )


def run(options: Options) -> int:
    """Look, perhaps jump, and print all findings; returns the exit code of the first failure."""
    from kjump.cli import doctor
    from kjump.session.checks.doctor import FAILED, SKIPPED, Finding, failed

    found = doctor.look()
    dry_run: CycleReport | None = None
    if any(finding.state == FAILED for finding in found):
        found.append(Finding("dry-run", SKIPPED, "Not tried: correct the failed checks first."))
    elif not _may_jump(options):
        found.append(Finding("dry-run", SKIPPED, "Not tried.", advice="Try it with: --jump."))
    else:
        try:
            with service_progress(options):
                dry_run = client.full_report(client.Client().dry_run())
            found.append(doctor.of_dry_run(dry_run))
        except KjumpError as error:
            found.append(failed("dry-run", error))
    document = doctor.document(found, dry_run)
    print_result(options, document, lambda: doctor.text(found, colour=colour()))
    return doctor.exit_code(found)


def _may_jump(options: Options) -> bool:
    """Whether the person wants the dry run; asks on a terminal only."""
    if options.jump is not None:
        return bool(options.jump)
    if options.json or not can_ask():
        return False
    return ask(
        "Jump to the helper and straight back? The session stands still for some seconds, and if"
        " the jump does not work on this machine, it is lost. Save your work first."
    )

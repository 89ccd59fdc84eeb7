# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl setup``: from a target to the first check, in one command.

Runs in the session, as root.  Shows the plan and asks; `kjump.cli.setup` chooses and acts, and
never before the person agreed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kjump.cli import dropins, show
from kjump.cli.commands import add_command, doctor
from kjump.cli.completion import FILES, completes
from kjump.cli.terminal import Options, ask, print_result
from kjump.errors import BadRequest


def add(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "setup", run, "Choose or make a target, configure it, and check everything."
    )
    file = parser.add_argument(
        "--file",
        metavar="PATH",
        help="make this file, which must not exist yet, and configure it; nothing else",
    )
    completes(file, FILES)
    parser.add_argument("--yes", action="store_true", help="do not ask (and do not jump)")
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be done, and do nothing"
    )
    parser.add_argument(
        "--size",
        metavar="SIZE",
        help="bytes, or a number and K, M, G or T; default: memory, one hundredth of it and 64 MiB",
    )
    parser.add_argument("--no-initrd", action="store_true", help="leave the initrds alone")


def run(options: Options) -> int:
    """Make the named file the target, or find one."""
    return _make_file(options) if options.file else _set_up(options)


def _make_file(options: Options) -> int:
    from kjump.cli import setup

    if options.dry_run:
        raise BadRequest("With --file there is nothing to choose.", advice="Leave out --dry-run.")
    plan = setup.Plan(options.file, options.file, make=setup.parse_size(options.size))
    done = setup.apply(plan, update=None if options.no_initrd else ["--boot-only"])
    document = {"file": done.spec, "size": done.size, "configuration": str(done.drop_in)}
    print_result(
        options,
        document,
        lambda: (
            f"Made: {done.spec}, {show.size(done.size)}\nWritten: {done.drop_in}\n"
            "Leave the file where it is: it cannot be moved, written to or removed (chattr -i"
            " allows that again)."
        ),
    )
    return 0


def _set_up(options: Options) -> int:
    """Choose a target, show the plan, ask, do it all, and end with the doctor."""
    from kjump.cli import setup

    plan = setup.choose(setup.survey(), setup.parse_size(options.size))
    steps = plan.sentences(with_initrds=not options.no_initrd)
    if options.dry_run:
        document = {"target": plan.spec, "make": plan.make, "steps": steps, "done": False}
        print_result(options, document, lambda: "\n".join(steps))
        return 0
    print("\n".join(steps), file=sys.stderr)
    if not options.yes:
        if not sys.stdin.isatty():
            raise BadRequest("There is no terminal to ask on.", advice="Add --yes, or --dry-run.")
        if not ask("Do that?"):
            print("Nothing was done.", file=sys.stderr)
            return 1
    setup.apply(plan, update=None if options.no_initrd else [])
    root = Path("/")
    if not dropins.are_enabled(root) and (
        options.yes or ask("Use kjump for systemctl hibernate and all desktops?")
    ):
        dropins.reload_systemd(root, dropins.enable(root))
        print(dropins.RESTART_LOGIND, file=sys.stderr)
    # A script gets no jump that it did not ask for.
    options.jump = False if options.yes else None
    return doctor.run(options)

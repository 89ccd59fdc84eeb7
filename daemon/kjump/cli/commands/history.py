# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl history``, ``history show`` and ``plot``: past cycles, from kjumpd's file of them.

Runs in the session, as any user: everybody may read that file, and kjumpd need not run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump.cli import show
from kjump.cli.commands import add_command
from kjump.cli.completion import CYCLES, FILES, completes
from kjump.cli.terminal import Options, colour, print_result
from kjump.errors import BadRequest

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport

ID = "a cycle's id, or enough of its start to be unique, or: last"


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    parser = add_command(subparsers, "history", history, "Show all cycles, or one.")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND")
    # Without these defaults "show" would reset the options that stand before it.
    sub = add_command(commands, "show", show_one, "Show one cycle.", json_default=argparse.SUPPRESS)
    completes(sub.add_argument("id", metavar="ID", help=ID), CYCLES)
    sub.add_argument("--file", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    text = "Draw a cycle as an SVG: its phases, and its memory."
    parser = subparsers.add_parser("plot", help=text, description=text)
    parser.set_defaults(run=draw)
    one = parser.add_argument("id", nargs="?", default="last", metavar="ID", help=f"{ID} (default)")
    completes(one, CYCLES)
    output = parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    completes(output, FILES)
    parser.add_argument("--file", help=argparse.SUPPRESS)


def history(options: Options) -> int:
    """Print all cycles."""
    entries = _entries(options)
    print_result(options, entries, lambda: show.history_text(entries, colour=colour()))
    return 0


def show_one(options: Options) -> int:
    """Print one cycle's report."""
    entry = find(_entries(options), options.id)
    print_result(options, entry, lambda: show.report_text(entry, colour=colour()))
    return 0


def draw(options: Options) -> int:
    """Write the picture of one cycle."""
    from kjump.cli import plot

    picture = plot.svg(find(_entries(options), options.id))
    if options.output is None:
        sys.stdout.write(picture)
        return 0
    try:
        Path(options.output).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise BadRequest(
            f"{options.output} cannot be written: {error.strerror}.", advice="Choose another file."
        ) from error
    return 0


def _entries(options: Options) -> list[CycleReport]:
    from kjump.session.cycle.history import HISTORY, History

    return History(Path(options.file or HISTORY)).entries()


def find(entries: list[CycleReport], wanted: str) -> CycleReport:
    """The cycle whose id begins with ``wanted``; the newest one for "last".

    A later boot may have added an entry of the same id: that is the final one.  Raises
    `BadRequest`.
    """
    if not entries:
        raise BadRequest("There was no cycle yet.", advice="Hibernate with: kjumpctl hibernate.")
    start = wanted.lower()
    if start == "last":
        found = entries[-1:]
    else:
        found = [e for e in entries if str(e.get("cycle", "")).lower().startswith(start)]
    names = {str(entry.get("cycle")) for entry in found}
    if not found or not start:
        raise BadRequest(f"The history has no cycle {wanted!r}.", advice="See: kjumpctl history.")
    if len(names) > 1:
        raise BadRequest(
            f"{len(names)} cycles begin with {wanted!r}.", advice="Give more of the id."
        )
    return found[-1]

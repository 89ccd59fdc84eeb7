# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl's commands: each module has ``add``, its part of the command line, beside what it does.

Runs in the session.  A module imports only the standard library and small modules of ours; what
reads images, asks the bus or looks at the machine is imported by the function that needs it, so
that kjumpctl starts quickly, and so that the build can read the command line without them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from kjump.cli.terminal import Options


def add_command(
    subparsers: Any,
    name: str,
    run: Callable[[Options], int],
    text: str,
    *,
    json_default: Any = False,
) -> argparse.ArgumentParser:
    """A command with the option ``--json``; ``run`` returns the exit code."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", default=json_default, help="print JSON")
    return parser

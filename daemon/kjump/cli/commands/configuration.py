# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl reload`` and ``update-initrd``: have a changed configuration take effect.

Runs in the session; update-initrd needs root.  Never changes a setting.
"""

from __future__ import annotations

from typing import Any

from kjump.cli import client, initrds
from kjump.cli.commands import add_command
from kjump.cli.terminal import Options, print_result


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    add_command(subparsers, "reload", reload, "Have kjumpd read its configuration again.")
    parser = add_command(
        subparsers, "update-initrd", update_initrd, "Build the initrds of helper and boot again."
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="ARGUMENT",
        help="which kernel, and which kind of initrd, see kjumpctl(1)",
    )


def reload(options: Options) -> int:
    """Print the lines of the configuration that kjumpd could not use."""
    warnings = client.Client().reload()
    print_result(
        options, {"warnings": warnings}, lambda: "\n".join(warnings) or "Configuration read."
    )
    return 0


def update_initrd(options: Options) -> int:
    """Build them."""
    return 0 if initrds.update(options.arguments) else 1

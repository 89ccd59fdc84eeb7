# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl enable`` and ``disable``: whether systemctl hibernate and desktops use kjump.

Runs in the session, as root, also in a chroot without a running systemd.  Decides nothing:
`kjump.cli.dropins` installs and removes the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kjump.cli import dropins
from kjump.cli.commands import add_command
from kjump.cli.completion import FOLDERS, completes
from kjump.cli.terminal import Options, print_result


def add(subparsers: Any) -> None:
    """Add the commands to the command line."""
    for name, function, text in (
        ("enable", enable, "Use kjump for systemctl hibernate and all desktops."),
        ("disable", disable, "Stop using kjump for systemctl hibernate and all desktops."),
    ):
        parser = add_command(subparsers, name, function, text)
        root = parser.add_argument(
            "--root", default="/", metavar="DIR", help="work below this directory"
        )
        completes(root, FOLDERS)


def enable(options: Options) -> int:
    """Put the drop-ins in place."""
    root = Path(options.root)
    changed = dropins.enable(root)
    dropins.reload_systemd(root, changed)

    def text() -> str:
        if not changed:
            return "Already enabled."
        return "\n".join([*(f"Written: {path}" for path in changed), dropins.RESTART_LOGIND])

    print_result(options, _document(changed), text)
    return 0


def disable(options: Options) -> int:
    """Remove the drop-ins."""
    root = Path(options.root)
    changed = dropins.disable(root)
    dropins.offer_again(root)
    dropins.reload_systemd(root, changed)
    print_result(
        options,
        _document(changed),
        lambda: "\n".join(f"Removed: {path}" for path in changed) or "Was not enabled.",
    )
    return 0


def _document(changed: list[Path]) -> dict[str, Any]:
    return {"changed": [str(path) for path in changed]}

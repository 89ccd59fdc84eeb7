# SPDX-License-Identifier: GPL-2.0-or-later
"""The drop-ins that make logind and systemctl hibernate use kjump.

Runs in the session, also in a chroot without a running systemd.  Touches only files with the names
of those in /usr/share/kjump/dropins.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump import atomic
from kjump.errors import BadRequest, Internal

SHIPPED = Path("usr/share/kjump/dropins")
SYSTEMD = Path("etc/systemd")
RESTART_LOGIND = (
    "logind reads its environment when it starts: reboot, or systemctl restart systemd-logind."
)


@dataclass(frozen=True)
class DropIn:
    """A shipped file and where it takes effect."""

    source: Path
    destination: Path


def destination(relative: Path) -> Path:
    """Where a shipped drop-in goes, below the root: those of units go into system/."""
    folder = relative.parts[0]
    is_unit = folder.removesuffix(".d").endswith((".service", ".target", ".socket"))
    return SYSTEMD / ("system" if is_unit else "") / relative


def shipped(root: Path) -> list[DropIn]:
    """All drop-ins below ``root``.  Raises `Internal` if none are installed."""
    folder = root / SHIPPED
    found = [
        DropIn(path, root / destination(path.relative_to(folder)))
        for path in sorted(folder.rglob("*.conf"))
    ]
    if not found:
        raise Internal(f"There are no drop-ins in {folder}.", advice="Install kjump again.")
    return found


def enable(root: Path) -> list[Path]:
    """Copy them; returns those that were missing or differed.  Raises `BadRequest`."""
    changed = []
    for drop_in in shipped(root):
        path = drop_in.destination
        wanted = drop_in.source.read_bytes()
        try:
            if path.is_file() and path.read_bytes() == wanted:
                continue
            atomic.make_folder(path.parent)
            atomic.write(path, wanted, mode=0o644)
        except PermissionError as error:
            raise BadRequest(f"{path} cannot be written.", advice="Do it as root.") from error
        changed.append(path)
    return changed


def disable(root: Path) -> list[Path]:
    """Remove them, and folders that are empty then; returns what was removed."""
    changed = []
    try:
        for drop_in in shipped(root):
            if not drop_in.destination.exists() and not drop_in.destination.is_symlink():
                continue
            drop_in.destination.unlink()
            changed.append(drop_in.destination)
            try:
                drop_in.destination.parent.rmdir()
            except OSError:
                pass  # it holds drop-ins of others, too
    except PermissionError as error:
        raise BadRequest(f"{error.filename} cannot be removed.", advice="Do it as root.") from error
    return changed


def offer_again(root: Path) -> None:
    """Let logind decide for itself again whether hibernation is possible."""
    from kjump.session.systemd import kernel_hibernation

    try:
        kernel_hibernation.offer(True, root / kernel_hibernation.OFFER.relative_to("/"))
    except OSError as error:
        raise BadRequest(f"{error.filename} cannot be removed.", advice="Do it as root.") from error


def are_enabled(root: Path) -> bool:
    """Whether all of them are in place."""
    return all(drop_in.destination.exists() for drop_in in shipped(root))


def systemd_runs(root: Path) -> bool:
    """Whether systemd runs (sd_booted(3)), and runs this root."""
    return root == Path("/") and os.path.isdir("/run/systemd/system")


def reload_systemd(root: Path, changed: Sequence[Path]) -> None:
    """Have a running systemd read its units again, if any drop-in changed."""
    if changed and systemd_runs(root):
        subprocess.run(["systemctl", "--system", "daemon-reload"], check=False)
        # A running kjumpd then decides again what logind offers.
        subprocess.run(
            ["systemctl", "--quiet", "try-reload-or-restart", "kjumpd.service"], check=False
        )

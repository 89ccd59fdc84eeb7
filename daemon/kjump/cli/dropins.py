# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl enable | disable``: the drop-ins that lead logind and systemctl hibernate to us.

Runs in the session, also in a chroot without a running systemd.  Touches only files of the names
that are shipped in /usr/share/kjump/dropins.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import BadRequest, Internal

SHIPPED = Path("usr/share/kjump/dropins")
SYSTEMD = Path("etc/systemd")


@dataclass(frozen=True)
class DropIn:
    """A shipped file and where it takes effect."""

    source: Path
    destination: Path


def destination(relative: Path) -> Path:
    """Where a shipped drop-in goes, below the root: units' into system/, others beside it."""
    folder = relative.parts[0]
    is_unit = folder.removesuffix(".d").endswith((".service", ".target", ".socket"))
    return SYSTEMD / ("system" if is_unit else "") / relative


def shipped(root: Path) -> list[DropIn]:
    """All drop-ins below ``root``.  Raises `Internal` where none are installed."""
    folder = root / SHIPPED
    found = [
        DropIn(path, root / destination(path.relative_to(folder)))
        for path in sorted(folder.rglob("*.conf"))
    ]
    if not found:
        raise Internal(f"There are no drop-ins in {folder}.", advice="Install kjump again.")
    return found


def enable(root: Path) -> list[Path]:
    """Copy them; returns those that were not there or differed.  Raises `BadRequest`."""
    changed = []
    try:
        for drop_in in shipped(root):
            wanted = drop_in.source.read_bytes()
            if drop_in.destination.is_file() and drop_in.destination.read_bytes() == wanted:
                continue
            drop_in.destination.parent.mkdir(parents=True, exist_ok=True)
            fresh = drop_in.destination.with_suffix(".new")
            shutil.copyfile(drop_in.source, fresh)
            fresh.chmod(0o644)
            fresh.replace(drop_in.destination)
            changed.append(drop_in.destination)
    except PermissionError as error:
        raise BadRequest(f"{error.filename} cannot be written.", advice="Do it as root.") from error
    return changed


def disable(root: Path) -> list[Path]:
    """Take them away, and folders that are empty then; returns what was there."""
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
                pass  # others have drop-ins there too
    except PermissionError as error:
        raise BadRequest(f"{error.filename} cannot be removed.", advice="Do it as root.") from error
    return changed


def offer_again(root: Path) -> None:
    """logind looks for itself again whether hibernation is possible."""
    from kjump.session.systemd import kernel_hibernation

    try:
        kernel_hibernation.offer(True, root / kernel_hibernation.OFFER.relative_to("/"))
    except OSError as error:
        raise BadRequest(f"{error.filename} cannot be removed.", advice="Do it as root.") from error


def are_enabled(root: Path) -> bool:
    """Whether all of them are in place."""
    return all(drop_in.destination.exists() for drop_in in shipped(root))


def systemd_runs(root: Path) -> bool:
    """Whether a systemd is there to be told (sd_booted(3)), and it is this root's."""
    return root == Path("/") and os.path.isdir("/run/systemd/system")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Fingerprints of file systems: has anybody mounted one since the session was saved?

Runs in the helper, which takes them when nothing writes any more, and in the boot kernel, which
compares them.  Only reads the devices, and never mounts one.  The first 72 KiB of a device hold the
superblocks of ext4 (at 1 KiB; mount count and times), vfat (dirty flag), btrfs (at 64 KiB;
generation) and xfs (counters only; its log lies elsewhere).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kjump.errors import KjumpError
from kjump.handoff.documents import FileSystem
from kjump.image.description import SavedFileSystem
from kjump.image.device import DirectDevice

SIZE = 72 << 10


def take(path: Path) -> str:
    """SHA-256, hexadecimal, of the start of the device.  Raises `KjumpError`, OSError."""
    with DirectDevice(path) as device:
        return hashlib.sha256(device.read(0, SIZE)).hexdigest()


def take_all(file_systems: Iterable[FileSystem]) -> tuple[SavedFileSystem, ...]:
    """Each file system with its fingerprint, which is None if the device is not there (a mapped
    device that only the session opens)."""
    out = []
    for system in file_systems:
        found = None
        for link in system.links:
            if os.path.exists(link):
                try:
                    found = take(Path(link))
                except (KjumpError, OSError):
                    continue
                break
        out.append(SavedFileSystem(system.type, system.links, found))
    return tuple(out)


def changed(saved: Sequence[SavedFileSystem]) -> list[str]:
    """Names of the file systems whose fingerprint has changed, or cannot be taken now."""
    out = []
    for before, now in zip(saved, take_all(saved), strict=True):
        if before.fingerprint and now.fingerprint != before.fingerprint:
            name = before.links[0] if before.links else "?"
            out.append(f"{name} ({before.type or '?'})")
    return out

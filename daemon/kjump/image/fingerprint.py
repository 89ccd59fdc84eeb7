# SPDX-License-Identifier: GPL-2.0-or-later
"""Fingerprints of file systems: has anybody mounted one since the session was saved?

Taken by the helper, when nothing writes any more, and compared by the boot side.  The first
72 KiB of a device hold the superblocks of ext4 (at 1 KiB; mount count and times), vfat (dirty
flag), btrfs (at 64 KiB; generation) and xfs (counters only; its log lies elsewhere).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kjump.errors import KjumpError
from kjump.image.device import DirectDevice

SIZE = 72 << 10


def take(path: Path) -> str:
    """SHA-256, hexadecimal, of the device's beginning.  Raises `KjumpError`, OSError."""
    with DirectDevice(path) as device:
        return hashlib.sha256(device.read(0, SIZE)).hexdigest()


def take_all(file_systems: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each file system's facts with its fingerprint; ``None`` where the device is not there
    (a mapped device that only the session opens)."""
    out = []
    for facts in file_systems:
        found = None
        for link in facts.get("links", ()):
            if os.path.exists(link):
                try:
                    found = take(Path(link))
                except (KjumpError, OSError):
                    continue
                break
        out.append({**facts, "fingerprint": found})
    return out


def changed(saved: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the file systems whose fingerprint is another one now, or cannot be taken."""
    out = []
    for before, now in zip(saved, take_all(saved), strict=True):
        if before.get("fingerprint") and now["fingerprint"] != before["fingerprint"]:
            links = before.get("links") or ["?"]
            out.append(f"{links[0]} ({before.get('type', '?')})")
    return out

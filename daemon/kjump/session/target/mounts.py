# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mounted, as /proc/self/mountinfo lists it.

Runs in the session; changes nothing.  Parsing is pure.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    number: str
    """``major:minor`` of the file system; of btrfs a number of its own, not its device's."""
    root: str
    """The directory of the file system that is mounted; "/" is all of it."""
    point: str
    options: tuple[str, ...]
    """Of the mount, e.g. "rw"."""
    kind: str
    """Type of the file system."""
    source: str
    """What is mounted, e.g. the path of a device."""


def unescape(text: str) -> str:
    r"""The name that the kernel wrote with ``\040`` for a blank and the like (mangle_path)."""
    plain = re.sub(
        rb"\\([0-7]{3})",
        lambda match: bytes([int(match[1], 8) & 0xFF]),
        text.encode("utf-8", "surrogateescape"),
    )
    return plain.decode("utf-8", "surrogateescape")


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts, in the kernel's order.  A line of another form is passed over."""
    out = []
    for line in text.splitlines():
        words = line.split(" ")
        try:
            end = words.index("-", 6)
            kind, source = words[end + 1], words[end + 2]
        except (ValueError, IndexError):
            continue
        number, root, point = words[2], unescape(words[3]), unescape(words[4])
        options = tuple(words[5].split(","))
        out.append(Mount(number, root, point, options, kind, unescape(source)))
    return out


def read_mounts() -> list[Mount]:
    """What is mounted now, in this process's namespace; empty if that cannot be read."""
    try:
        return parse_mountinfo(MOUNTINFO.read_text(errors="surrogateescape"))
    except OSError:
        return []


def device_number(path: str | Path) -> str:
    """``major:minor`` of a block device, or of the device that a file's file system is on; empty
    if there is no such path."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    number = status.st_rdev or status.st_dev
    return f"{os.major(number)}:{os.minor(number)}"

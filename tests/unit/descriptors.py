# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a test left open."""

from __future__ import annotations

import os
from pathlib import Path


def held(folder: Path, *, maps: bool = False) -> set[tuple[str, str]]:
    """Descriptors of this process for files in the folder, and with ``maps`` for maps of BPF; each
    with its name.

    Others may come and go: what tests before left behind is closed some time.
    """
    names = (str(folder), "anon_inode:bpf") if maps else str(folder)
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if name.startswith(names):
            found.add((number, name))
    return found

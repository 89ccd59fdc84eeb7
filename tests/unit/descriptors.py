# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a test left open."""

from __future__ import annotations

import os
from pathlib import Path


def held(folder: Path) -> set[tuple[str, str]]:
    """Descriptors of this process for files in the folder and for maps of BPF, with their names.

    Others may come and go: threads of tests before may still run.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if name.startswith((str(folder), "anon_inode:bpf")):
            found.add((number, name))
    return found

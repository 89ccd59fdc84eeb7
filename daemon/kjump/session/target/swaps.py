# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap areas in use, as /proc/swaps lists them.

Runs in the session; changes nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SWAPS = Path("/proc/swaps")


@dataclass(frozen=True)
class SwapArea:
    """A line of /proc/swaps.  Sizes in bytes."""

    path: Path
    is_file: bool
    size: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.size - self.used)


def parse_swaps(text: str) -> list[SwapArea]:
    """The swap areas in use, by the text of /proc/swaps."""
    out = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            name, kind, size, used = words[0], words[1], int(words[2]), int(words[3])
        except (IndexError, ValueError):
            continue
        # The kernel writes blanks and the like as octal numbers (mangle_path).
        name = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), name)
        path = Path(name.encode("latin-1", "replace").decode("utf-8", "replace"))
        out.append(SwapArea(path, kind == "file", size << 10, used << 10))
    return out


def read_swaps() -> list[SwapArea]:
    """The swap areas in use."""
    try:
        return parse_swaps(SWAPS.read_text(errors="replace"))
    except OSError:
        return []


def swap_numbers(text: str | None = None) -> set[str]:
    """``major:minor`` of the swap partitions in /proc/swaps."""
    numbers = set()
    for area in read_swaps() if text is None else parse_swaps(text):
        try:
            status = os.stat(area.path)
        except OSError:
            continue
        if status.st_rdev:
            numbers.add(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    return numbers

# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap areas in use, as /proc/swaps lists them.

Runs in the session; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kjump.session.target.mounts import device_number, unescape

SWAPS = Path("/proc/swaps")


@dataclass(frozen=True)
class SwapArea:
    """A line of /proc/swaps.  Sizes in bytes."""

    path: Path
    is_file: bool
    size: int
    used: int
    device: str = ""
    """``major:minor``: of a partition its own number, of a file that of its file system; empty: it
    is not known."""

    @property
    def free(self) -> int:
        return max(0, self.size - self.used)

    @property
    def in_memory(self) -> bool:
        """Whether it is compressed memory, so that nothing in it outlives the machine."""
        return str(self.path).startswith("/dev/zram")


def parse_swaps(text: str) -> list[SwapArea]:
    """The swap areas in use, by the text of /proc/swaps; without their devices."""
    out = []
    for line in text.splitlines()[1:]:
        words = line.split()
        try:
            name, kind, size, used = words[0], words[1], int(words[2]), int(words[3])
        except (IndexError, ValueError):
            continue
        out.append(SwapArea(Path(unescape(name)), kind == "file", size << 10, used << 10))
    return out


def read_swaps() -> list[SwapArea]:
    """The swap areas in use, with their devices; empty if that cannot be read."""
    try:
        text = SWAPS.read_text(errors="surrogateescape")
    except OSError:
        return []
    return [replace(area, device=device_number(area.path)) for area in parse_swaps(text)]


def swap_numbers() -> set[str]:
    """``major:minor`` of the swap partitions in use."""
    return {area.device for area in read_swaps() if not area.is_file and area.device}

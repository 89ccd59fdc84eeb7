"""Whether memory that is saved now can be put back beside the boot kernel.

Pure; asked in the session before the jump, and in the helper when the pages are counted.  The
kernel's /dev/snapshot takes one page of free memory for each page it is given, zero pages
included, so what the boot kernel itself uses cannot be in use in the session.
"""

from __future__ import annotations

from kjump.errors import TooMuchMemory
from kjump.machine.ranges import PAGE

BOOT_KERNEL = 176 << 20
"""Bytes the boot kernel, its initrd and the resuming program use, with what they leave free:
measured as MemTotal less MemAvailable at the start of a resume (``boot_memory`` in the report of
a cycle, ``kjumpctl history --json``), and half as much again."""
PER_PAGE = PAGE + 40
"""Bytes for each page: itself, its place in the lists, its bits in the maps."""


def room(ram: int) -> int:
    """Bytes of memory in use that a restore beside the boot kernel can bring back, out of
    ``ram`` bytes."""
    return max(0, ram - BOOT_KERNEL) * PAGE // PER_PAGE


def check(ram: int, used: int) -> None:
    """Raises `TooMuchMemory` if ``used`` bytes of ``ram`` cannot be brought back."""
    most = room(ram)
    if used > most:
        raise TooMuchMemory(
            f"{used >> 20} MiB of memory are in use, and of {ram >> 20} MiB a restore can bring"
            f" back {most >> 20} MiB."
        )

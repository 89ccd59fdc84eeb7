# SPDX-License-Identifier: GPL-2.0-or-later
"""Making room for the window: caches are reclaimed before anything is staged.

Runs in the session.  Staging allocates as much memory as the size of the window.  The kernel would
reclaim caches for that by itself, but page by page, and if there are too few it might kill a
program.  So kjump reclaims caches beforehand, no more than are needed, and reports the result.  It
never swaps anything out, and frees nothing but caches.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.machine.memory import read_meminfo
from kjump.machine.ranges import MIB, PAGE

STEP = 64 * MIB
"""Bytes to reclaim from a control group at a time, so that the work is spread over the groups."""
GROUPS = Path("/sys/fs/cgroup")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PAGE_CACHE, SLAB = "1", "2"
PRESSURE_LIMIT = 30
"""Seconds that `put_pressure` may take."""


@dataclass(frozen=True)
class Reclaimed:
    """The result of reclaiming, in bytes."""

    free_before: int
    free: int

    @property
    def got(self) -> int:
        return max(0, self.free - self.free_before)


def in_lists(zoneinfo: str) -> int:
    """Free memory in the processors' own lists of pages, in bytes.

    MemFree does not include it, and since "mm: PCP high auto-tuning" tens of MiB of memory that was
    just freed may stay in these lists for seconds.  An allocation takes pages from its own
    processor's list, and empties the others before it fails.
    """
    counts = (line.split() for line in zoneinfo.splitlines() if line.strip().startswith("count:"))
    return sum(int(words[1]) for words in counts) * PAGE


def free_memory(meminfo: Mapping[str, int], zoneinfo: str = "") -> int:
    """Bytes that can be allocated without reclaiming anything, from /proc/meminfo and
    /proc/zoneinfo."""
    return meminfo.get("MemFree", 0) + in_lists(zoneinfo)


def read_zoneinfo(path: Path = Path("/proc/zoneinfo")) -> str:
    """The text of /proc/zoneinfo; empty if we may not read it: then only MemFree counts."""
    try:
        return path.read_text()
    except OSError:
        return ""


def free_now() -> int:
    """The `free_memory` of this machine."""
    return ReclaimActions().free()


def can_swap(meminfo: Mapping[str, int]) -> bool:
    """Whether the kernel could swap if it ran short of memory."""
    return meminfo.get("SwapFree", 0) > 0


def shortfall(need: int, free: int) -> int:
    """How many bytes to reclaim, in whole MiB."""
    return max(0, -(-(need - free) // MIB) * MIB)


def control_groups(root: Path = GROUPS) -> list[Path]:
    """The control groups directly below the root that can reclaim on request ("memcg: introduce
    per-memcg reclaim interface")."""
    try:
        return sorted(root.glob("*/memory.reclaim"))
    except OSError:
        return []


def reclaim_from(group: Path, size: int) -> bool:
    """Reclaim ``size`` bytes of a group's caches; returns whether it had that many.

    swappiness=0 keeps anonymous memory from being swapped out.  A kernel that does not know this
    word yet ("mm: add swappiness= arg to memory.reclaim") refuses the whole request, which is
    right: without the word it might swap.
    """
    try:
        group.write_text(f"{size} swappiness=0")
    except OSError:
        return False
    return True


def drop_caches(what: str) -> None:
    """Drop all clean caches of a kind at once (Documentation/admin-guide/sysctl/vm.rst)."""
    DROP_CACHES.write_text(what)


def drop_file_cache(path: Path) -> None:
    """Drop a file's page cache, which would otherwise be saved with the session and loaded again.

    This is only a hint (posix_fadvise(2)) and never fails: dirty pages and pages that others have
    mapped stay.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def put_pressure(need: int) -> None:
    """Make the kernel reclaim page cache that processes have mapped, until ``need`` bytes are
    free."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [sys.executable, "-I", "-m", "kjump.session.staging.memory_pressure", str(need)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PRESSURE_LIMIT,
            check=False,
        )


@dataclass(frozen=True)
class ReclaimActions:
    """What reclaiming does to the machine; tests replace it."""

    meminfo: Callable[[], Mapping[str, int]] = read_meminfo
    zoneinfo: Callable[[], str] = read_zoneinfo
    groups: Callable[[], Sequence[Path]] = control_groups
    ask: Callable[[Path, int], bool] = reclaim_from
    drop: Callable[[str], None] = drop_caches
    press: Callable[[int], None] = put_pressure
    sync: Callable[[], None] = os.sync

    def free(self) -> int:
        """The free memory in bytes."""
        return free_memory(self.meminfo(), self.zoneinfo())


def free_up(need: int, means: ReclaimActions | None = None) -> Reclaimed:
    """Reclaim until ``need`` bytes are free, or there are no caches left.

    First from the control groups, a step from each in turn; then the whole page cache at once and,
    if that was not enough, the slab.  The cache that remains is mapped.  Groups reclaim mapped
    cache as well.  A kernel without groups (CONFIG_MEMCG), or one that does not know swappiness=,
    frees it only under pressure, which is applied if the kernel cannot swap instead.  Raises
    OSError if not even caches may be dropped.
    """
    do = means or ReclaimActions()
    before = free = do.free()
    if free >= need:
        return Reclaimed(before, free)
    do.sync()  # dirty pages cannot be reclaimed
    willing = list(do.groups())
    while willing and free < need:
        willing = [group for group in willing if do.ask(group, min(STEP, shortfall(need, free)))]
        free = do.free()
    for kind in (PAGE_CACHE, SLAB):
        if free < need:
            do.drop(kind)
            free = do.free()
    if free < need and not can_swap(do.meminfo()):
        do.press(need)
        free = do.free()
    return Reclaimed(before, free)


def figures(reclaimed: Reclaimed) -> Mapping[str, int]:
    """Figures for the report, in bytes."""
    return {"reclaimed": reclaimed.got, "free": reclaimed.free}

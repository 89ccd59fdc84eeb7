# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes memory and gives it back at once, so that the kernel reclaims page cache for it.

usage: python3 -m kjump.session.staging.memory_pressure BYTES

Runs in the session, as a program of its own that `reclaim` starts.  drop_caches keeps page cache
that processes have mapped; the kernel frees this only if an allocation needs the memory.  The
program ends when BYTES would be free, or when little page cache is left.  If the kernel runs out of
memory all the same, it kills this process, which marks itself as the first victim
(proc_pid_oom_score_adj(5)), and not a program of the user.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

from kjump.machine.memory import read_meminfo
from kjump.machine.ranges import MIB

STEP = 2 * MIB
LEAST = 8 * MIB
"""Page cache that is kept: running programs would need some of it again at once."""
POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE ("mm/madvise: introduce MADV_POPULATE_(READ|WRITE) to prefault page
tables"), which the mmap module does not name."""


def is_enough(now: dict[str, int], held: int, need: int) -> bool:
    """Whether to end: enough would be free, or hardly any page cache is left.  Values in bytes."""
    cache = now.get("Active(file)", 0) + now.get("Inactive(file)", 0)
    return now.get("MemFree", 0) + held >= need or cache < LEAST


def main(need: int) -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")
    memory = mmap.mmap(-1, need, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for held in range(0, need, STEP):
        if is_enough(read_meminfo(), held, need):
            break
        memory.madvise(POPULATE_WRITE, held, min(STEP, need - held))


if __name__ == "__main__":
    main(int(sys.argv[1]))

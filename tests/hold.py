# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest, as root: takes memory until so much of it is available, and keeps it.

usage: hold.py MIB
"""

from __future__ import annotations

import mmap
import sys
import time

from kjump.machine.memory import read_meminfo
from kjump.session.checks.facts import available_memory
from kjump.session.staging.memory_pressure import POPULATE_WRITE
from kjump.session.staging.reclaim import read_zoneinfo

MIB = 1 << 20


def main(left: int) -> None:
    held = []
    while available_memory(read_meminfo(), read_zoneinfo()) > left * MIB:
        held.append(mmap.mmap(-1, MIB // 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        held[-1].madvise(POPULATE_WRITE)
    print("held", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(int(sys.argv[1]))

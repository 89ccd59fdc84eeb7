# SPDX-License-Identifier: GPL-2.0-or-later
"""What the helper is made of and how much memory it costs.

Runs in the session.  It reads files and computes; it stages nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from kjump.errors import (
    NoHelperInitrd,
    NoHelperKernel,
)
from kjump.handoff import window_layout
from kjump.machine import bzimage, memory
from kjump.machine.ranges import MIB, PAGE, align_up
from kjump.session.staging import window as windows
from kjump.settings import Settings

MARGIN = 16 * MIB
"""Memory that must be left when everything is staged: bytes."""


UNPACKING = 16 * MIB
"""What the helper's kernel needs beside the initrd while it unpacks it."""


RUNNING = 40 * MIB
"""Page tables, drivers, systemd, udev, Python, and the writes under way."""


PROCESSOR = 6 * MIB
"""For each processor: the kernel's own, and buffers to compress in."""


PAGE_STATE = 4
"""For each page of the session: its state, and its share of the index."""


@dataclass(frozen=True)
class Sizing:
    """What the helper is made of and what it costs.  Sizes in bytes."""

    kernel: Path
    initrd: Path
    window_size: int
    available_needed: int
    parts: dict[str, int] = field(default_factory=dict)


def find_kernel(settings: Settings, release: str) -> Path:
    """The helper kernel: as configured, else the running kernel's own image."""
    names = (
        [settings.helper.kernel]
        if settings.helper.kernel
        else [
            f"/boot/vmlinuz-{release}",
            # A copy by build-helper-initrd: ProtectKernelModules= hides what follows.
            f"/var/lib/kjump/helper-{release}.vmlinuz",
            f"/usr/lib/modules/{release}/vmlinuz",
            f"/lib/modules/{release}/vmlinuz",
        ]
    )
    for name in names:
        if os.access(name, os.R_OK):
            return Path(name)
    raise NoHelperKernel(f"The helper kernel is missing: {' or '.join(names)}.")


def unpacked_size(initrd: Path) -> int:
    """Bytes the initrd takes unpacked: told beside it (``.json``), else four times its size."""
    try:
        facts = json.loads(initrd.with_suffix(".json").read_text())
        return int(facts["unpacked"])
    except (OSError, ValueError, KeyError, TypeError):
        return 4 * initrd.stat().st_size


def splash_size(initrd: Path) -> int:
    """Bytes that a splash screen takes while it runs, told beside the initrd; else it has none."""
    try:
        return int(json.loads(initrd.with_suffix(".json").read_text())["splash"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def window_parts(
    init_size: int,
    packed: int,
    unpacked: int,
    processors: int,
    memory_size: int,
    splash: int = 0,
) -> dict[str, int]:
    """What the window has to hold, in bytes: the helper's memory at its fullest.

    The packed initrd is free memory again once it is unpacked, before the programs in it run; so
    it counts only where it is larger than what those take.  ``memory_size``: the session's RAM.
    What is not computed was measured: see docs/window.md.
    """
    return {
        "handoff": memory.HEADROOM,
        "kernel": init_size,
        "unpacked": unpacked,
        "running": max(packed + UNPACKING, RUNNING),
        "processors": processors * PROCESSOR,
        "pages": memory_size // PAGE * PAGE_STATE,
        "splash": splash,
    }


def size_helper(settings: Settings, release: str) -> Sizing:
    """What staging will take.  Raises `NoHelperKernel`, `NoHelperInitrd`."""
    kernel = find_kernel(settings, release)
    with kernel.open("rb") as file:
        header = bzimage.parse(file.read(PAGE))
    initrd = settings.helper.initrd_of(release)
    if not os.access(initrd, os.R_OK):
        raise NoHelperInitrd(f"The helper initrd is missing: {initrd}.")
    packed = initrd.stat().st_size
    total = sum(end - start for start, end in memory.system_ram(memory.iomem()))
    parts = window_parts(
        header.init_size,
        packed,
        unpacked_size(initrd),
        cpu_count(settings),
        total,
        splash_size(initrd),
    )
    size = settings.helper.window_size or sum(parts.values())
    size = align_up(size, windows.ALIGNMENT)
    return Sizing(kernel, initrd, size, size + MARGIN, parts)


def cpu_count(settings: Settings) -> int:
    """Processors the helper is given: as configured, else all, four at the most.

    Each costs memory of the window, and four compress faster than most disks write.
    """
    return settings.helper.cpu_count or min(len(os.sched_getaffinity(0)), window_layout.CPUS)

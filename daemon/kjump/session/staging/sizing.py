# SPDX-License-Identifier: GPL-2.0-or-later
"""What the helper is made of and how much memory it costs.

Runs in the session.  It reads files and computes; it stages nothing.
"""

from __future__ import annotations

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
from kjump.session import kernels
from kjump.session.staging import helper_record
from kjump.session.staging import window as windows
from kjump.session.staging.helper_record import HelperRecord
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
    kernel_sha256: str = ""
    initrd_sha256: str = ""
    """As recorded when these files were made; empty: that was not recorded."""


def find_kernel(settings: Settings, release: str) -> Path:
    """The helper kernel: as configured, else the running kernel's own image."""
    names = (
        [settings.helper.kernel]
        if settings.helper.kernel
        else [
            f"/boot/vmlinuz-{release}",
            # ProtectKernelModules= hides what follows.
            str(kernel_copy(release)),
            f"/usr/lib/modules/{release}/vmlinuz",
            f"/lib/modules/{release}/vmlinuz",
        ]
    )
    for name in names:
        if os.access(name, os.R_OK):
            return Path(name)
    raise NoHelperKernel(f"The helper kernel is missing: {' or '.join(names)}.")


def kernel_copy(release: str) -> Path:
    """The copy that build-helper-initrd makes of a kernel that is not in /boot."""
    return kernels.STATE / kernels.COPY.format(release=release)


def recorded_kernel(kernel: Path, release: str) -> str:
    """SHA-256 of the helper kernel, if it is our copy; of any other kernel nothing is recorded.

    Raises `NoHelperInitrd` if the record is damaged.
    """
    return helper_record.read(kernel).kernel_sha256 if kernel == kernel_copy(release) else ""


def unpacked_size(record: HelperRecord, packed: int) -> int:
    """Bytes that the initrd takes unpacked: as recorded, else four times its size."""
    return record.unpacked or 4 * packed


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
    """What staging will take.

    Raises `NoHelperKernel`, `NoHelperInitrd`: also if a file is not what was written there.
    """
    kernel = find_kernel(settings, release)
    kernel_sha256 = recorded_kernel(kernel, release)
    helper_record.check(kernel, kernel_sha256, NoHelperKernel)
    with kernel.open("rb") as file:
        header = bzimage.parse(file.read(PAGE))
    initrd = settings.helper.initrd_of(release)
    if not os.access(initrd, os.R_OK):
        raise NoHelperInitrd(f"The helper initrd is missing: {initrd}.")
    record = helper_record.read(initrd)
    helper_record.check(initrd, record.sha256, NoHelperInitrd)
    packed = initrd.stat().st_size
    total = sum(end - start for start, end in memory.system_ram(memory.iomem()))
    parts = window_parts(
        header.init_size,
        packed,
        unpacked_size(record, packed),
        cpu_count(settings),
        total,
        record.splash,
    )
    size = settings.helper.window_size or sum(parts.values())
    size = align_up(size, windows.ALIGNMENT)
    return Sizing(kernel, initrd, size, size + MARGIN, parts, kernel_sha256, record.sha256)


def cpu_count(settings: Settings) -> int:
    """Processors the helper is given: as configured, else all, four at the most.

    Each costs memory of the window, and four compress faster than most disks write.
    """
    return settings.helper.cpu_count or min(len(os.sched_getaffinity(0)), window_layout.CPUS)

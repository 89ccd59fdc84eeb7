# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper's files, and how much memory it needs.

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
"""Bytes of memory that must remain free when everything is staged."""


UNPACKING = 16 * MIB
"""Bytes that the helper's kernel needs besides the initrd while it unpacks the initrd."""


RUNNING = 40 * MIB
"""Bytes for page tables, drivers, systemd, udev, Python, and the writes in flight."""


PROCESSOR = 6 * MIB
"""Bytes for each processor: the kernel's own data, and buffers for compressing."""


PAGE_STATE = 4
"""Bytes for each page of the session: its state, and its share of the index."""


@dataclass(frozen=True)
class Sizing:
    """The helper's files and the memory it needs.  Sizes in bytes."""

    kernel: Path
    initrd: Path
    window_size: int
    available_needed: int
    parts: dict[str, int] = field(default_factory=dict)
    kernel_sha256: str = ""
    initrd_sha256: str = ""
    """As recorded when these files were made; empty: not recorded."""


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
    """SHA-256 of the helper kernel, if it is our copy; there is no record of any other kernel.

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
    """What the window must hold, in bytes: the helper's memory at its peak.

    The packed initrd is freed once it is unpacked, before its programs run; so it counts only if it
    is larger than what these take.  ``memory_size``: the session's RAM.  The constants were
    measured: see docs/window.md.
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
    """What staging will need.

    Raises `NoHelperKernel`, `NoHelperInitrd`, also if a file's content is not what was written.
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
    """Processors that the helper gets: as configured, else all, but at most four.

    Each needs memory in the window, and four compress faster than most disks write.
    """
    return settings.helper.cpu_count or min(len(os.sched_getaffinity(0)), window_layout.CPUS)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the session writes into the handoff: the machine's facts and a cycle's.

Runs in the session.  It reads the machine and changes nothing.
"""

from __future__ import annotations

import gzip
import os
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from kjump import VERSION
from kjump.errors import (
    DamagedHandoff,
)
from kjump.handoff.documents import FileSystem, MachineFacts, SaveOrder, TargetPlace
from kjump.image.target import Target
from kjump.machine import elf, memory
from kjump.machine.identity import machine_identity
from kjump.machine.ranges import MIB, Range, whole_pages
from kjump.machine.structpage import START_KERNEL_MAP
from kjump.session.staging import window as windows
from kjump.session.staging.pinned_pages import ReportPage
from kjump.settings import Settings


def page_offset(path: Path = Path("/proc/kcore")) -> int:
    """Virtual address of physical 0 in the running kernel's direct map; KASLR moves it.

    /proc/kcore has both addresses of each range of RAM (fs/proc/kcore.c).  0: not known.
    """
    try:
        with path.open("rb") as file:
            found = elf.parse(file.read(4096 * 4))
    except (OSError, DamagedHandoff):
        return 0
    for segment in found:
        offset = segment.virtual - segment.physical
        # Kernel text has a physical address as well, the rest has none; the direct map begins on
        # 1 GiB, also under KASLR.
        if (
            segment.kind == elf.PT_LOAD
            and 0 < segment.physical < 1 << 52
            and segment.virtual < START_KERNEL_MAP
            and offset % (1 << 30) == 0
        ):
            return offset
    return 0


def free_pages_policy(cmdline: str, config: str) -> str:
    """``skip`` free pages, or record them as ``zero``: with init_on_free the kernel trusts free
    pages to hold zeros."""
    on = "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in config
    for word in cmdline.split():
        if word.startswith("init_on_free="):
            on = word.partition("=")[2].lower() in ("1", "on", "y", "yes", "true")
    return "zero" if on else "skip"


def kernel_config(release: str) -> str:
    """The running kernel's configuration, or the empty string if it is not known."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{release}").read_text()
    except OSError:
        return ""


def deadline(settings: Settings, ram: Iterable[Range]) -> int:
    """Seconds from the jump to the helper's giving up: as configured, else two minutes and what
    all of the memory takes at 10 MiB/s."""
    total = sum(end - start for start, end in ram)
    return settings.helper.deadline or 120 + total // (10 * MIB)


def file_systems() -> tuple[FileSystem, ...]:
    """The block devices that are mounted, by their stable links: the helper takes their
    fingerprints, and nobody resumes when one has changed."""
    seen: dict[str, FileSystem] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        kind, source = line.partition(" - ")[2].split()[:2]
        if not source.startswith("/dev/"):
            continue
        try:
            # Not the number in mountinfo: btrfs has one of its own there.
            device = os.stat(source).st_rdev
            number = f"{os.major(device)}:{os.minor(device)}"
            facts = Path("/run/udev/data", f"b{number}").read_text().splitlines()
        except OSError:
            continue
        if number in seen:
            continue
        links = [f"/dev/{x[2:]}" for x in facts if x.startswith("S:disk/by-")]
        links.sort(key=lambda x: ("by-partuuid" not in x, "by-id" not in x, x))
        seen[number] = FileSystem(kind, tuple(links))
    return tuple(x for x in seen.values() if x.links)


def machine_facts(window: windows.Window, page: ReportPage) -> MachineFacts:
    """The machine as it is now: what a helper that is already running must have been started
    with."""
    return MachineFacts(
        machine=machine_identity(),
        release=os.uname().release,
        levels=5 if memory.is_5_level() else 4,
        window=window.range,
        low=window.low,
        ram=tuple(whole_pages(memory.system_ram(memory.iomem()))),
        firmware_map=tuple(memory.firmware_map()),
        page_count=memory.page_count(),
        page_offset=page_offset(),
        report_page=page.physical,
        nonce=page.nonce,
    )


def save_order(
    settings: Settings, facts: MachineFacts, cycle_id: uuid.UUID, target: Target, mode: str = ""
) -> SaveOrder:
    """What the helper is to do in a cycle.  ``mode``: see `kjump.handoff.documents`."""
    cmdline = Path("/proc/cmdline").read_text()
    return SaveOrder(
        facts,
        cycle=cycle_id,
        target=TargetPlace(target.spec, target.names, target.size, target.locator),
        deadline=deadline(settings, facts.ram),
        watchdog=settings.helper.watchdog,
        level=settings.image.compression_level,
        compression=settings.image.compression,
        free_pages=free_pages_policy(cmdline, kernel_config(facts.release)),
        file_systems=file_systems(),
        kjump=VERSION,
        requested=time.time(),
        hostname=socket.gethostname(),
        mode=mode,
    )

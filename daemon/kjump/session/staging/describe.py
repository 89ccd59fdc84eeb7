# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of the handoff: facts about the machine and about a cycle.

Runs in the session.  It reads the machine and changes nothing.
"""

from __future__ import annotations

import gzip
import os
import socket
import time
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kjump import VERSION
from kjump.errors import (
    DamagedHandoff,
)
from kjump.handoff.documents import FileSystem, MachineFacts, SaveOrder, TargetPlace
from kjump.image.target import Target
from kjump.machine import cmdline, elf, memory
from kjump.machine.cmdline import CommandLine
from kjump.machine.identity import machine_identity
from kjump.machine.ranges import MIB, Range, whole_pages
from kjump.machine.structpage import START_KERNEL_MAP
from kjump.session.staging import window as windows
from kjump.session.staging.pinned_pages import ReportPage
from kjump.session.target import files
from kjump.session.target.mounts import device_number, read_mounts
from kjump.settings import Settings


def page_offset(path: Path = Path("/proc/kcore")) -> int:
    """Virtual address of physical 0 in the running kernel's direct map; KASLR moves it.

    /proc/kcore shows both addresses of each range of RAM (fs/proc/kcore.c).  0: unknown.
    """
    try:
        with path.open("rb") as file:
            found = elf.parse(file.read(4096 * 4))
    except (OSError, DamagedHandoff):
        return 0
    for segment in found:
        offset = segment.virtual - segment.physical
        # Kernel text has a physical address as well, the rest has none.  The direct map begins at a
        # multiple of 1 GiB, even with KASLR.
        if (
            segment.kind == elf.PT_LOAD
            and 0 < segment.physical < 1 << 52
            and segment.virtual < START_KERNEL_MAP
            and offset % (1 << 30) == 0
        ):
            return offset
    return 0


def free_pages_policy(words: CommandLine, config: str) -> str:
    """``skip`` free pages, or record them as ``zero``.  With init_on_free the kernel trusts free
    pages to hold zeros, and memory is corrupt if they do not.  So if in doubt, record them.

    ``config``: the kernel's configuration; empty: unknown.
    """
    default = not config or "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in config
    return "zero" if words.may_be_on("init_on_free", default=default) else "skip"


def kernel_config(release: str, root: Path = Path("/")) -> str:
    """The running kernel's configuration; empty if it cannot be read anywhere."""
    try:
        packed = (root / "proc/config.gz").read_bytes()
        if text := gzip.decompress(packed).decode(errors="replace"):
            return text
    except (OSError, EOFError, zlib.error):
        pass
    for name in (f"boot/config-{release}", f"usr/lib/modules/{release}/config"):
        try:
            return (root / name).read_text(errors="replace")
        except OSError:
            continue
    return ""


def deadline(settings: Settings, ram: Iterable[Range]) -> int:
    """Seconds after the jump at which the helper gives up: as configured, else two minutes plus the
    time for all of the memory at 10 MiB/s."""
    total = sum(end - start for start, end in ram)
    return settings.helper.deadline or 120 + total // (10 * MIB)


@dataclass(frozen=True)
class MountedFileSystem:
    """A block device that is mounted."""

    source: str
    """Path of the device, e.g. /dev/sda2."""
    kind: str
    """Type of the file system."""
    point: str
    """Where it is mounted; one of several places."""
    links: tuple[str, ...] = ()
    """Its stable names, best first; empty: udev gave it none."""
    mapped: str = ""
    """The kind of mapped device (`files.mapped_as`); empty: not mapped, the helper can open it."""


def mounted_file_systems() -> list[MountedFileSystem]:
    """The block devices that are mounted, each once."""
    seen: dict[str, MountedFileSystem] = {}
    for mount in read_mounts():
        number = device_number(mount.source) if mount.source.startswith("/dev/") else ""
        if not number or number in seen:
            continue
        try:
            facts = Path("/run/udev/data", f"b{number}").read_text().splitlines()
        except OSError:
            facts = []
        links = [f"/dev/{x[2:]}" for x in facts if x.startswith("S:disk/by-")]
        seen[number] = MountedFileSystem(
            mount.source,
            mount.kind,
            mount.point,
            tuple(sorted(links, key=lambda x: ("by-partuuid" not in x, "by-id" not in x, x))),
            files.mapped_as(number),
        )
    return [*seen.values()]


def file_systems() -> tuple[FileSystem, ...]:
    """The mounted file systems for the handoff: the helper takes their fingerprints, and the boot
    side refuses to resume if one has changed."""
    return tuple(FileSystem(x.kind, x.links) for x in mounted_file_systems() if x.links)


def machine_facts(window: windows.Window, page: ReportPage) -> MachineFacts:
    """The machine as it is now; a helper that is already running must have been started with the
    same facts."""
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
    """The helper's order for a cycle.  ``mode``: see `kjump.handoff.documents`."""
    return SaveOrder(
        facts,
        cycle=cycle_id,
        target=TargetPlace(target.spec, target.names, target.size, target.locator),
        deadline=deadline(settings, facts.ram),
        watchdog=settings.helper.watchdog,
        level=settings.image.compression_level,
        compression=settings.image.compression,
        free_pages=free_pages_policy(cmdline.read(), kernel_config(facts.release)),
        file_systems=file_systems(),
        kjump=VERSION,
        requested=time.time(),
        hostname=socket.gethostname(),
        mode=mode,
    )

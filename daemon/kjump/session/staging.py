# SPDX-License-Identifier: GPL-2.0-or-later
"""Staging the helper and jumping into it.

Runs in the session, in the daemon's worker.  Nothing here decides whether to hibernate; it takes
the plan, lays everything out, loads it with kexec and jumps.  See docs/kjump-handoff.5.md for what
lies where in the window.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump import VERSION
from kjump.errors import (
    DamagedHandoff,
    JumpFailed,
    NoHelperInitrd,
    NoHelperKernel,
    StagingFailed,
    TooLittleMemory,
)
from kjump.handoff import note
from kjump.handoff.cell import JUMP_BACK_OFFSET, Cell
from kjump.image.target import Target
from kjump.machine import bzimage, coreheader, memory, placing, syscalls
from kjump.machine.identity import machine_identity
from kjump.machine.ranges import PAGE, Range, align_down, align_up, subtract, whole_pages
from kjump.machine.structpage import START_KERNEL_MAP
from kjump.machine.syscalls import Segment
from kjump.session import reclaim
from kjump.session import window as windows
from kjump.session.log import logger
from kjump.session.reportpage import ReportPage
from kjump.settings import Settings

MIB = 1 << 20
log = logger()

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


def sizing(settings: Settings, release: str) -> Sizing:
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
    return settings.helper.cpu_count or min(len(os.sched_getaffinity(0)), placing.CPUS)


def command_line(settings: Settings, running: str, *, core_header: int, cell: int) -> str:
    """The helper's kernel command line.

    Consoles and paging mode are the session's: with other paging the jump back would be deadly.
    """
    return " ".join(
        [
            *placing.words(
                running,
                consoles=settings.helper.console.split(),
                cpus=cpu_count(settings),
            ),
            f"elfcorehdr={core_header:#x}",
            f"kjump.return={cell:#x}",
            *settings.helper.command_line.split(),
        ]
    )


def page_offset(path: Path = Path("/proc/kcore")) -> int:
    """Virtual address of physical 0 in the running kernel's direct map; KASLR moves it.

    /proc/kcore tells both addresses of each range of RAM (fs/proc/kcore.c).  0: not told.
    """
    try:
        with path.open("rb") as file:
            found = coreheader.parse(file.read(4096 * 4))
    except (OSError, DamagedHandoff):
        return 0
    for segment in found:
        offset = segment.virtual - segment.physical
        # Kernel text has a physical address as well, the rest has none; the direct map begins on
        # 1 GiB, also under KASLR.
        if (
            segment.kind == coreheader.PT_LOAD
            and 0 < segment.physical < 1 << 52
            and segment.virtual < START_KERNEL_MAP
            and offset % (1 << 30) == 0
        ):
            return offset
    return 0


def vmcoreinfo_note() -> tuple[int, int]:
    """(physical address, bytes) of the running kernel's VMCOREINFO note."""
    try:
        address, size = Path("/sys/kernel/vmcoreinfo").read_text().split()
        return int(address, 16), int(size, 16)
    except (OSError, ValueError) as error:
        raise StagingFailed("The kernel does not tell where VMCOREINFO lies.") from error


def free_pages_policy(cmdline: str, config: str) -> str:
    """``skip`` free pages, or record them as ``zero``: with init_on_free the kernel trusts free
    pages to hold zeros."""
    on = "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in config
    for word in cmdline.split():
        if word.startswith("init_on_free="):
            on = word.partition("=")[2].lower() in ("1", "on", "y", "yes", "true")
    return "zero" if on else "skip"


def kernel_config(release: str) -> str:
    """The running kernel's configuration, or the empty string where it is not told."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{release}").read_text()
    except OSError:
        return ""


def deadline(settings: Settings, ram: Sequence[Sequence[int]]) -> int:
    """Seconds from the jump to the helper's giving up: as configured, else two minutes and what
    all of the memory takes at 10 MiB/s."""
    total = sum(end - start for start, end in ram)
    return settings.helper.deadline or 120 + total // (10 * MIB)


def file_systems() -> list[dict[str, Any]]:
    """The block devices that are mounted, by their stable links: the helper takes their
    fingerprints, and nobody resumes when one has changed."""
    seen: dict[str, dict[str, Any]] = {}
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
        seen[number] = {
            "type": kind,
            "links": sorted(links, key=lambda x: ("by-partuuid" not in x, "by-id" not in x, x)),
        }
    return [x for x in seen.values() if x["links"]]


class Staged:
    """A staged helper.  `close` unloads it; use it as a context manager."""

    def __init__(self, window: windows.Window, page: ReportPage, document: dict[str, Any]) -> None:
        self.window = window
        self.document = document
        self._page = page
        self._loaded = True
        self.room: reclaim.Reclaimed | None = None
        """What was reclaimed to make room for it."""

    def describe(self) -> dict[str, Any]:
        """The window in bytes (physical), and what was reclaimed for it, for status and report."""
        figures = reclaim.figures(self.room) if self.room else {}
        return {"start": self.window.start, "size": self.window.size, **figures}

    def check(self) -> None:
        """Just before the jump: is the report page still where the handoff says?

        Raises `StagingFailed`.
        """
        if self._page.moved():
            raise StagingFailed("The report page was moved while staging.", advice="Try again.")
        if not syscalls.kexec_loaded():
            raise StagingFailed("Somebody unloaded the staged helper.", advice="Try again.")

    def jump(self) -> None:
        """Jump; returns when the session runs again, one way or the other.

        Raises `JumpFailed` where the kernel refused to leave.
        """
        try:
            syscalls.reboot_kexec()
        except OSError as error:
            raise JumpFailed(f"The kernel did not jump: {error.strerror}.") from error

    def report(self) -> dict[str, Any] | None:
        """What helper or boot side reported, or None."""
        return self._page.read()

    def close(self) -> None:
        """Unload.  After a jump the image is spent: a second jump into it would be deadly."""
        if self._loaded:
            syscalls.kexec_unload()
            self._loaded = False
            self._page.close()

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def machine_facts(window: windows.Window, page: ReportPage) -> dict[str, Any]:
    """What the helper is told of the machine: the part of the document that a helper which is
    already running must have been started with (`kjump.handoff.request.FIXED`)."""
    ram = whole_pages(memory.system_ram(memory.iomem()))
    return {
        "machine": machine_identity(),
        "release": os.uname().release,
        "levels": 5 if memory.is_5_level() else 4,
        "window": [window.start, window.end],
        "low": [list(r) for r in window.low],
        "ram": [list(r) for r in ram],
        "firmware_map": [[e.start, e.end, e.kind] for e in memory.firmware_map()],
        "page_count": memory.page_count(),
        "page_offset": page_offset(),
        "report_page": page.physical,
        "nonce": page.nonce.hex(),
    }


def cycle_facts(
    settings: Settings, facts: Mapping[str, Any], cycle_id: uuid.UUID, target: Target
) -> dict[str, Any]:
    """What the helper is told of the cycle.  ``facts`` are the machine's."""
    cmdline = Path("/proc/cmdline").read_text()
    return {
        "kjump": VERSION,
        "cycle": str(cycle_id),
        "requested": time.time(),
        "hostname": socket.gethostname(),
        "free_pages": free_pages_policy(cmdline, kernel_config(str(facts["release"]))),
        "target": {
            "spec": target.spec,
            "links": [str(x) for x in target.links] or [str(target.path)],
            "size": target.size,
            **({} if target.locator is None else {"locator": target.locator}),
        },
        "level": settings.image.compression_level,
        "compression": settings.image.compression,
        "deadline": deadline(settings, facts["ram"]),
        "watchdog": settings.helper.watchdog,
        "file_systems": file_systems(),
    }


def stage(
    settings: Settings, sizing: Sizing, *, cycle_id: uuid.UUID, target: Target, mode: str = ""
) -> Staged:
    """Choose the window, lay everything out, load it.  ``mode``: of the handoff; empty: save.

    Raises `TooLittleMemory`, `NoWindow`, `StagingFailed`, `NoHelperKernel`; nothing is loaded then.
    """
    room = make_room(sizing)
    page = ReportPage()
    try:
        window = choose_window(sizing, [page.range])
        document = machine_facts(window, page)
        document |= cycle_facts(settings, document, cycle_id, target)
        if mode:
            document["mode"] = mode
        load(settings, sizing, window, page, document)
        staged = Staged(window, page, document)
        staged.room = room
        return staged
    except BaseException:
        page.close()
        raise


def make_room(sizing: Sizing) -> reclaim.Reclaimed:
    """Give up caches until staging has room.  Raises `TooLittleMemory`."""
    room = reclaim.make_room(sizing.available_needed)
    if room.free < sizing.window_size:
        raise TooLittleMemory(
            f"Staging the helper needs {sizing.window_size >> 20} MiB of free memory, and with all"
            f" caches given up {room.free >> 20} MiB are free."
        )
    return room


def choose_window(sizing: Sizing, avoid: Sequence[Range]) -> windows.Window:
    """A window without the physical ranges ``avoid``.  Raises `NoWindow`, `StagingFailed`."""
    info = vmcoreinfo_note()
    free = reclaim.free_now()
    sample = align_down(min(sizing.window_size, max(0, free - MARGIN)))
    try:
        likely = windows.sample_allocations(sample) if sample else []
    except OSError as error:
        likely = []  # staging may take seconds longer without
        log.warning(f"where the kernel takes memory from was not found out: {error.strerror}")
    return windows.choose(
        sizing.window_size,
        memory.iomem(),
        windows.read_kpageflags,
        avoid=[*avoid, (info[0], info[0] + info[1])],
        likely=likely,
    )


def load(
    settings: Settings,
    sizing: Sizing,
    window: windows.Window,
    page: ReportPage,
    document: Mapping[str, Any],
    words: Sequence[str] = (),
) -> None:
    """Lay everything out in the window and give it to the kernel.

    ``document``: of the handoff note.  ``words``: more for the helper's command line.  Raises
    `StagingFailed`, `NoHelperKernel`; nothing is loaded then.
    """
    cmdline = Path("/proc/cmdline").read_text()
    info = vmcoreinfo_note()
    packed = damage(note.pack(document))
    headers = coreheader.build(
        [info, (window.start + placing.NOTE, len(packed))],
        subtract([(a, b) for a, b in document["ram"]], [window.range, *window.low]),
    )
    if len(headers) > placing.CORE_HEADER_ROOM:
        raise StagingFailed("The memory map is too long for the core header.")
    note_slot = placing.NOTE + note.descriptor_offset() + note.JUMP_BACK_OFFSET
    line = command_line(
        settings,
        cmdline,
        core_header=window.start + placing.CORE_HEADER,
        cell=window.start + placing.CELL,
    )
    entry, segments = placing.place(
        window.range,
        window.low,
        placing.map_file(sizing.kernel),
        placing.map_file(sizing.initrd),
        " ".join([line, *words]),
        note_slot=window.start + note_slot,
        cell_slot=window.start + placing.CELL + JUMP_BACK_OFFSET,
        contents={
            placing.CELL: Cell(page.physical, page.nonce, window.start, window.size).pack(),
            placing.CORE_HEADER: headers,
            placing.NOTE: packed,
        },
    )
    segments += [Segment(b"", start, end - start) for start, end in window.low]
    try:
        syscalls.kexec_load(entry, segments, preserve_context=True)
    except OSError as error:
        raise StagingFailed(f"The kernel refused the staged helper: {error.strerror}.") from error
    del segments  # pages that are mapped would stay
    for path in (sizing.kernel, sizing.initrd):
        reclaim.forget(path)


def damage(packed: bytes, kind: str = "damaged-handoff") -> bytes:
    """The note or request as it is, or damaged on purpose for tests (KJUMP_INJECT=KIND)."""
    if os.environ.get("KJUMP_INJECT") == kind:
        at = len(packed) - 8
        return packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
    return packed

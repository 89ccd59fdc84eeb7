# SPDX-License-Identifier: GPL-2.0-or-later
"""Staging the helper and jumping into it.

Runs in the session, in the daemon's worker.  It never decides whether to hibernate; it lays
everything out in the window, loads it with kexec and jumps.  See docs/kjump-handoff.5.md for what
lies where in the window.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from kjump.errors import (
    JumpFailed,
    NoHelperInitrd,
    NoHelperKernel,
    StagingFailed,
    TooLittleMemory,
)
from kjump.handoff import note, window_layout
from kjump.handoff.cell import JUMP_BACK_OFFSET, Cell
from kjump.handoff.documents import SaveOrder, WarmOrder
from kjump.handoff.report import Report
from kjump.image.target import Target
from kjump.machine import cmdline, elf, memory, syscalls
from kjump.machine.ranges import Range, align_down, subtract
from kjump.machine.syscalls import Segment
from kjump.session.log import logger
from kjump.session.staging import helper_record, reclaim
from kjump.session.staging import window as windows
from kjump.session.staging.describe import machine_facts, save_order
from kjump.session.staging.footprint import Footprint
from kjump.session.staging.pinned_pages import ReportPage
from kjump.session.staging.sizing import MARGIN, Sizing, cpu_count
from kjump.settings import Settings

log = logger()


def command_line(settings: Settings, running: str, *, core_header: int, cell: int) -> str:
    """The helper's kernel command line.

    Consoles and paging mode are the session's: with another paging mode the jump back would crash.
    """
    ours = {"elfcorehdr": core_header, cmdline.RETURN: cell}
    return " ".join(
        [
            *window_layout.words(
                running,
                consoles=settings.helper.console.split(),
                cpus=cpu_count(settings),
            ),
            *(f"{name}={value:#x}" for name, value in ours.items()),
            # The last of several words counts, and these are the way back.
            *(w for w in settings.helper.command_line.split() if w.partition("=")[0] not in ours),
        ]
    )


def vmcoreinfo_note() -> tuple[int, int]:
    """(physical address, bytes) of the running kernel's VMCOREINFO note."""
    try:
        address, size = Path("/sys/kernel/vmcoreinfo").read_text().split()
        return int(address, 16), int(size, 16)
    except (OSError, ValueError) as error:
        raise StagingFailed("The kernel does not show the address of VMCOREINFO.") from error


class Staged:
    """A staged helper.  `close` unloads it; use it as a context manager."""

    def __init__(self, window: windows.Window, page: ReportPage, footprint: Footprint) -> None:
        self.window = window
        self._footprint = footprint
        self._page = page
        self._loaded = True
        self.room: reclaim.Reclaimed | None = None
        """The memory that was reclaimed to make room for it."""

    def describe(self) -> dict[str, int]:
        """The window (physical bytes) and what was reclaimed for it, for status and report."""
        figures = reclaim.figures(self.room) if self.room else {}
        return {"start": self.window.start, "size": self.window.size, **figures}

    def check(self) -> None:
        """Just before the jump: check that the report page has not moved, and that the loaded image
        is still this helper.

        Raises `StagingFailed`.
        """
        if self._page.moved():
            raise StagingFailed("The report page moved while staging.", advice="Try again.")
        if not self.is_ours():
            raise StagingFailed(
                "Another program unloaded the staged helper, or loaded something else.",
                advice="Look for a hook or a service that uses kexec, then try again.",
            )

    def is_ours(self) -> bool:
        """Whether the loaded image is still this helper."""
        return syscalls.kexec_loaded() and self._footprint.is_there()

    def jump(self) -> None:
        """Jump; returns when the session runs again, after a jump back or a restore.

        Raises `JumpFailed` if the kernel refused.
        """
        try:
            syscalls.reboot_kexec()
        except OSError as error:
            raise JumpFailed(f"The kernel did not jump: {error.strerror}.") from error

    def report(self) -> Report | None:
        """The report of the helper or the boot side, or None."""
        return self._page.read()

    def close(self) -> None:
        """Unload, unless another program's image is loaded by now.

        After a jump the image is used up: a second jump into it would crash.
        """
        if self._loaded:
            if self.is_ours():
                syscalls.kexec_unload()
            self._loaded = False
            self._page.close()

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stage(
    settings: Settings, sizing: Sizing, *, cycle_id: uuid.UUID, target: Target, mode: str = ""
) -> Staged:
    """Choose the window, lay everything out, load it.  ``mode``: the handoff's; empty: save.

    Raises `TooLittleMemory`, `NoWindow`, `StagingFailed`, `NoHelperKernel`, `NoHelperInitrd`;
    nothing is loaded then.
    """
    room = make_room(sizing)
    page = ReportPage()
    try:
        window = choose_window(sizing, [page.range])
        order = save_order(settings, machine_facts(window, page), cycle_id, target, mode)
        staged = Staged(window, page, load(settings, sizing, window, page, order))
        staged.room = room
        return staged
    except BaseException:
        page.close()
        raise


def make_room(sizing: Sizing) -> reclaim.Reclaimed:
    """Reclaim caches until staging has room.  Raises `TooLittleMemory`."""
    room = reclaim.free_up(sizing.available_needed)
    if room.free < sizing.window_size:
        raise TooLittleMemory(
            f"Staging the helper needs {sizing.window_size >> 20} MiB of free memory, and only"
            f" {room.free >> 20} MiB are free with all caches dropped."
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
        likely = []  # without it staging may take seconds longer
        log.warning(f"cannot find out where the kernel allocates from: {error.strerror}")
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
    order: SaveOrder | WarmOrder,
    words: Sequence[str] = (),
) -> Footprint:
    """Lay everything out in the window and load it; returns the footprint that identifies it.

    ``order``: the content of the handoff note.  ``words``: further words for the helper's command
    line.  Raises `StagingFailed`, `NoHelperKernel`, `NoHelperInitrd`; nothing is loaded then.
    """
    info = vmcoreinfo_note()
    packed = damage(packed_note(order))
    headers = elf.build(
        [info, (window.start + window_layout.NOTE, len(packed))],
        subtract(order.facts.ram, [window.range, *window.low]),
    )
    if len(headers) > window_layout.CORE_HEADER_ROOM:
        raise StagingFailed("The memory map is too long for the core header.")
    note_slot = window_layout.NOTE + elf.descriptor_offset(note.OWNER) + note.JUMP_BACK_OFFSET
    line = command_line(
        settings,
        cmdline.read_text(),
        core_header=window.start + window_layout.CORE_HEADER,
        cell=window.start + window_layout.CELL,
    )
    cell = Cell(page.physical, page.nonce, window.start, window.size)
    try:
        entry, segments = window_layout.place(
            window.range,
            window.low,
            helper_record.map_file(sizing.kernel, sizing.kernel_sha256, NoHelperKernel),
            helper_record.map_file(sizing.initrd, sizing.initrd_sha256, NoHelperInitrd),
            " ".join([line, *words]),
            note_slot=window.start + note_slot,
            cell_slot=window.start + window_layout.CELL + JUMP_BACK_OFFSET,
            contents={
                window_layout.CELL: cell.pack(),
                window_layout.CORE_HEADER: headers,
                window_layout.NOTE: packed,
            },
        )
    except window_layout.WindowTooSmall as error:
        raise StagingFailed(str(error), advice="Raise [Helper] WindowSizeMiB=.") from error
    except window_layout.CommandLineTooLong as error:
        raise StagingFailed(str(error), advice="Shorten [Helper] CommandLine=.") from error
    segments += [Segment(b"", start, end - start) for start, end in window.low]
    footprint = Footprint(order.facts.ram)
    try:
        syscalls.kexec_load(entry, segments, preserve_context=True)
    except OSError as error:
        raise StagingFailed(f"The kernel refused the staged helper: {error.strerror}.") from error
    footprint.settle()
    del segments  # mapped pages would stay in the page cache
    for path in (sizing.kernel, sizing.initrd):
        reclaim.drop_file_cache(path)
    return footprint


def packed_note(order: SaveOrder | WarmOrder) -> bytes:
    """The handoff note.  Raises `StagingFailed` if it is too long."""
    try:
        return note.pack(order.to_json())
    except ValueError as error:
        raise StagingFailed(
            f"The handoff note has no room for everything that the helper must know: {error}.",
            advice="Unmount file systems that you do not need, then try again.",
        ) from error


def damage(packed: bytes, kind: str = "damaged-handoff") -> bytes:
    """The note or request, unchanged or damaged on purpose for tests (KJUMP_INJECT=KIND)."""
    if os.environ.get("KJUMP_INJECT") == kind:
        at = len(packed) - 8
        return packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
    return packed

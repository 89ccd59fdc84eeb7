# SPDX-License-Identifier: GPL-2.0-or-later
"""The warm helper: started ahead of time, and already running when it is needed.

Runs in the session.  `Warm` is such a staged helper; it checks whether the helper still fits the
machine, and writes a cycle's request for it.  Nothing here jumps by itself or decides to hibernate.

The helper examined the machine when it was started, and the session has gone on since.  Before use,
the facts that it relies on are compared (`Seen`); if they differ, a new helper is started.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import StagingFailed, StaleHelper
from kjump.handoff import documents, request
from kjump.handoff.documents import MachineFacts, WarmOrder
from kjump.handoff.report import Report
from kjump.image.target import Target
from kjump.machine import syscalls
from kjump.machine.ranges import PAGE
from kjump.session.staging import describe, load
from kjump.session.staging import window as windows
from kjump.session.staging.footprint import Footprint
from kjump.session.staging.load import Staged
from kjump.session.staging.pinned_pages import ReportPage, RequestPages
from kjump.session.staging.sizing import Sizing, cpu_count
from kjump.settings import Helper, Settings

UNSEEN = ("dm-", "loop", "ram", "zram")
"""Block devices that only the session has: the helper never sees them."""
PARKED = "clearcpuid=monitor"
"""Processors that the helper switches off must wait with HLT: with MWAIT they would watch memory
that is swapped out, wake up, and run whatever is there by then."""


# -- deciding ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """A block device as the helper found it: start and size in sectors, its stable links."""

    start: int
    size: int
    links: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """The facts that a helper relies on and that may change while the session runs."""

    made_of: tuple[object, ...]
    """The settings at its start, and the identity of its kernel's and initrd's files."""
    machine: MachineFacts
    processors: str
    """The present processors, from /sys/devices/system/cpu/present."""
    disks: Mapping[str, Disk]
    """By ``major:minor``."""


def difference(seen: Seen, now: Seen) -> str | None:
    """Why a helper that was started in the first state cannot be used in the second, or None.

    Only the disks in ``now`` count.
    """
    if seen.made_of != now.made_of:
        return "its kernel, its initrd or its settings have changed"
    names = documents.differing(seen.machine, now.machine)
    if names:
        return f"the machine changed: {', '.join(names)}"
    if seen.processors != now.processors:
        return "the processors of the machine changed"
    for number, disk in now.disks.items():
        if seen.disks.get(number) != disk:
            name = min(disk.links, default=number)
            return f"the disk {name} was replaced or repartitioned"
    return None


def needed(disks: Mapping[str, Disk], links: Iterable[str]) -> dict[str, Disk]:
    """The disks that one of the links names."""
    wanted = frozenset(links)
    return {number: disk for number, disk in disks.items() if disk.links & wanted}


# -- reading -------------------------------------------------------------------------------------


def disks(
    sys: Path = Path("/sys/class/block"), udev: Path = Path("/run/udev/data")
) -> dict[str, Disk]:
    """All block devices that a helper also sees."""
    found = {}
    for folder in sys.iterdir():
        if folder.name.startswith(UNSEEN):
            continue
        try:
            number = (folder / "dev").read_text().strip()
            start = folder / "start"
            lines = (udev / f"b{number}").read_text().splitlines()
            found[number] = Disk(
                int(start.read_text()) if start.exists() else 0,
                int((folder / "size").read_text()),
                frozenset(f"/dev/{line[2:]}" for line in lines if line.startswith("S:disk/by-")),
            )
        except (OSError, ValueError):
            continue  # it disappeared, or udev does not know it
    return found


def identity(path: Path) -> tuple[str, int, int, int]:
    """The file's identity: it changes if the file or its content is replaced."""
    facts = path.stat()
    return str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns


def made_of(helper: Helper, sizing: Sizing) -> tuple[object, ...]:
    """The settings and files with which the helper is started.  Raises OSError."""
    return helper, identity(sizing.kernel), identity(sizing.initrd)


def flags_of(window: windows.Window) -> bytearray:
    """/proc/kpageflags of the window's pages.  Raises OSError."""
    return windows.read_kpageflags(window.start // PAGE, window.size // PAGE)


def look(settings: Settings, sizing: Sizing, window: windows.Window, page: ReportPage) -> Seen:
    """What a helper started now would see.  Raises OSError."""
    return Seen(
        made_of(settings.helper, sizing),
        describe.machine_facts(window, page),
        Path("/sys/devices/system/cpu/present").read_text().strip(),
        disks(),
    )


# -- acting --------------------------------------------------------------------------------------


class Warm(Staged):
    """A helper that has booted and rests.  `close` unloads it and so frees its memory."""

    def __init__(
        self,
        window: windows.Window,
        page: ReportPage,
        pages: RequestPages,
        footprint: Footprint,
        seen: Seen,
        flags: bytes | bytearray,
    ) -> None:
        """``flags``: /proc/kpageflags of the window's pages, read just after staging."""
        super().__init__(window, page, footprint)
        self._pages = pages
        self._seen = seen
        self._flags = flags
        self._jump_back = 0

    def welcome(self, report: Report) -> None:
        """The helper rests now.  ``report``: its report when it came back."""
        self._jump_back = report.jump_back
        self._page.blank()

    def is_ours(self) -> bool:
        """Whether the loaded image is still this helper.

        Once the helper has come back, the session's jump-back address is known.  Its page belongs
        to the image and is reserved as long as the image is loaded (kernel/kexec_core.c,
        kimage_alloc_pages); loading another image frees it.
        """
        if not super().is_ours():
            return False
        if not self._jump_back:
            return True
        flags = int.from_bytes(windows.read_kpageflags(self._jump_back // PAGE, 1), "little")
        return bool(flags >> windows.KPF_RESERVED & 1)

    def misfit(self, settings: Settings, sizing: Sizing) -> StaleHelper | None:
        """Why this helper cannot be used, apart from its disks, or None.  Raises OSError."""
        now = look(settings, sizing, self.window, self._page)
        return self._stale(
            difference(self._seen, Seen(now.made_of, now.machine, now.processors, {}))
            or self._displaced()
        )

    def _displaced(self) -> str | None:
        """What has happened to the memory that it relies on, or None."""
        if self._page.moved() or self._pages.moved():
            return "its report or request pages were moved"
        if not self.is_ours():
            return "another program unloaded it"
        if windows.came_in(self._flags, flags_of(self.window)):
            return "the kernel now has memory of its own in the window"
        return None

    @staticmethod
    def _stale(why: str | None) -> StaleHelper | None:
        return StaleHelper(f"The warm helper can no longer be used: {why}.") if why else None

    def ask(
        self, settings: Settings, sizing: Sizing, *, cycle_id: uuid.UUID, target: Target
    ) -> None:
        """Write a cycle's request.  Raises `StaleHelper`; nothing is written then."""
        now = look(settings, sizing, self.window, self._page)
        order = describe.save_order(settings, now.machine, cycle_id, target)
        only = needed(now.disks, order.links)
        stale = self._stale(
            difference(self._seen, Seen(now.made_of, now.machine, now.processors, only))
            or self._displaced()
        )
        if stale is not None:
            raise stale
        try:
            data = load.damage(request.pack(order.to_json()), "damaged-request")
        except ValueError as error:
            raise StaleHelper(f"The request for the warm helper is too long: {error}.") from error
        self._page.blank()
        self._pages.write(data)

    def check(self) -> None:
        """Just before the jump: check that everything is still where the helper expects it.

        Raises `StaleHelper`.
        """
        stale = self._stale(self._displaced())
        if stale is not None:
            raise stale

    def close(self) -> None:
        """Unload, unless another program's image is loaded by now."""
        if self._loaded:
            super().close()
            self._pages.close()


def stage(settings: Settings, sizing: Sizing, target: Target) -> Warm:
    """Stage a helper to warm it up; the first jump into it boots it.

    Raises `TooLittleMemory`, `NoWindow`, `StagingFailed`, `NoHelperKernel`, `NoHelperInitrd`;
    nothing is loaded then.
    """
    room = load.make_room(sizing)
    page = ReportPage()
    try:
        pages = RequestPages(page.nonce)
        try:
            window = load.choose_window(sizing, [page.range, *pages.ranges])
            seen = look(settings, sizing, window, page)
            order = WarmOrder(seen.machine, pages.physical, target.names)
            words = [PARKED] if cpu_count(settings) > 1 else []
            footprint = load.load(settings, sizing, window, page, order, words)
            try:
                flags = flags_of(window)
            except OSError as error:
                syscalls.kexec_unload()
                raise StagingFailed(f"The window's page flags cannot be read: {error}.") from error
        except BaseException:
            pages.close()
            raise
    except BaseException:
        page.close()
        raise
    helper = Warm(window, page, pages, footprint, seen, flags)
    helper.room = room
    return helper

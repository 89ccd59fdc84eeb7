# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying the session's memory to the target, which is the helper's purpose.

Runs in the helper, as kjump-copy.service.  It ends in one of two ways: the machine is off and
the image complete, or the session runs again and knows why.  It writes the session's memory to the
target and nowhere else.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType

from kjump import VERSION
from kjump.console.lines import Progress, say
from kjump.errors import (
    DamagedHandoff,
    HelperDeadline,
    HelperFailed,
    ImageDamaged,
    ImageVersion,
    Internal,
    KjumpError,
    MemoryUnreadable,
    NoImage,
    StaleHelper,
    TargetMissing,
    WrongTarget,
)
from kjump.handoff import documents
from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.handoff.documents import SaveOrder, WarmOrder
from kjump.handoff.report import Report
from kjump.helper import leave, restore_in_place, warm
from kjump.helper.completion import Completion
from kjump.helper.screen import Screen
from kjump.helper.session_memory import gatherer, read_notes
from kjump.helper.states import States, classify
from kjump.helper.watch import Watch
from kjump.image import fingerprint, superblocks, target
from kjump.image.description import Description, SavedFileSystem
from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, EMPTY, Superblock
from kjump.image.write import SPAN_PAGES, Writer
from kjump.machine import cmdline, syscalls, vmcoreinfo
from kjump.machine.memory import own_memory, processors
from kjump.machine.ranges import PAGE
from kjump.machine.vmcore import Vmcore

DEVICE_WAIT = 30.0
"""Seconds to wait for the target's driver."""
WARM_UP = 60.0
"""Seconds for warming up once the note was read, and later for reading a request."""

BEFORE_WRITING = ("scan", "find target")
"""Phases in which nothing is written yet, except in the last moment of the second."""


class Clock:
    """Names the phases and measures them, in seconds of the helper's monotonic clock."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {"helper boot": round(time.monotonic(), 3)}
        self._name = ""
        self._since = self.begun = time.monotonic()

    def again(self) -> None:
        """The helper was entered a second time: the earlier phases do not belong to this cycle.

        The clock stands still while the session runs, so the time since the last phase began is
        the time for leaving and coming back.
        """
        now = time.monotonic()
        self.phases = {"helper resume": round(now - self._since, 3)}
        self._name, self._since, self.begun = "", now, now

    @property
    def name(self) -> str:
        """The current phase."""
        return self._name

    def phase(self, name: str) -> None:
        now = time.monotonic()
        if self._name:
            self.phases[self._name] = round(now - self._since, 3)
        self._name, self._since = name, now


def open_target(order: SaveOrder) -> DirectDevice:
    """Open the target, and no other device: it must have this cycle's id.

    Raises `TargetMissing`, `WrongTarget`.
    """
    path = find_target(order)
    if order.target.locator is None:
        device = DirectDevice(path, writable=True)
    else:
        try:
            device = target.open_image(path, order.target.locator, writable=True)
        except (NoImage, ImageDamaged, ImageVersion) as error:
            raise WrongTarget(f"{path} does not have this cycle's mark: {error.what}") from error
    try:
        superblock = superblocks.load(device)
    except OSError as error:
        raise WrongTarget(f"The target {path} cannot be read: {error.strerror}.") from error
    if superblock is None or superblock.cycle != order.cycle or superblock.state != EMPTY:
        raise WrongTarget(f"{path} does not have this cycle's mark.")
    return device


def find_target(order: SaveOrder) -> Path:
    """Wait for the target's device.  Raises `TargetMissing`."""
    return target.wait_for([Path(link) for link in order.target.links], DEVICE_WAIT)


def describe(
    order: SaveOrder,
    jump_back: int,
    info: Mapping[str, str],
    file_systems: tuple[SavedFileSystem, ...],
    watchdog: str,
) -> Description:
    """The image's description: what the boot side needs, and what a person may want to know.

    ``jump_back``: physical address at which the session continues; ``info``: VMCOREINFO.
    """
    return Description(
        facts=order.facts,
        jump_back=jump_back,
        cycle=str(order.cycle),
        hostname=order.hostname,
        kjump=VERSION,
        requested=order.requested,
        saved=time.time(),
        vmcoreinfo=vmcoreinfo.text(info),
        watchdog_device=watchdog,
        file_systems=file_systems,
    )


def page_states(core: Vmcore, info: Mapping[str, str], order: SaveOrder) -> States:
    """The states of the session's pages.  Raises `MemoryUnreadable`."""
    states = classify(core, info, order.facts.ram, order.hidden)
    if order.free_pages == "zero":
        states.free_is_zero()
    return states


def save(
    core: Vmcore,
    info: Mapping[str, str],
    order: SaveOrder,
    jump_back: int,
    clock: Clock,
    watch: Watch,
    completion: Completion,
) -> Report:
    """Write the image; the report.  Raises any `KjumpError`; see `Completion` for what then.

    ``info``: VMCOREINFO; ``jump_back``: physical address at which the session continues.
    """
    clock.phase("scan")
    states = page_states(core, info, order)
    before = states.counts()
    clock.phase("find target")
    with open_target(order) as device:
        writer = Writer(device, _prepared(device), level=order.level, compression=order.compression)
        found = fingerprint.take_all(order.file_systems)
        writer.begin(describe(order, jump_back, info, found, watch.watchdog))
        clock.phase("copy")
        say(
            f"saving {before['data'] * PAGE >> 20} MiB of {order.hostname}"
            f" to {device.path}; Esc or the power button: back to the session"
        )
        threads = processors()
        progress = Progress("saving", before["data"] * PAGE)

        def copied(pages: int) -> None:
            progress.add(pages * PAGE)
            watch.beat()

        writer.fill(
            states.spans(SPAN_PAGES),
            gatherer(core),
            processors=threads,
            progress=copied,
            expected=before["data"] * PAGE,
        )
        available = own_memory()
        after = states.counts()
        clock.phase("commit")
        report = Report(
            reports.HELPER,
            reports.OK,
            pages=after,
            map=states.coarse(),
            memory=available,
            processors=threads,
            codecs=writer.codecs,
            profile={step: round(seconds, 3) for step, seconds in writer.profile.items()},
        )
        watch.too_late()
        watch.beat()
        done = writer.commit(before=lambda: completion.begin(device, order.cycle, watch))
        watch.play_late()
        clock.phase("")
        saved = done.data_pages * PAGE
        report = replace(
            report,
            phases=dict(clock.phases),
            image={"size": done.end, "data": saved},
            rate=round(saved / max(clock.phases["copy"], 0.001)),
        )
        superblocks.store(device, done, outcome=report)
    return report


def _prepared(device: DirectDevice) -> Superblock:
    found = superblocks.load(device)
    if found is None:
        raise WrongTarget(f"{device.path} lost this cycle's mark.")
    return found


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise HelperDeadline("The helper ran out of time.")


def rehearse(core: Vmcore, info: Mapping[str, str], order: SaveOrder, clock: Clock) -> Report:
    """A dry run: every step of `save` that writes nothing.  Raises any `KjumpError`."""
    clock.phase("scan")
    states = page_states(core, info, order)
    clock.phase("find target")
    path = find_target(order)
    try:
        with DirectDevice(path) as device:
            device.read(0, BLOCK)
    except OSError as error:
        raise TargetMissing(f"The target {path} cannot be read: {error.strerror}.") from error
    say(f"a dry run: {states.counts()['data'] * PAGE >> 20} MiB would be saved to {path}")
    return reports.returned(states.counts(), states.coarse(), processors())


def run(cell: Cell, clock: Clock, watch: Watch, screen: Screen, completion: Completion) -> Report:
    """Save and power off.  Raises any `KjumpError`; returns only in a dry run, with its report."""
    clock.phase("handoff")
    signal.signal(signal.SIGALRM, _out_of_time)
    with Vmcore(hidden=((cell.window_start, cell.window_start + cell.window_size),)) as core:
        info, found = read_notes(core)
        order = documents.read(found.document)
        since = 0.0  # a deadline counts from the start of this kernel ...
        if isinstance(order, WarmOrder):
            signal.setitimer(signal.ITIMER_REAL, WARM_UP)
            clock.phase("warm-up")
            warm.prepare(order, DEVICE_WAIT)
            clock.phase("rest")
            signal.setitimer(signal.ITIMER_REAL, 0)
            warm.rest(cell, found.jump_back, clock.phases)
            clock.again()
            signal.setitimer(signal.ITIMER_REAL, WARM_UP)
            since = clock.begun  # ... or from when it was entered again
            clock.phase("handoff")
            order = warm.asked(cell, order)
        left = order.deadline + since - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
        if order.mode == documents.DRY_RUN:
            return rehearse(core, info, order, clock)
        screen.begin(cmdline.read_text())
        watch.begin(order.watchdog)
        try:
            report = save(core, info, order, found.jump_back, clock, watch, completion)
        except (MemoryUnreadable, TargetMissing, WrongTarget) as error:
            if not since or clock.name not in BEFORE_WRITING:
                raise
            # A new helper scans the machine again, and gets another window.
            raise StaleHelper(f"The warm helper cannot go on.  {error.what}") from error
    size = report.image["size"]
    say(f"saved: {size >> 20} MiB written in {clock.phases.get('copy', 0):.1f} s; switching off")
    screen.end()
    switch_off(watch)
    raise HelperFailed("The machine does not switch off.")


def switch_off(watch: Watch) -> None:
    """Returns, or raises `HelperFailed`, if the machine does not."""
    if watch.plays("stay"):
        return
    try:
        syscalls.power_off()
    except OSError as error:
        raise HelperFailed(f"The machine does not switch off: {error.strerror}.") from error


def main() -> int:
    """``kjump-copy``.  Returns only if not even the way back is known.

    The same initrd also restores in place, if the command line says so.
    """
    words = cmdline.read()
    if words.has(cmdline.RESTORE):
        return restore_in_place.main(cmdline.read_text())
    clock = Clock()
    watch = Watch(words.value(cmdline.INJECT) or "")
    screen = Screen()
    say("the helper is running")
    try:
        cell = leave.find_cell()
    except DamagedHandoff as error:
        say(error.sentence)
        return error.exit_code
    completion = Completion()
    report = attempt(cell, clock, watch, screen, completion)
    if completion.begun and not completion.take_back(report.cause):
        say("the image may be complete, so the session must not run on; restarting")
        syscalls.restart()
    watch.end()
    screen.end()
    clock.phase("")
    leave.write_report(cell, replace(report, phases=dict(clock.phases), memory=own_memory()))
    say("jumping back to the session")
    leave.jump_back(cell)
    return None


def attempt(
    cell: Cell, clock: Clock, watch: Watch, screen: Screen, completion: Completion
) -> Report:
    """`run`, and the report of what it came to."""
    try:
        try:
            return run(cell, clock, watch, screen, completion)
        finally:
            # From here on no signal may keep the helper from going back.
            signal.setitimer(signal.ITIMER_REAL, 0)
            watch.deafen()
    except KjumpError as error:
        say(f"not saved: {error.sentence}")
        return reports.failed(reports.HELPER, error)
    except Exception as error:  # noqa: BLE001 (whatever it is, the session gets the reason)
        say(f"not saved: {error!r}")
        return reports.failed(reports.HELPER, Internal(f"The helper failed: {error!r}."))

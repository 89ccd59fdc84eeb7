# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying the session's memory to the target: what the helper is there for.

Runs in the helper, as kjump-copy.service.  It ends in one of two ways: the machine is off and
the image complete, or the session runs again and knows why.  Nothing of the session's memory is
written anywhere but to the target.
"""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

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
    WrongHandoffVersion,
    WrongTarget,
)
from kjump.handoff import note
from kjump.handoff.cell import Cell
from kjump.helper import leave, restore_in_place, warm
from kjump.helper.screen import Screen
from kjump.helper.states import PageSpan, classify
from kjump.helper.watch import Watch
from kjump.image import fingerprint, superblocks, target
from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, EMPTY, Superblock
from kjump.image.write import COMPRESSIONS, SPAN_PAGES, Writer
from kjump.machine import pages, syscalls, vmcoreinfo
from kjump.machine.maps import Maps
from kjump.machine.memory import own_memory, processors
from kjump.machine.ranges import PAGE, Range
from kjump.machine.vmcore import Vmcore

Report = dict[str, Any]

DEVICE_WAIT = 30.0
"""Seconds to wait for the target's driver."""
WARM_UP = 60.0
"""Seconds that getting warm may take once the note was read, and reading a request later."""

BEFORE_WRITING = ("scan", "find target")
"""Phases in which nothing was written yet, but for the last moment of the second."""


class Clock:
    """Names the phases and takes their times, in seconds of the helper's monotonic clock."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {"helper boot": round(time.monotonic(), 3)}
        self._name = ""
        self._since = self.begun = time.monotonic()

    def again(self) -> None:
        """The helper was entered a second time: what was before is not this cycle's.

        The clock stands still while the session runs, so what has passed since the last phase
        began is leaving and coming back.
        """
        now = time.monotonic()
        self.phases = {"helper resume": round(now - self._since, 3)}
        self._name, self._since, self.begun = "", now, now

    @property
    def name(self) -> str:
        """The phase that runs."""
        return self._name

    def phase(self, name: str) -> None:
        now = time.monotonic()
        if self._name:
            self.phases[self._name] = round(now - self._since, 3)
        self._name, self._since = name, now


class Handoff:
    """What the session asked for, out of the note.  Raises `DamagedHandoff` for what lacks."""

    def __init__(self, found: note.Note) -> None:
        document = found.document
        try:
            self.jump_back = found.jump_back
            self.cycle = uuid.UUID(document["cycle"])
            self.window = _range(document["window"])
            self.low = [_range(r) for r in document["low"]]
            self.ram = [_range(r) for r in document["ram"]]
            self.links = [Path(str(x)) for x in document["target"]["links"]]
            locator = document["target"].get("locator")
            self.locator = None if locator is None else int(locator)
            self.level = int(document.get("level", 1))
            self.compression = str(document.get("compression", "auto"))
            if self.compression not in COMPRESSIONS:
                raise ValueError(f"compression {self.compression!r}")
            self.deadline = float(document["deadline"])
            self.watchdog = int(document.get("watchdog", 0))
            self.free_is_zero = document.get("free_pages") == "zero"
            self.file_systems = list(document.get("file_systems", ()))
            self.document: Mapping[str, Any] = document
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedHandoff(f"The handoff note lacks something: {error!r}.") from error


def _range(pair: Any) -> Range:
    start, end = (int(x) for x in pair)
    if not 0 <= start < end:
        raise ValueError(f"range {start:#x}-{end:#x}")
    return start, end


def read_notes(core: Vmcore) -> tuple[dict[str, str], note.Note]:
    """VMCOREINFO and the handoff note.  Raises `DamagedHandoff`, `WrongHandoffVersion`."""
    facts: dict[str, str] | None = None
    found: note.Note | None = None
    for owner, _kind, descriptor in core.notes():
        if owner == vmcoreinfo.OWNER and facts is None:
            facts = vmcoreinfo.parse(descriptor)
        elif owner == note.OWNER and found is None:
            found = note.unpack(descriptor)
    if facts is None:
        raise DamagedHandoff("There is no VMCOREINFO note in the core header.")
    if found is None:
        raise DamagedHandoff("There is no KJUMP note in the core header.")
    return facts, found


def open_target(handoff: Handoff) -> DirectDevice:
    """The target, and no other device: it bears this cycle's id.

    Raises `TargetMissing`, `WrongTarget`.
    """
    path = target.wait_for(handoff.links, DEVICE_WAIT)
    if handoff.locator is None:
        device = DirectDevice(path, writable=True)
    else:
        try:
            device = target.open_image(path, handoff.locator, writable=True)
        except (NoImage, ImageDamaged, ImageVersion) as error:
            raise WrongTarget(f"{path} does not bear this cycle's mark: {error.what}") from error
    try:
        superblock = superblocks.load(device)
    except OSError as error:
        raise WrongTarget(f"The target {path} cannot be read: {error.strerror}.") from error
    if superblock is None or superblock.cycle != handoff.cycle or superblock.state != EMPTY:
        raise WrongTarget(f"{path} does not bear this cycle's mark.")
    return device


def gatherer(core: Vmcore) -> Callable[[PageSpan, pages.Bundle], None]:
    """What brings a span's pages together out of the session's memory; for any thread."""
    maps = Maps(core.map, core.readable())

    def gather(span: PageSpan, bundle: pages.Bundle) -> None:
        """Raises `MemoryUnreadable`, `Internal`."""
        kinds, end = span.kinds.kinds, span.at + span.last - span.first
        wanted = sum(kinds.count(kind, span.at, end) for kind in (pages.SAVE, pages.ZERO))
        for pfn, count, part in maps.over(span.first, span.last):
            at = span.at + pfn - span.first
            looked = bundle.gather(part.view, part.at(pfn), count, span.kinds, at, pfn)
            if looked != count:
                raise Internal("A chunk has no room for its pages.")
        if bundle.used + bundle.zeros != wanted:
            raise MemoryUnreadable(
                f"Not all pages from {span.first * PAGE:#x} on are in the session's memory."
            )

    return gather


def describe(
    handoff: Handoff,
    facts: Mapping[str, str],
    file_systems: list[dict[str, Any]],
    watchdog: str,
) -> dict[str, Any]:
    """The image's description: what the boot side needs and a person wants to know."""
    keep = (
        "cycle",
        "hostname",
        "machine",
        "release",
        "levels",
        "window",
        "low",
        "ram",
        "firmware_map",
        "page_count",
        "page_offset",
        "report_page",
        "nonce",
        "requested",
    )
    return {
        **{key: handoff.document[key] for key in keep if key in handoff.document},
        "kjump": VERSION,
        "jump_back": handoff.jump_back,
        "file_systems": file_systems,
        "vmcoreinfo": vmcoreinfo.text(facts),
        "saved": time.time(),
        "watchdog": watchdog,
    }


def save(
    core: Vmcore, facts: Mapping[str, str], handoff: Handoff, clock: Clock, watch: Watch
) -> Report:
    """Write the image; the report.  Raises any `KjumpError`."""
    clock.phase("scan")
    states = classify(core, facts, handoff.ram, [handoff.window, *handoff.low])
    if handoff.free_is_zero:
        states.free_is_zero()
    before = states.counts()
    clock.phase("find target")
    with open_target(handoff) as device:
        writer = Writer(
            device, _prepared(device), level=handoff.level, compression=handoff.compression
        )
        found = fingerprint.take_all(handoff.file_systems)
        writer.begin(describe(handoff, facts, found, watch.watchdog))
        clock.phase("copy")
        say(
            f"saving {before['data'] * PAGE >> 20} MiB of {handoff.document.get('hostname')}"
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
        report: Report = {
            "by": "helper",
            "result": "ok",
            "phases": clock.phases,
            "pages": after,
            "map": states.coarse(),
            "memory": available,
            "processors": threads,
            "codecs": writer.codecs,
            "profile": {step: round(seconds, 3) for step, seconds in writer.profile.items()},
        }
        watch.too_late()
        watch.beat()
        done = writer.commit()
        clock.phase("")
        report["image"] = {"size": done.end, "data": done.data_pages * PAGE}
        report["rate"] = round(done.data_pages * PAGE / max(clock.phases["copy"], 0.001))
        superblocks.store(device, done, outcome=report)
    return report


def _prepared(device: DirectDevice) -> Superblock:
    found = superblocks.load(device)
    if found is None:
        raise WrongTarget(f"{device.path} lost this cycle's mark.")
    return found


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise HelperDeadline("The helper ran out of time.")


def rehearse(core: Vmcore, facts: Mapping[str, str], handoff: Handoff, clock: Clock) -> Report:
    """What a dry run does: all of `save` that writes nothing.  Raises any `KjumpError`."""
    clock.phase("scan")
    states = classify(core, facts, handoff.ram, [handoff.window, *handoff.low])
    if handoff.free_is_zero:
        states.free_is_zero()
    clock.phase("find target")
    path = target.wait_for(handoff.links, DEVICE_WAIT)
    try:
        with DirectDevice(path) as device:
            device.read(0, BLOCK)
    except OSError as error:
        raise TargetMissing(f"The target {path} cannot be read: {error.strerror}.") from error
    say(f"a dry run: {states.counts()['data'] * PAGE >> 20} MiB would be saved to {path}")
    return {"pages": states.counts(), "map": states.coarse(), "processors": processors()}


def run(cell: Cell, clock: Clock, watch: Watch, screen: Screen) -> Report:
    """Save and power off.  Raises any `KjumpError`; returns only in a dry run, with its figures."""
    clock.phase("handoff")
    signal.signal(signal.SIGALRM, _out_of_time)
    with Vmcore(hidden=((cell.window_start, cell.window_start + cell.window_size),)) as core:
        facts, found = read_notes(core)
        mode = found.document.get("mode")
        since = 0.0  # a deadline counts from the start of this kernel ...
        if mode == warm.MODE:
            signal.setitimer(signal.ITIMER_REAL, WARM_UP)
            clock.phase("warm-up")
            wanted = warm.prepare(found, DEVICE_WAIT)
            clock.phase("rest")
            signal.setitimer(signal.ITIMER_REAL, 0)
            warm.rest(cell, found, clock.phases)
            clock.again()
            signal.setitimer(signal.ITIMER_REAL, WARM_UP)
            since = clock.begun  # ... or from when it was entered again
            clock.phase("handoff")
            found = warm.asked(cell, found, wanted)
            mode = found.document.get("mode")
        handoff = Handoff(found)
        left = handoff.deadline + since - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
        if mode == note.DRY_RUN:
            return rehearse(core, facts, handoff, clock)
        if mode is not None:
            raise WrongHandoffVersion(f"The handoff asks for {mode!r}, which is not known here.")
        screen.begin(Path("/proc/cmdline").read_text())
        watch.begin(handoff.watchdog)
        try:
            report = save(core, facts, handoff, clock, watch)
        except (MemoryUnreadable, TargetMissing, WrongTarget) as error:
            if not since or clock.name not in BEFORE_WRITING:
                raise
            # Another helper looks for itself, and gets another window.
            raise StaleHelper(f"The warm helper cannot go on.  {error.what}") from error
    # The image is complete: nothing may take that back any more.
    signal.setitimer(signal.ITIMER_REAL, 0)
    size = report["image"]["size"]
    say(f"saved: {size >> 20} MiB written in {clock.phases.get('copy', 0):.1f} s; switching off")
    screen.end()
    syscalls.power_off()
    raise HelperFailed("The machine does not switch off.")


def main() -> int:
    """``kjump-copy``.  Returns only where not even the way back is known.

    The same initrd serves for restoring in place: the command line says so.
    """
    cmdline = Path("/proc/cmdline").read_text()
    if "kjump.restore" in restore_in_place.words_of(cmdline):
        return restore_in_place.main(cmdline)
    clock = Clock()
    watch = Watch(restore_in_place.words_of(cmdline).get("kjump.inject", ""))
    screen = Screen()
    say("the helper is running")
    try:
        cell = leave.find_cell()
    except DamagedHandoff as error:
        say(error.sentence)
        return error.exit_code
    report = attempt(cell, clock, watch, screen)
    watch.end()
    screen.end()
    clock.phase("")
    report.update(phases=clock.phases, memory=own_memory())
    leave.tell(cell, report)
    say("jumping back to the session")
    leave.jump_back(cell)
    return None


def attempt(cell: Cell, clock: Clock, watch: Watch, screen: Screen) -> Report:
    """`run`, and the report of what it came to."""
    try:
        try:
            found = run(cell, clock, watch, screen)
        finally:
            # What would be raised from here on must not keep the helper from going back.
            signal.setitimer(signal.ITIMER_REAL, 0)
            watch.deafen()
    except KjumpError as error:
        say(f"not saved: {error.sentence}")
        return leave.failure(error)
    except Exception as error:  # noqa: BLE001 (whatever it is, the session gets the reason)
        say(f"not saved: {error!r}")
        return leave.failure(Internal(f"The helper failed: {error!r}."))
    return {"by": "helper", "result": "returned", **found}

"""Copying the session's memory to the target: what the helper is there for.

Runs in the helper, as kjump-copy.service.  It ends in one of two ways: the machine is off and
the image complete, or the session runs again and knows why.  Nothing of the session's memory is
written anywhere but to the target.
"""

from __future__ import annotations

import mmap
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from kjump import VERSION
from kjump.errors import (
    DamagedHandoff,
    HelperDeadline,
    HelperFailed,
    ImageDamaged,
    ImageVersion,
    Internal,
    KjumpError,
    NoImage,
    WrongTarget,
)
from kjump.handoff import note
from kjump.handoff.cell import Cell
from kjump.helper import leave, putback
from kjump.helper.states import States, classify
from kjump.image import fingerprint, superblocks, target
from kjump.image.device import Device
from kjump.image.layout import CHUNK_PAGES, DATA, EMPTY, ZERO, Extent, Superblock
from kjump.image.write import Writer
from kjump.machine import pages, syscalls, vmcoreinfo
from kjump.machine.console import Progress, say
from kjump.machine.memory import own_memory
from kjump.machine.ranges import PAGE, Range
from kjump.machine.vmcore import Vmcore

MAP_BYTES = 64 << 20
"""How much of the session's memory is mapped at a time: page tables cost memory, too."""
DEVICE_WAIT = 30.0
"""Seconds to wait for the target's driver."""


class Clock:
    """Names the phases and takes their times, in seconds of the helper's monotonic clock."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {"helper boot": round(time.monotonic(), 3)}
        self._name = ""
        self._since = time.monotonic()

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
            self.deadline = float(document["deadline"])
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


def read_notes(core: Vmcore) -> tuple[dict[str, str], Handoff]:
    """VMCOREINFO and the handoff.  Raises `DamagedHandoff`, `WrongHandoffVersion`."""
    facts: dict[str, str] | None = None
    handoff: Handoff | None = None
    for owner, _kind, descriptor in core.notes():
        if owner == vmcoreinfo.OWNER and facts is None:
            facts = vmcoreinfo.parse(descriptor)
        elif owner == note.OWNER and handoff is None:
            handoff = Handoff(note.unpack(descriptor))
    if facts is None:
        raise DamagedHandoff("There is no VMCOREINFO note in the core header.")
    if handoff is None:
        raise DamagedHandoff("There is no KJUMP note in the core header.")
    return facts, handoff


def open_target(handoff: Handoff) -> Device:
    """The target, and no other device: it bears this cycle's id.

    Raises `TargetMissing`, `WrongTarget`.
    """
    path = target.wait_for(handoff.links, DEVICE_WAIT)
    if handoff.locator is None:
        device = Device(path, writable=True)
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


def copy_pages(core: Vmcore, states: States, writer: Writer, progress: Progress) -> list[Extent]:
    """Stream all pages to save, in ascending order; every extent of the image.

    Raises `TargetWriteFailed`, `TargetTooSmall`, `MemoryUnreadable`.
    """
    index: list[Extent] = []
    chunk: list[Extent] = []
    out = mmap.mmap(-1, CHUNK_PAGES * PAGE)
    filled = done = 0

    def emit() -> None:
        nonlocal filled
        if filled:
            with memoryview(out) as view, view[: filled * PAGE] as part:
                writer.chunk(chunk, part)
            chunk.clear()
            filled = 0

    for segment in core.memory:
        at, end = segment.physical, segment.physical + segment.size
        while at < end:
            size = min(end - at, MAP_BYTES)
            kinds, first = states.find(at // PAGE)
            view, offset = core.map(at, size)
            with view:
                looked_at, total = 0, size // PAGE
                while looked_at < total:
                    position = first + looked_at
                    looked, copied = pages.gather(
                        view,
                        offset + looked_at * PAGE,
                        total - looked_at,
                        kinds,
                        position,
                        out,
                        filled,
                    )
                    seen = kinds[position : position + looked]
                    for pfn, count, kind in pages.runs(seen, at // PAGE + looked_at):
                        if kind == pages.SAVE:
                            chunk.append(Extent(pfn, count, DATA))
                        if kind in (pages.SAVE, pages.ZERO):
                            index.append(Extent(pfn, count, DATA if kind == pages.SAVE else ZERO))
                    filled += copied
                    done += seen.count(pages.SAVE) + seen.count(pages.ZERO)
                    looked_at += looked
                    if looked_at < total or filled == CHUNK_PAGES:
                        emit()
                        progress.at(done * PAGE)
            at += size
    emit()
    return index


def describe(
    handoff: Handoff, facts: Mapping[str, str], file_systems: list[dict[str, Any]]
) -> dict[str, Any]:
    """The image's description: what the boot side needs and a person wants to know."""
    keep = (
        "cycle", "hostname", "machine", "release", "levels", "window", "low", "ram",
        "firmware_map", "page_count", "page_offset", "report_page", "nonce", "requested",
    )  # fmt: skip
    return {
        **{key: handoff.document[key] for key in keep if key in handoff.document},
        "kjump": VERSION,
        "jump_back": handoff.jump_back,
        "file_systems": file_systems,
        "vmcoreinfo": vmcoreinfo.text(facts),
        "saved": time.time(),
    }


def save(core: Vmcore, facts: Mapping[str, str], handoff: Handoff, clock: Clock) -> dict[str, Any]:
    """Write the image; the report.  Raises any `KjumpError`."""
    clock.phase("scan")
    states = classify(core, facts, handoff.ram, [handoff.window, *handoff.low])
    if handoff.free_is_zero:
        states.free_is_zero()
    before = states.counts()
    clock.phase("find target")
    with open_target(handoff) as device:
        writer = Writer(device, _prepared(device), level=handoff.level)
        writer.begin(describe(handoff, facts, fingerprint.take_all(handoff.file_systems)))
        clock.phase("copy")
        say(f"saving {before['data'] * PAGE >> 20} MiB of {handoff.document.get('hostname')}"
            f" to {device.path}")  # fmt: skip
        index = copy_pages(core, states, writer, Progress("saving", before["data"] * PAGE))
        available = own_memory()
        after = states.counts()
        clock.phase("commit")
        report: dict[str, Any] = {
            "by": "helper",
            "result": "ok",
            "phases": clock.phases,
            "pages": after,
            "memory": available,
        }
        done = writer.commit(index)
        clock.phase("")
        report["image"] = {"size": done.end, "data": done.data_pages * PAGE}
        superblocks.store(device, done, outcome=report)
    return report


def _prepared(device: Device) -> Superblock:
    found = superblocks.load(device)
    if found is None:
        raise WrongTarget(f"{device.path} lost this cycle's mark.")
    return found


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise HelperDeadline("The helper ran out of time.")


def run(cell: Cell, clock: Clock) -> None:
    """Save and power off.  Raises any `KjumpError`; returns only in a dry run."""
    clock.phase("handoff")
    with Vmcore(hidden=((cell.window_start, cell.window_start + cell.window_size),)) as core:
        facts, handoff = read_notes(core)
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, max(1.0, handoff.deadline - time.monotonic()))
        if handoff.document.get("mode") == "dry-run":
            return
        report = save(core, facts, handoff, clock)
    size = report["image"]["size"]
    say(f"saved: {size >> 20} MiB written in {clock.phases.get('copy', 0):.1f} s; switching off")
    syscalls.power_off()
    raise HelperFailed("The machine does not switch off.")


def main() -> int:
    """``kjump-copy``.  Returns only where not even the way back is known.

    The same initrd serves for restoring in place: the command line says so.
    """
    cmdline = Path("/proc/cmdline").read_text()
    if "kjump.restore" in putback.words_of(cmdline):
        return putback.main(cmdline)
    clock = Clock()
    say("the helper is running")
    try:
        cell = leave.find_cell()
    except DamagedHandoff as error:
        say(error.sentence)
        return error.exit_code
    try:
        run(cell, clock)
        report: dict[str, Any] = {"by": "helper", "result": "returned"}
    except KjumpError as error:
        say(f"not saved: {error.sentence}")
        report = leave.failure(error)
    except Exception as error:  # anything at all must end in the session, with its reason
        say(f"not saved: {error!r}")
        report = leave.failure(Internal(f"The helper failed: {error!r}."))
    signal.setitimer(signal.ITIMER_REAL, 0)
    clock.phase("")
    report.update(phases=clock.phases, memory=own_memory())
    leave.tell(cell, report)
    say("jumping back to the session")
    leave.jump_back(cell)
    return None

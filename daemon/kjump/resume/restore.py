# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking an image and putting the memory back.

Runs in the boot kernel.  `check` decides and is pure; `restore` acts, and does not return if it
succeeds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from kjump.console import prompt
from kjump.console.lines import Progress, say
from kjump.errors import (
    FileSystemChanged,
    ImageDamaged,
    MemoryMapChanged,
    OtherMachine,
    PagingModeDiffers,
    RestoreFailed,
    RestoreNoMemory,
)
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.image import fingerprint, skip, superblocks
from kjump.image.description import Description, Owner
from kjump.image.extents import Extents
from kjump.image.layout import COMPLETE, EXTENT, RESTORING
from kjump.image.read import Image
from kjump.machine import cmdline, code, memory
from kjump.machine.ranges import PAGE
from kjump.resume import load_restorer, snapshot

TRIES = 3
"""How often an unfinished resume is tried again: the power may have failed, and before the jump
that does no harm.  More tries would lock out a person whose machine hangs while resuming."""
ZEROS_SHARE = 4
"""The list of pages to clear may take this fraction (1/4) of the window; other pages of zeros are
loaded."""


@dataclass(frozen=True)
class Machine:
    """The facts of this boot, which an image must match."""

    identity: str
    firmware_map: list[memory.Entry]
    page_count: int
    levels: int


def check_owner(owner: Owner, machine: Machine) -> None:
    """Check this before the description: an image that is useless here may be valid elsewhere.

    Raises `OtherMachine`.
    """
    if owner.machine and owner.machine != machine.identity:
        raise OtherMachine(f"The image was saved on {owner.hostname or 'another machine'}.")


def check(description: Description, machine: Machine) -> None:
    """Raises `OtherMachine`, `MemoryMapChanged`, `PagingModeDiffers`."""
    facts = description.facts
    if facts.machine != machine.identity:
        raise OtherMachine(f"The image was saved on {description.hostname or 'another machine'}.")
    if list(facts.firmware_map) != machine.firmware_map:
        raise MemoryMapChanged("The firmware's memory map differs from that of the saved session.")
    if facts.page_count != machine.page_count:
        raise MemoryMapChanged(
            f"This boot has {machine.page_count} pages of memory,"
            f" the session had {facts.page_count}."
        )
    if facts.levels != machine.levels:
        raise PagingModeDiffers(
            f"The session used {facts.levels}-level page tables,"
            f" this boot {machine.levels}-level ones."
        )


def check_file_systems(description: Description) -> None:
    """Raises `FileSystemChanged`."""
    changed = fingerprint.changed(description.file_systems)
    if changed:
        raise FileSystemChanged(f"Changed since the session was saved: {', '.join(changed)}.")


def report_page(description: Description, outcome: Report) -> snapshot.Insert:
    """The page that the session will find: the helper's figures and those of this boot."""
    report = reports.restored(outcome, reports.SNAPSHOT, description.saved, {}, memory.own_memory())
    facts = description.facts
    return snapshot.Insert(facts.report_page // PAGE, reports.pack(facts.nonce, report))


def restore(
    image: Image,
    description: Description,
    chance: prompt.SkipPrompt,
    *,
    started: float,
) -> None:
    """Load the image and jump.  Does not return if it succeeds.

    ``started``: monotonic time when this program began, which is also the seconds that the boot
    took until then.  Raises any `KjumpError` of the image and of the restore, and `ResumeSkipped`;
    the running system has not changed then.
    """
    index = image.index()
    description.check_pages(index)
    phases = {"boot kernel": round(started, 3), "check": round(time.monotonic() - started, 3)}
    begin(image, phases)
    skippable = skip.ResumeAttempt(image, chance)
    restorer = image.superblock.kernel_length > 0
    plan, tables = beside(index, description, image.superblock.outcome)
    way = load_restorer.choose(
        cmdline.read(),
        pages=plan.pages,
        available=memory.own_memory()["available"],
        restorer=restorer,
    )
    if way == reports.SNAPSHOT:
        try:
            _load(image, index, plan, tables, description, skippable)
        except RestoreNoMemory:
            if not restorer:
                raise
            if image.superblock.state != COMPLETE:  # the kernel has not jumped
                image.superblock = superblocks.store(image.device, image.superblock, state=COMPLETE)
    say("restoring in place: the image does not fit beside the boot kernel")
    # Do not wait here: the restorer reads the key, too, and nothing is lost until it jumps.
    skippable.look()
    load_restorer.load(image, description, cmdline.read_text(), chance.wait)
    load_restorer.jump()


def begin(image: Image, phases: dict[str, float]) -> None:
    """Record on the target that a resume begins, and the times up to here.

    Until the jump the image stays complete: if the power fails, the next boot begins again.
    Raises `RestoreFailed` after too many tries.
    """
    outcome = image.superblock.outcome
    tries = outcome.tries
    if tries >= TRIES:
        raise RestoreFailed(f"Resuming was begun {tries} times and never finished.")
    outcome = replace(outcome, tries=tries + 1, phases={**outcome.phases, **phases})
    image.superblock = superblocks.store(image.device, image.superblock, outcome=outcome)


def beside(index: Extents, description: Description, outcome: Report) -> tuple[snapshot.Plan, int]:
    """What to load beside the boot kernel, and the physical address of the page tables for the
    jump.

    Pages of zeros are not loaded, because the boot kernel may have no room for them: the code that
    jumps clears them, when nobody needs the boot kernel's memory any more.  Raises `RestoreFailed`.
    """
    page = report_page(description, outcome)
    start, end = description.facts.window
    most = (end - start) // ZEROS_SHARE // EXTENT.size
    zeros, rest = index.replaced(page.pfn, 1, None).split(most)
    jump = code.jump_pages(
        start,
        description.jump_back,
        levels=description.facts.levels,
        gigabyte_pages=memory.has_gigabyte_pages(),
        zeros=zeros.table,
        memory=[(a * PAGE, b * PAGE) for a, b in description.pieces] if zeros else (),
    )
    if len(jump.data) > end - start:  # after the window comes the session's memory
        raise RestoreFailed("The window has no room for the code that jumps into the session.")
    return snapshot.plan(rest, [page, snapshot.Insert(start // PAGE, jump.data)]), jump.tables


def _load(
    image: Image,
    index: Extents,
    plan: snapshot.Plan,
    tables: int,
    description: Description,
    skippable: skip.ResumeAttempt,
) -> None:
    """Load through /dev/snapshot and jump.  Raises any `KjumpError`."""
    numbers = plan.numbers()
    meta = memoryview(numbers).cast("B")
    head = snapshot.header(
        jump=description.facts.window[0],
        tables=tables,
        map_checksum=memory.map_checksum(memory.firmware_map()),
        page_count=memory.page_count(),
        data_pages=plan.pages,
        meta_pages=len(meta) // PAGE,
    )
    progress = Progress(f"resuming {description.hostname}:", plan.pages * PAGE)
    with snapshot.Snapshot() as device:
        try:
            device.write_page(head)
            for at in range(0, len(meta), PAGE):
                device.write_page(meta[at : at + PAGE])
        except OSError as error:
            raise RestoreFailed(
                f"The kernel did not accept the image's header: {error.strerror}."
            ) from error
        done = 0
        chunks = image.chunks(index, processors=memory.processors())
        for buffer, offset, length in snapshot.stream(chunks, plan):
            device.write_pages(buffer, offset, length)
            done += length
            progress.at(done)
            skippable.look()
        if done != plan.pages * PAGE:
            raise ImageDamaged("The number of pages in the image does not match its index.")
        skippable.last_look()
        with skippable.console():
            # From here on nobody may use this image again, because the session may have run.
            image.superblock = superblocks.store(image.device, image.superblock, state=RESTORING)
            device.restore()

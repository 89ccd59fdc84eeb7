# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking an image and putting the memory back.

Runs in the boot kernel.  Deciding is pure (`check`); acting is `restore`, which does not return
when it works.
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
"""How often a resume is begun whose end nobody saw: the power may have gone, and no harm is done
before the jump.  More would lock a person out whose machine hangs in it."""
ZEROS_SHARE = 4
"""The part of the window that the list of pages to clear may take; what is not in it is loaded."""


@dataclass(frozen=True)
class Machine:
    """This boot: what an image must match."""

    identity: str
    firmware_map: list[memory.Entry]
    page_count: int
    levels: int


def check_owner(owner: Owner, machine: Machine) -> None:
    """Before the description is judged: an image that is of no use here may be of use there.

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
        raise MemoryMapChanged("The firmware's memory map is not the one of the saved session.")
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
    """The page the session will find: the helper's figures and those of this boot."""
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
    """Load the image and jump.  Does not return when it works.

    ``started``: monotonic time when this program began, so also the seconds that the boot took up
    to there.  Raises any `KjumpError` of the image and of the restore, and `ResumeSkipped`; nothing
    of the running system is touched then.
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
    # No wait here: the restorer hears the key, too, and nothing is lost until it jumps.
    skippable.look()
    load_restorer.load(image, description, cmdline.read_text(), chance.wait)
    load_restorer.jump()


def begin(image: Image, phases: dict[str, float]) -> None:
    """Note on the target that a resume begins, and what it took up to here.

    Until the jump the image stays complete: if the power goes, the next boot begins again.
    Raises `RestoreFailed` if that did not help so far.
    """
    outcome = image.superblock.outcome
    tries = outcome.tries
    if tries >= TRIES:
        raise RestoreFailed(f"Resuming was begun {tries} times and did not come to its end.")
    outcome = replace(outcome, tries=tries + 1, phases={**outcome.phases, **phases})
    image.superblock = superblocks.store(image.device, image.superblock, outcome=outcome)


def beside(index: Extents, description: Description, outcome: Report) -> tuple[snapshot.Plan, int]:
    """What is loaded beside the boot kernel, and the physical address of the tables to jump with.

    Pages of zeros are not loaded: the code that jumps clears them, when nobody needs the memory any
    more that they would have taken here.  Raises `RestoreFailed`.
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
    if len(jump.data) > end - start:  # behind the window lies the session
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
                f"The kernel does not take the image's head: {error.strerror}."
            ) from error
        done = 0
        chunks = image.chunks(index, processors=memory.processors())
        for buffer, offset, length in snapshot.stream(chunks, plan):
            device.write_pages(buffer, offset, length)
            done += length
            progress.at(done)
            skippable.look()
        if done != plan.pages * PAGE:
            raise ImageDamaged("The image holds another number of pages than its index says.")
        skippable.last_look()
        with skippable.console():
            # From here on nobody uses this image again: the session may have run.
            image.superblock = superblocks.store(image.device, image.superblock, state=RESTORING)
            device.restore()

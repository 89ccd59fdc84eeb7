# SPDX-License-Identifier: GPL-2.0-or-later
"""Restoring in place: every page of the image back where it belongs, then the jump.

Runs in the helper's kernel and initrd, which the boot kernel loaded into the image's own window
(`kjump.resume.load_restorer`).  Nobody needs the memory that it overwrites.  If it fails, or a
person gives the session up, it records the reason in the image and restarts the machine: there is
no system left to return to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from kjump.console.keys import Keys
from kjump.console.lines import Progress, say
from kjump.console.prompt import SkipPrompt
from kjump.errors import Internal, KjumpError, RestoreFailed, WrongTarget
from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.helper import leave
from kjump.helper.screen import Screen
from kjump.image import superblocks, target
from kjump.image.extents import Extents
from kjump.image.layout import COMPLETE, RESTORING, Extent
from kjump.image.read import Chunk, Image
from kjump.image.skip import ResumeAttempt
from kjump.machine import cmdline, memory, pages, syscalls
from kjump.machine.cmdline import CommandLine
from kjump.machine.maps import Maps
from kjump.machine.ranges import PAGE, Range

DEVICE_WAIT = 30.0


class PageWriter:
    """Writes pages to physical memory; for any number of threads."""

    def __init__(self, physical: memory.PhysicalMemory, ranges: Sequence[Range]) -> None:
        """``ranges``: what may be written, in pfns; nothing else is mapped."""
        self._maps = Maps(physical.map, ranges)

    def write(self, extents: Extents, data: memoryview | bytes | None) -> None:
        """Write the pages of ``extents``, which lie one after the other in ``data``; None: zeros.

        Raises `RestoreFailed`.
        """
        scatter = pages.Scatter(extents.table, len(extents), data)
        while True:
            number, inside = scatter.at
            if number == len(extents):
                return
            pfn = extents[number].pfn + inside
            try:
                part = self._maps.part(pfn)
            except OSError as error:
                raise RestoreFailed(
                    f"Memory at {pfn * PAGE:#x} cannot be written: {error.strerror}."
                ) from error
            if part is None:
                raise RestoreFailed(f"The image must not restore page {pfn:#x}.")
            scatter.into(part.view, part.offset, part.first, part.last)

    def close(self) -> None:
        self._maps.close()


class _Asked(Exception):
    """A key was pressed: ask the person."""


def unless_asked(chance: SkipPrompt, write: Callable[[Chunk], None]) -> Callable[[Chunk], None]:
    """A ``write`` that first raises `_Asked` if a key was pressed; for any number of threads."""
    hearing = threading.Lock()

    def listening(chunk: Chunk) -> None:
        if hearing.acquire(blocking=False):
            try:
                if chance.asked():
                    raise _Asked
            finally:
                hearing.release()
        write(chunk)

    return listening


def put_back(image: Image, started: float, chance: SkipPrompt) -> Cell:
    """Write all pages and the report; returns where to jump.  Raises any `KjumpError`, and
    `ResumeSkipped` if a person chooses to boot without the session.  Does not return if the person
    switches off."""
    description = image.description()
    extents = image.index()
    description.check_pages(extents)
    skippable = ResumeAttempt(image, chance)
    title = f"resuming {description.hostname} in place:"
    phases = {"restorer boot": round(started, 3)}
    facts = description.facts
    with memory.PhysicalMemory(writable=True) as physical:
        places = PageWriter(physical, description.pieces)
        while True:
            # Pages of zeros are not counted: clearing them takes no time.
            progress = Progress(title, image.superblock.data_pages * PAGE)

            def write(chunk: Chunk, progress: Progress = progress) -> None:
                places.write(chunk.extents, chunk.data)
                progress.add(chunk.pages * PAGE)

            begun = time.monotonic()
            try:
                image.each(extents, unless_asked(chance, write), processors=memory.processors())
                break
            except _Asked:
                skippable.ask()  # if the answer is to resume, begin again: that does no harm
        places.write(extents.zeros, None)
        phases["put back"] = round(time.monotonic() - begun, 3)
        skippable.last_look()
        page = Extents.of([Extent(facts.report_page // PAGE, 1)])
        outcome = image.superblock.outcome
        report = reports.restored(outcome, reports.IN_PLACE, description.saved, phases)
        places.write(page, reports.pack(facts.nonce, report))
        places.close()
    # From here on nobody may use this image again, because the session may have run.
    image.superblock = superblocks.store(image.device, image.superblock, state=RESTORING)
    start, end = facts.window
    return Cell(0, bytes(16), start, end - start, description.jump_back)


def main(running: str) -> int:
    """The restorer.  Does not return when it works; restarts the machine when it does not.

    ``running``: this kernel's command line.
    """
    started = time.monotonic()
    words = cmdline.parse(running)
    screen = Screen()
    screen.begin(running)
    try:
        paths, locator = target.parse_location(words.value(cmdline.TARGET) or "")
        path = target.wait_for(paths, DEVICE_WAIT)
        with target.open_image(path, locator, writable=True) as device:
            image = Image(device)
            s = image.superblock
            if s.state != COMPLETE or str(s.cycle) != words.value(cmdline.RESTORE):
                raise WrongTarget(f"{path} does not hold the image that is being restored.")
            keys = Keys(earlier=True)  # also keys that were pressed while this kernel booted
            try:
                say("resuming in place; Esc: boot without the saved session")
                cell = put_back(image, started, SkipPrompt(keys, _seconds(words), screen))
            except KjumpError as error:
                raise target.give_up(device, image.superblock, error) from error.__cause__
            except Exception as error:  # the reason must not be lost with the machine
                wrapped = Internal(f"The restorer failed: {error!r}.")
                raise target.give_up(device, image.superblock, wrapped) from error
            finally:
                keys.close()
        say("jumping into the session")
        screen.end()
        leave.jump_back(cell)
    except KjumpError as error:
        say(f"not resumed: {error.sentence}")
    except OSError as error:
        say(f"not resumed: the target cannot be used: {error.strerror or error}")
    say("restarting")
    syscalls.restart()
    return 1


def _seconds(words: CommandLine) -> float:
    """The least number of seconds in which the key is accepted."""
    try:
        return float(words.value(cmdline.SKIP_WAIT) or "")
    except ValueError:
        return 0.0

# SPDX-License-Identifier: GPL-2.0-or-later
"""A key to boot without the saved session, until the moment at which it runs again.

Runs in the boot initrd and in the restorer.  Esc alone gives nothing up: kjump asks, and resumes
the session if nobody answers.  A session that was given up cannot be resumed later, because the
file systems change without it.  So the question also offers to switch off, which keeps the session.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from kjump.console.lines import say
from kjump.console.prompt import GIVE_UP, SWITCH_OFF, SkipPrompt
from kjump.errors import ResumeSkipped
from kjump.handoff.report import Report
from kjump.image import superblocks
from kjump.image.read import Image
from kjump.machine import syscalls


class ResumeAttempt:
    """If a key was pressed, asks whether to skip resuming, and does what the person answers.

    While the question is shown, the interrupted try does not count: the machine works, and whatever
    happens to it meanwhile, the next boot finds the image as this one did.
    """

    def __init__(self, image: Image, chance: SkipPrompt) -> None:
        self._image = image
        self._chance = chance

    def look(self) -> None:
        """Raises `ResumeSkipped`; does not return if the machine is switched off."""
        if self._chance.asked():
            self.ask()

    def last_look(self) -> None:
        """The same, just before the point of no return; first waits until there was enough time
        to press the key."""
        while self._chance.last():
            self.ask()

    def console(self) -> AbstractContextManager[None]:
        """Inside this context only the kernel uses the terminal."""
        return self._chance.console()

    def ask(self) -> None:
        """Ask, whether or not a key was pressed."""
        image = self._image
        before = image.superblock.outcome
        self._note(replace(before, tries=max(0, before.tries - 1)))
        decided = self._chance.decide()
        if decided == GIVE_UP:
            raise ResumeSkipped("A saved session was given up at the console.")
        if decided == SWITCH_OFF:
            say("switching off; the saved session is kept")
            syscalls.power_off()
        say("resuming")
        self._note(before)

    def _note(self, outcome: Report) -> None:
        image = self._image
        image.superblock = superblocks.store(image.device, image.superblock, outcome=outcome)

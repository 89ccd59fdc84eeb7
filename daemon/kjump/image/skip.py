# SPDX-License-Identifier: GPL-2.0-or-later
"""A key to boot without the saved session, up to the moment at which it runs again.

Runs in the boot initrd and in the restorer.  Esc alone gives nothing up: the person is asked, and
who does not answer gets the session.  A session that is given up cannot be resumed later, as the
file systems go on without it; so the other way out is to switch off, which keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from kjump.errors import ResumeSkipped
from kjump.image import superblocks
from kjump.image.read import Image
from kjump.machine import syscalls
from kjump.machine.console import say
from kjump.machine.keys import ESC, POWER, Keys

GIVE_UP, SWITCH_OFF, RESUME = "give up", "switch off", "resume"
ANSWERS = {"y": GIVE_UP, "p": SWITCH_OFF, "r": RESUME, POWER: SWITCH_OFF}
PATIENCE = 60.0
"""Seconds in which the question is to be answered."""
QUESTION = (
    "Boot without the saved session?  It cannot be resumed once this system has run.",
    "[y] boot, and give it up   [p] switch off, and keep it   [r] resume it",
)


def answer(keys: list[str]) -> str | None:
    """What the first key that is an answer says; capitals are the same.  Pure."""
    return next((ANSWERS[key.lower()] for key in keys if key.lower() in ANSWERS), None)


def tries(outcome: Mapping[str, Any]) -> int:
    """How often a resume was begun that did not come to its end, by an image's outcome.  Pure."""
    found = outcome.get("tries")
    return found if isinstance(found, int) and found > 0 else 0


class Hiding(Protocol):
    """What hides the console, a splash screen."""

    def out_of_the_way(self) -> AbstractContextManager[None]:
        """Within this the console is in its place, with the keyboard."""


class Chance:
    """The chance to skip resuming; `asked` is called again and again, `last` before the jump."""

    def __init__(
        self,
        keys: Keys,
        wait: float,
        splash: Hiding | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``wait``: seconds, at the least, in which Esc is heard; ``splash``: what hides the
        console."""
        self.wait = wait
        self._keys = keys
        self._splash = splash
        self._clock = clock
        self._until = clock() + wait

    def asked(self) -> bool:
        """Whether Esc was pressed since.  Does not wait."""
        return ESC in self._keys.read(0)

    def last(self) -> bool:
        """The same, when there was time enough to press it."""
        while True:
            left = self._until - self._clock()
            if ESC in self._keys.read(max(0.0, left)):
                return True
            if left <= 0:
                return False

    def decide(self) -> str:
        """Ask, and wait for the answer; one of `GIVE_UP`, `SWITCH_OFF`, `RESUME`."""
        with self.console():
            return self._decide()

    def console(self) -> AbstractContextManager[None]:
        """Within this nothing hides the console, and nobody else has the terminal."""
        return nullcontext() if self._splash is None else self._splash.out_of_the_way()

    def _decide(self) -> str:
        for line in QUESTION:
            say(line)
        end = self._clock() + PATIENCE
        while (left := end - self._clock()) > 0:
            found = answer(self._keys.read(left))
            if found is not None:
                return found
        say(f"nobody answered in {PATIENCE:.0f} s")
        return RESUME


class Skippable:
    """Asks whether to skip resuming, where a key was pressed, and does as is answered.

    While the question stands, the try that it interrupts is taken back: the machine works, and
    whatever happens to it meanwhile, the next boot finds the image as this one did.
    """

    def __init__(self, image: Image, chance: Chance) -> None:
        self._image = image
        self._chance = chance

    def look(self) -> None:
        """Raises `ResumeSkipped`; does not return where the machine is switched off."""
        if self._chance.asked():
            self.ask()

    def last_look(self) -> None:
        """The same, before nothing can be undone any more: there was time enough for the key."""
        while self._chance.last():
            self.ask()

    def console(self) -> AbstractContextManager[None]:
        """Within this nobody has the terminal but the kernel."""
        return self._chance.console()

    def ask(self) -> None:
        """Ask, whatever was pressed."""
        image = self._image
        before = image.superblock.outcome
        self._note({**before, "tries": max(0, tries(before) - 1)})
        decided = self._chance.decide()
        if decided == GIVE_UP:
            raise ResumeSkipped("A saved session was given up at the console.")
        if decided == SWITCH_OFF:
            say("switching off; the saved session is kept")
            syscalls.power_off()
        say("resuming")
        self._note(before)

    def _note(self, outcome: Mapping[str, Any]) -> None:
        image = self._image
        image.superblock = superblocks.store(image.device, image.superblock, outcome=outcome)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The question at boot: resume, boot without the saved session, or switch off.

Runs in the boot kernel, and in the helper's kernel when that restores in place.  It asks and
returns the answer; it changes no image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from kjump.console.keys import ESC, POWER, Keys
from kjump.console.lines import say

GIVE_UP, SWITCH_OFF, RESUME = "give up", "switch off", "resume"


ANSWERS = {"y": GIVE_UP, "p": SWITCH_OFF, "r": RESUME, POWER: SWITCH_OFF}


PATIENCE = 60.0
"""Seconds to wait for an answer."""


QUESTION = (
    "Boot without the saved session?  It cannot be resumed once this system has run.",
    "[y] boot, and give it up   [p] switch off, and keep it   [r] resume it",
)


def answer(keys: list[str]) -> str | None:
    """The answer that the first matching key gives; capitals count as well.  Pure."""
    return next((ANSWERS[key.lower()] for key in keys if key.lower() in ANSWERS), None)


class Hiding(Protocol):
    """A splash screen, which hides the console."""

    def out_of_the_way(self) -> AbstractContextManager[None]:
        """Inside this context the console is visible and has the keyboard."""


class SkipPrompt:
    """The chance to skip resuming.  Call `asked` again and again, and `last` before the jump."""

    def __init__(
        self,
        keys: Keys,
        wait: float,
        splash: Hiding | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``wait``: least number of seconds in which Esc is accepted; ``splash``: hides the
        console."""
        self.wait = wait
        self._keys = keys
        self._splash = splash
        self._clock = clock
        self._until = clock() + wait

    def asked(self) -> bool:
        """Whether Esc was pressed since the last call.  Does not wait."""
        return ESC in self._keys.read(0)

    def last(self) -> bool:
        """The same, but first waits until there was enough time to press it."""
        while True:
            left = self._until - self._clock()
            if ESC in self._keys.read(max(0.0, left)):
                return True
            if left <= 0:
                return False

    def decide(self) -> str:
        """Ask, and wait for the answer: one of `GIVE_UP`, `SWITCH_OFF`, `RESUME`."""
        with self.console():
            return self._decide()

    def console(self) -> AbstractContextManager[None]:
        """Inside this context nothing hides the console, and no other program uses the terminal."""
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

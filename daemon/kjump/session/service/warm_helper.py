# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper that rests, and when one is started ahead.

Runs in the session.  Nothing here starts a helper by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from gi.repository import GLib

from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions, WarmHelper
from kjump.session.log import logger
from kjump.settings import Settings

WARM_DELAY = 10
"""Seconds from when a warm helper is missing until one is started: a warm-up stops the session for
as long as a kernel takes to boot, and whoever just came back has something else to do first."""


log = logger()


class RestingHelper:
    """The place of the helper that rests.  Only whoever holds the machine's lock uses the helper;
    anybody may look whether there is one."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self.helper: WarmHelper | None = None

    def unload(self) -> None:
        """Unload the helper, if there is one."""
        helper, self.helper = self.helper, None
        if helper is not None:
            log.info("the warm helper is unloaded")
            try:
                helper.close()
                self._actions.clear_mark()
            except OSError as error:
                log.error(f"the warm helper could not be unloaded: {error}")

    def unload_misfit(self, settings: Settings, facts: Facts) -> bool:
        """Unload a helper that does not fit the machine any more; whether there was one."""
        if self.helper is None:
            return False
        stale = self._actions.misfit(self.helper, settings, facts)
        if stale is None:
            return False
        log.info(stale.what)
        self.unload()
        return True


class WarmKeeper:
    """Decides when a helper is started ahead: if the settings want one and there is none, after a
    while.  Main loop only."""

    def __init__(
        self,
        *,
        is_missing: Callable[[], bool],
        start: Callable[[], None],
        delay: float = WARM_DELAY,
    ) -> None:
        """``is_missing``: whether a helper is wanted, there is none, and one could be started now.
        ``delay`` in seconds."""
        self._is_missing = is_missing
        self._start = start
        self._delay = delay
        self._timer = 0
        self._paused = False

    def pause(self) -> None:
        """Start none until something changes: a warm-up failed, or somebody unloaded the helper."""
        self._paused = True

    def go_on(self) -> None:
        """Something changed."""
        self._paused = False

    def look(self) -> None:
        """If a helper is missing, start one after the delay, unless it is not missing any more."""
        if self._timer or self._paused or not self._is_missing():
            return

        def due() -> bool:
            self._timer = 0
            if not self._paused and self._is_missing():
                self._start()
            return False

        self._timer = GLib.timeout_add(int(self._delay * 1000), due)

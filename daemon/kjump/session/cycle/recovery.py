# SPDX-License-Identifier: GPL-2.0-or-later
"""After an earlier self: what a killed daemon's cycle still owes, and what an earlier boot left.

Runs in the session, when the daemon starts and ends, and before its first cycle.  Nothing here
jumps or stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from gi.repository import GLib

from kjump.errors import (
    ImageIncomplete,
    Interrupted,
    KjumpError,
    NoBootResume,
    RestoreFailed,
    ResumeSkipped,
)
from kjump.handoff.report import Report
from kjump.image import locator, prepare, target
from kjump.machine.identity import machine_identity
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import unload
from kjump.session.cycle.history import History
from kjump.session.log import bound, logger
from kjump.session.mark import MARK, Mark, clear_mark, read_mark, write_mark
from kjump.session.systemd import hooks
from kjump.session.systemd.sleep import run_hooks, thaw
from kjump.session.target import claim
from kjump.session.target.devices import FILE, TargetDevice

log = logger()


@dataclass(frozen=True)
class Afterlife:
    """What to do about an image found at the daemon's start."""

    error: KjumpError | None
    """Why it was not resumed, for the history; None: nothing to record."""
    retire: bool
    """Whether to mark it spent: it belongs to a session that is gone."""


def afterlife(state: str, reason: Report, *, known: bool, skipped: bool) -> Afterlife:
    """What an image on the target means to a daemon that starts.

    A daemon starts in a session that was booted, not restored, so no image on the target belongs
    to it.  ``state`` and ``reason`` come from the superblock; ``known``: whether the history
    already says how that cycle ended; ``skipped``: the boot was asked not to resume.
    """
    error: KjumpError | None
    if reason.error:
        error = reason.cause
    elif state == "spent":
        error = None
    elif skipped and state == "complete":
        error = ResumeSkipped("An image was on the target, and this boot left it alone.")
    elif state == "complete":
        error = NoBootResume("This boot did not look at the complete image on the target.")
    elif state == "restoring":
        error = RestoreFailed("Restoring began, but the machine did not come back.")
    elif state == "writing":
        error = ImageIncomplete("The image was not written to its end.")
    else:
        error = ImageIncomplete("The machine stopped before the helper wrote anything.")
    return Afterlife(None if known else error, retire=state != "spent")


def interrupted(cycle: str) -> Interrupted:
    """The error of a cycle whose daemon was killed."""
    return Interrupted(f"The daemon was stopped in the middle of cycle {cycle or '(unknown)'}.")


def lost_cycle(
    cycle: str, error: KjumpError, *, where: str, started: float, target: str
) -> dict[str, Any]:
    """The history's entry of a cycle that could not report itself.  ``where`` of the three kernels
    it ended; ``started``: seconds since 1970."""
    return {
        "cycle": cycle,
        "result": "failed",
        "where": where,
        "started": started,
        "finished": round(time.time(), 3),
        "phases": {},
        "wall": {},
        "target": target,
        **error.report(),
    }


# -- after a daemon that was killed ----------------------------------------------------------------


@dataclass(frozen=True)
class CleanUpActions:
    """What cleaning up does to the machine."""

    mark: Path = MARK
    unload: Callable[[], None] = unload
    post_hooks: Callable[[float], Sequence[hooks.Result]] = lambda seconds: hooks.run_all(
        "post", seconds=seconds
    )
    thaw: Callable[[], None] = lambda: None


def clean_up_actions(connection: Callable[[], Any]) -> CleanUpActions:
    """Cleaning up by way of systemd; the bus is connected to only if that is needed."""
    return CleanUpActions(
        post_hooks=lambda seconds: run_hooks(connection(), "post", seconds),
        thaw=lambda: thaw(connection),
    )


def clean_up(
    kept: History, *, actions: CleanUpActions | None = None, hook_timeout: float = 30
) -> bool:
    """Give back what a killed daemon's operation still owes; whether there was one.

    The kexec image is unloaded only if the mark says it is ours.  What cannot be given back keeps
    nothing else from being given back, and stays on the mark, so that it is tried again.
    """
    do = actions or CleanUpActions()
    mark = read_mark(do.mark)
    if mark is None:
        return False
    error = interrupted(mark.cycle)
    with bound(KJUMP_CYCLE=mark.cycle):
        if mark.kind == "cycle":
            log.warning(error.what)
        else:
            log.info(f"cleaning up after a {mark.kind} of a daemon before this one")
        unloaded = _attempt("unload the kexec image", do.unload)
        if mark.hooks:
            # Tried once: systemd has the reason, and a hook may have done its part.
            _attempt(
                "run the hooks", lambda: hooks.log_results("post", do.post_hooks(hook_timeout))
            )
        frozen = mark.frozen and not _attempt("thaw the sessions", do.thaw)
        if mark.kind == "cycle":
            _attempt("write the history", lambda: _record(kept, mark, error))
        if unloaded and not frozen:
            _attempt("remove the mark", lambda: clear_mark(do.mark))
        else:
            owed = replace(mark, hooks=False, frozen=frozen)
            _attempt("write the mark", lambda: write_mark(owed, do.mark))
    return True


def _record(kept: History, mark: Mark, error: KjumpError) -> None:
    """Unless the cycle reported itself, or this was tried before.  Raises OSError."""
    if all(known.get("cycle") != mark.cycle for known in kept.entries()):
        now = round(time.time(), 3)
        kept.add(lost_cycle(mark.cycle, error, where="session", started=now, target=mark.target))


def _attempt(what: str, action: Callable[[], object]) -> bool:
    """Whether it succeeded; a failure is logged."""
    try:
        action()
    except (KjumpError, OSError, GLib.Error) as error:
        log.error(f"could not {what}: {error}")
        return False
    return True


# -- after an earlier boot -------------------------------------------------------------------------


class LookBack:
    """Looks at what an earlier boot left, once: as soon as the target is there.

    Called in threads, by one at a time.
    """

    def __init__(self, kept: History, look: Callable[[History, Facts], None] | None = None) -> None:
        """``look``: in place of `look_back`, for tests."""
        self._kept = kept
        self._look = look or look_back
        self._done = False

    def __call__(self, facts: Facts) -> bool:
        """Whether it looked now: then the history may have changed."""
        if self._done or not isinstance(facts.target, TargetDevice):
            return False
        self._done = True
        self._look(self._kept, facts)
        return True


def look_back(kept: History, facts: Facts) -> None:
    """Read what an earlier boot left on the target, record it, and mark it spent; in a swap area
    remove its locator.

    Runs in a thread, before the first cycle of this daemon.  Never raises.
    """
    assert isinstance(facts.target, TargetDevice)
    path, at = facts.target.path, facts.target.locator
    try:
        found = target.examine(path, at)
        if found is None or found.is_session_of_another(machine_identity()):
            return
        cycle = str(found.cycle_id)
        known = any(entry.get("cycle") == cycle for entry in kept.entries())
        skipped = facts.command_line.skips_resume
        after = afterlife(found.state, found.reason, known=known, skipped=skipped)
        try:
            if found.area == locator.SWAP:
                # Its slots are the system's again; only the locator may be written to.
                claim.remove_swap_locator(facts.target)
            elif after.retire:
                area = claim.file_area(facts.target) if facts.target.kind == FILE else None
                prepare.retire_image(path, after.error, cycle_id=UUID(cycle), area=area)
        except (KjumpError, OSError) as error:
            # What became of the session is recorded all the same.
            log.error(f"the image on {path} could not be marked: {error}")
        if after.error is not None:
            log.warning(after.error.sentence, KJUMP_CYCLE=cycle, KJUMP_ERROR=after.error.name)
            kept.add(
                lost_cycle(
                    cycle,
                    after.error,
                    where="helper" if found.state in ("empty", "writing") else "resume",
                    started=found.changed,
                    target=str(path),
                )
            )
    except (KjumpError, OSError) as error:
        log.warning(f"the target {path} could not be examined: {error}")

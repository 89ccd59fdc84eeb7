# SPDX-License-Identifier: GPL-2.0-or-later
"""After an earlier self: what a killed daemon's cycle still owes, and what an earlier boot left.

Runs in the session, when the daemon starts and ends, and before its first cycle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    from_report,
)
from kjump.image import prepare
from kjump.machine.identity import machine_identity
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions
from kjump.session.cycle.history import History
from kjump.session.log import bound, logger
from kjump.session.mark import MARK, clear_mark, read_mark
from kjump.session.systemd import hooks
from kjump.session.systemd.sleep import run_hooks, thaw
from kjump.session.target.devices import FILE, TargetDevice

log = logger()


@dataclass(frozen=True)
class Afterlife:
    """What to do about an image found at the daemon's start."""

    error: KjumpError | None
    """Why it was not resumed, for the history; None: nothing to tell."""
    retire: bool
    """Whether to mark it spent: it belongs to a session that is gone."""


def afterlife(state: str, reason: Mapping[str, object], *, known: bool, skipped: bool) -> Afterlife:
    """What an image on the target means to a daemon that starts.

    A daemon starts in a session that was booted, not restored, so no image on the target belongs
    to it.  ``state`` and ``reason`` come from the superblock; ``known``: whether the history
    already tells how that cycle ended; ``skipped``: the boot was told not to resume.
    """
    error: KjumpError | None
    if reason.get("error"):
        error = from_report(reason)
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


@dataclass(frozen=True)
class Cleaning:
    """What cleaning up does to the machine."""

    mark: Path = MARK
    unload: Callable[[], None] = field(default_factory=lambda: Actions().unload)
    post_hooks: Callable[[float], Sequence[hooks.Result]] = lambda seconds: hooks.run_all(
        "post", seconds=seconds
    )
    thaw: Callable[[], None] = lambda: None


def cleaning_by(connection: Callable[[], Any]) -> Cleaning:
    """Cleaning by way of systemd; the bus is connected to only where that is needed."""
    return Cleaning(
        post_hooks=lambda seconds: run_hooks(connection(), "post", seconds),
        thaw=lambda: thaw(connection),
    )


def clean_up(kept: History, *, cleaning: Cleaning | None = None, hook_timeout: float = 30) -> bool:
    """Give back what a killed daemon's cycle still owes; whether there was one.

    The kexec image is unloaded only if the mark says it is ours.
    """
    do = cleaning or Cleaning()
    mark = read_mark(do.mark)
    if mark is None:
        return False
    error = interrupted(mark.cycle)
    if mark.kind == "warm":
        log.info("unloading a warm helper that a daemon before this one has left")
    else:
        log.warning(error.what, KJUMP_CYCLE=mark.cycle)
    try:
        do.unload()
    except OSError as failure:
        log.error(f"the kexec image could not be unloaded: {failure}")
        return True  # the mark stays, so that it is tried again
    if mark.hooks:
        with bound(KJUMP_CYCLE=mark.cycle):
            try:
                hooks.log_results("post", do.post_hooks(hook_timeout))
            except (KjumpError, OSError, GLib.Error) as failure:
                log.error(f"the hooks could not be run: {failure}")
    if mark.frozen:
        do.thaw()
    now = round(time.time(), 3)
    entry = {
        "cycle": mark.cycle,
        "result": "failed",
        "where": "session",
        "started": now,
        "finished": now,
        "phases": {},
        "wall": {},
        "target": mark.target,
        **error.report(),
    }
    try:
        told = any(known.get("cycle") == mark.cycle for known in kept.entries())
        if mark.kind not in ("warm", "dry-run") and not told:
            kept.add(entry)
        clear_mark(do.mark)
    except OSError as failure:
        log.error(f"the interrupted cycle could not be recorded: {failure}")
    return True


def look_back(kept: History, facts: Facts) -> None:
    """Read what an earlier boot left on the target, tell the history, and mark it spent; in a
    swap area take its locator away.

    Runs in a thread, before the first cycle of this daemon.  Never raises.
    """
    from kjump.image import locator, target
    from kjump.session.target import claim

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
                # Its slots are the system's again; only where it would be found may be written to.
                claim.remove_swap_locator(facts.target)
            elif after.retire:
                area = claim.file_area(facts.target) if facts.target.kind == FILE else None
                prepare.retire_image(path, after.error, cycle_id=UUID(cycle), area=area)
        except (KjumpError, OSError) as error:
            # What became of the session is to be told all the same.
            log.error(f"the image on {path} could not be marked: {error}")
        if after.error is not None:
            log.warning(after.error.sentence, KJUMP_CYCLE=cycle, KJUMP_ERROR=after.error.name)
            kept.add(
                {
                    "cycle": cycle,
                    "result": "failed",
                    "where": "helper" if found.state in ("empty", "writing") else "resume",
                    "started": found.changed,
                    "finished": round(time.time(), 3),
                    "phases": {},
                    "wall": {},
                    "target": str(path),
                    **after.error.report(),
                }
            )
    except (KjumpError, OSError) as error:
        log.warning(f"the target {path} could not be examined: {error}")

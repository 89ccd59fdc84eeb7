# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: all cycles in a file, and the mark of the cycle that runs.

Runs in the session.  It never decides anything about a cycle, and never raises into one: what
cannot be kept is logged by the caller, the cycle goes on.

``/var/lib/kjump/history.jsonl`` holds one report a line, oldest first, the last `KEEP` of them.
``/run/kjump/staged`` exists from before staging until after unloading and `post` hooks, and as long
as a warm helper rests; where a daemon finds it at its start, an earlier one was killed meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kjump.errors import (
    ImageIncomplete,
    Interrupted,
    KjumpError,
    NoBootResume,
    RestoreFailed,
    ResumeSkipped,
    from_report,
)

HISTORY = Path("/var/lib/kjump/history.jsonl")
MARK = Path("/run/kjump/staged")
KEEP = 200

Report = dict[str, Any]


class History:
    """The file of all cycles."""

    def __init__(self, path: Path = HISTORY, keep: int = KEEP) -> None:
        self.path = path
        self.keep = keep

    def entries(self) -> list[Report]:
        """All reports, oldest first; torn or foreign lines are left out."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found: list[Report] = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found[-self.keep :]

    def last(self) -> Report | None:
        """The newest report."""
        entries = self.entries()
        return entries[-1] if entries else None

    def add(self, report: Mapping[str, Any]) -> None:
        """Append a report: one write, flushed to disk.  Raises OSError."""
        line = json.dumps(report, separators=(",", ":"), default=str).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._ends_torn()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)  # for all to read, whatever the service's umask
            os.write(fd, b"\n" + line if torn else line)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._trim()

    def _ends_torn(self) -> bool:
        """Whether the last line was cut short by a crash."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(-1, os.SEEK_END)
                return stream.read(1) != b"\n"
        except OSError:
            return False

    def _trim(self) -> None:
        """Keep the last `keep` lines; rewritten beside the file and renamed, now and then."""
        with self.path.open("rb") as stream:
            lines = stream.readlines()
        if len(lines) <= self.keep + self.keep // 4:
            return
        fresh = self.path.with_suffix(".new")
        with fresh.open("wb") as out:
            out.writelines(lines[-self.keep :])
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
        fresh.replace(self.path)


# -- the mark of the running cycle ---------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """What an interrupted cycle leaves to clean up."""

    cycle: str
    target: str = ""
    hooks: bool = False
    """Whether `pre` hooks were started and `post` is owed."""
    kind: str = "cycle"
    """"cycle"; "warm" for a helper that gets warm or rests, "dry-run" for one that is only
    tried: no cycle is lost with those."""
    frozen: bool = False
    """Whether the sessions of users were stopped and have to be let go on."""


def write_mark(mark: Mark, path: Path = MARK) -> None:
    """Note what is owed, atomically.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(mark.__dict__))
    fresh.replace(path)


def read_mark(path: Path = MARK) -> Mark | None:
    """The mark of an interrupted cycle; one that cannot be read still counts as one."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    try:
        found = json.loads(text)
        return Mark(
            str(found["cycle"]),
            str(found["target"]),
            bool(found["hooks"]),
            str(found.get("kind", "cycle")),
            bool(found.get("frozen", False)),
        )
    except (ValueError, KeyError, TypeError):
        return Mark("", "", hooks=True, frozen=True)


def clear_mark(path: Path = MARK) -> None:
    """Nothing is owed any more.  Raises OSError, not where there was no mark."""
    path.unlink(missing_ok=True)


# -- what a target tells about an earlier boot ----------------------------------------------


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The mark of a running operation: what a killed daemon left to clean up.

Runs in the session.  It never decides what to do about a mark.

``/run/kjump/staged`` exists from before staging until after unloading and `post` hooks, and as long
as a warm helper rests.  If a daemon finds it at its start, an earlier daemon was killed in between.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kjump import atomic

MARK = Path("/run/kjump/staged")


@dataclass(frozen=True)
class Mark:
    """What an interrupted operation leaves to clean up."""

    cycle: str
    target: str = ""
    hooks: bool = False
    """Whether `pre` hooks were started, so that `post` hooks must run."""
    kind: str = "cycle"
    """"cycle", "warm-up" (also while the helper rests) or "dry-run": only cycles have a history."""
    frozen: bool = False
    """Whether the users' sessions were frozen and must be thawed."""


def write_mark(mark: Mark, path: Path = MARK) -> None:
    """Write the mark atomically.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(asdict(mark)))


def read_mark(path: Path = MARK) -> Mark | None:
    """The mark of an interrupted cycle; an unreadable file counts as a mark, too."""
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
    """Remove the mark: nothing is left to clean up.  Raises OSError, but not if there was none."""
    path.unlink(missing_ok=True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The mark of a running operation: what a killed daemon leaves to clean up.

Runs in the session.  The mark is a file in /run; it says which cycle is running, and what has to
be undone for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kjump import atomic

MARK = Path("/run/kjump/staged")


@dataclass(frozen=True)
class Mark:
    """What an interrupted cycle leaves to clean up."""

    cycle: str
    target: str = ""
    hooks: bool = False
    """Whether `pre` hooks were started, so that `post` has to run."""
    kind: str = "cycle"
    """"cycle"; "warm" for a helper that gets warm or rests, "dry-run" for one that is only
    tried: no cycle is lost with those."""
    frozen: bool = False
    """Whether the users' sessions were frozen and have to be thawed."""


def write_mark(mark: Mark, path: Path = MARK) -> None:
    """Record what has to be cleaned up, atomically.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(mark.__dict__))


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
    """Nothing is left to clean up.  Raises OSError, but not if there was no mark."""
    path.unlink(missing_ok=True)

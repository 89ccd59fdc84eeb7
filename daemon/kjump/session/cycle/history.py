# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: the reports of all cycles, in a file.

Runs in the session, in the daemon and in kjumpctl.  It never decides anything about a cycle; if a
report cannot be written, the caller logs that and the cycle goes on.

``/var/lib/kjump/history.jsonl`` holds one report a line, oldest first, the last `KEEP` of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kjump import atomic

HISTORY = Path("/var/lib/kjump/history.jsonl")
KEEP = 200

CycleReport = dict[str, Any]
"""How an operation ended, as the history and the bus have it: JSON, with the keys of LastCycle in
org.kjump1(5).  Open: entries of other versions are kept as they are."""


class History:
    """The file of all cycles."""

    def __init__(self, path: Path = HISTORY, keep: int = KEEP) -> None:
        self.path = path
        self.keep = keep

    def entries(self) -> list[CycleReport]:
        """All reports, oldest first; torn or foreign lines are left out."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found: list[CycleReport] = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found[-self.keep :]

    def last(self) -> CycleReport | None:
        """The newest report."""
        entries = self.entries()
        return entries[-1] if entries else None

    def add(self, report: CycleReport) -> None:
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
        """Keep the last `keep` lines; the file is only rewritten now and then."""
        with self.path.open("rb") as stream:
            lines = stream.readlines()
        if len(lines) <= self.keep + self.keep // 4:
            return
        with atomic.replacing(self.path) as out:
            out.writelines(lines[-self.keep :])

# SPDX-License-Identifier: GPL-2.0-or-later
"""From lines of the console, and from kjump's own report, to phases with begin and end.

Pure.  A line's moment is when the host saw it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .figures import Span

Line = tuple[float, str]
"""Seconds from the request or the power-on, and what the console said."""

# What ends one phase of the kernel's own hibernation: (pattern, the phase that ends there).
STOCK_SAVING = (
    (r"hibernation entry|Filesystems sync", "request"),
    (r"Preallocating image memory", "freeze"),
    (r"Allocated \d+ k?bytes|Allocated \d+ pages", "make room in memory"),
    (r"Creating image|Need to copy", "stop devices"),
    (r"Image created|Hibernation image created", "copy in memory"),
    (r"(Compressing and s|S)aving image data", "start devices"),
    (r"Image saving done", "write"),
)
STOCK_RESUMING = (
    (r"Linux version", "firmware, boot loader"),
    (r"(Loading and decompressing|Loading) image data", "boot kernel"),
    (r"Image loading done", "read"),
)
OURS_RESUMING = (
    (r"Linux version", "firmware, boot loader"),
    (r"kjump: resuming the session", "boot kernel"),
    (r"kjump: restoring in place", "check"),
)
IN_PLACE = (
    (r"Linux version", "jump"),
    (r"kjump: resuming .* in place: +\d+ %", "restorer boot"),
    (r"kjump: jumping into the session", "put back"),
)
PROGRESS = r"kjump: resuming .*\d+ %"
# Phases in the report of kjump that belong to the way back.
RESUMING = ("boot kernel", "resume check", "load", "restorer boot", "put back")
AFTER = ("unload", "hooks-post")
SHORTEST = 0.05
"""Seconds; what is shorter is part of what comes next."""


def cut(
    lines: Sequence[Line], marks: Sequence[tuple[str, str]], end: float, last: str
) -> list[Span]:
    """Phases that end where a line fits the next mark; what is left at the end is ``last``."""
    out: list[Span] = []
    since, at = 0.0, 0
    for pattern, name in marks:
        for index in range(at, len(lines)):
            moment, text = lines[index]
            if re.search(pattern, text):
                out.append((name, since, moment))
                since, at = moment, index + 1
                break
    out.append((last, since, end))
    return [span for span in out if span[2] > span[1]]


def first(lines: Sequence[Line], pattern: str) -> float | None:
    """When the console first said something like that."""
    for moment, text in lines:
        if re.search(pattern, text):
            return moment
    return None


def last(lines: Sequence[Line], pattern: str) -> float | None:
    """When the console last said something like that."""
    return first(list(reversed(lines)), pattern)


def chain(phases: Mapping[str, float], start: float) -> list[Span]:
    """Phases one after the other."""
    out: list[Span] = []
    held = 0.0
    for name, seconds in phases.items():
        held += seconds
        if held >= SHORTEST:
            out.append((name, start, start + held))
            start += held
            held = 0.0
    return out


def lay(
    phases: Mapping[str, float], anchor: str, at: float | None, before: str, end: float, after: str
) -> list[Span]:
    """Phases one after the other so that ``anchor`` begins at ``at`` (where that is known); what is
    before and behind them gets these names."""
    spans = chain(phases, 0.0)
    start = next((begin for name, begin, _ in spans if name == anchor), None)
    shift = max(0.0, at - start) if at is not None and start is not None else 0.0
    out = [(name, begin + shift, end_ + shift) for name, begin, end_ in spans]
    if shift >= SHORTEST:
        out.insert(0, (before, 0.0, shift))
    rest = out[-1][2] if out else 0.0
    if end - rest >= SHORTEST:
        out.append((after, rest, end))
    return out


def ours_saving(lines: Sequence[Line], phases: Mapping[str, float], end: float) -> list[Span]:
    """From the request to the power-off."""
    own = {n: s for n, s in phases.items() if n not in (*RESUMING, *AFTER)}
    at = first(lines, r"kjump: saving \d+ MiB of")
    return lay(own, "copy", at, "request", end, "switch off")


def ours_resuming(lines: Sequence[Line], end: float) -> list[Span]:
    """From the power-on to the user's process running: by the console, because what loads the
    image cannot report how long that took."""
    if first(lines, OURS_RESUMING[-1][0]) is not None:
        return cut(lines, OURS_RESUMING + IN_PLACE, end, "session wakes")
    found = [n for n, (_, text) in enumerate(lines) if re.search(PROGRESS, text)]
    lines = [line for n, line in enumerate(lines) if n not in found[:-1]]
    marks = (*OURS_RESUMING, (PROGRESS, "load"))
    return cut(lines, marks, end, "session wakes")


def stock_image(lines: Sequence[Line]) -> int | None:
    """Bytes the kernel says it wrote ('PM: hibernation: Wrote N kbytes in ...')."""
    for _, text in lines:
        found = re.search(r"Wrote (\d+) kbytes", text)
        if found:
            return int(found[1]) << 10
    return None

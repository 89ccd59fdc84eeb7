# SPDX-License-Identifier: GPL-2.0-or-later
"""A cycle as a picture: its phases in time, and its memory by kind of page.

Pure: a history entry in, SVG out.  The picture needs no script, font or other file, and is readable
on a light and on a dark background.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kjump.cli import show
from kjump.machine.ranges import PAGE

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport

WIDTH, MARGIN, LANE, ROW = 960, 24, 120, 26
"""Pixels: width of the picture, its margin, width of the lanes' names, height of a lane."""
SHARES = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Digits of the map, see kjump-handoff(5)."""
KINDS = ("data", "zero", "free", "window", "offline", "unaccepted", "hwpoison")
"""From the bottom of the map to its top."""
WORDS = {
    "data": "saved",
    "zero": "zeros, noted only",
    "free": "free, left out",
    "window": "window",
    "offline": "offline",
    "unaccepted": "never used",
    "hwpoison": "broken",
}
LANES = ("session", "helper", "boot")
BOOT = ("boot kernel", "restore")
"""The boot kernel's first phase begins like this; those after it are that kernel's, too."""
STYLE = """
svg { font-family: system-ui, sans-serif; font-size: 13px; }
.ground { fill: #ffffff; } text { fill: #1f2328; } .faint { fill: #59636e; font-size: 11px; }
.head { font-size: 17px; font-weight: 600; } .line { stroke: #d1d9e0; } .hole { fill: #e6eaef; }
.session { fill: #2f6fd0; } .helper { fill: #b35900; } .boot { fill: #1a7f37; }
.data { fill: #2f6fd0; } .zero { fill: #8250df; } .free { fill: #a5d6a7; }
.window { fill: #b35900; } .offline { fill: #6e7781; } .unaccepted { fill: #9a8c2c; }
.hwpoison { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117; } text { fill: #e6edf3; } .faint { fill: #9198a1; }
.line { stroke: #3d444d; } .hole { fill: #21262d; }
.session, .data { fill: #5896f0; } .helper, .window { fill: #e0883a; } .boot { fill: #3fb950; }
.zero { fill: #a37bee; } .free { fill: #35583a; } .offline { fill: #8b949e; }
.unaccepted { fill: #c9b458; } .hwpoison { fill: #f85149; }
}
"""


@dataclass(frozen=True)
class Bar:
    """A phase in the timeline.  Seconds, from the start of the cycle."""

    lane: str
    name: str
    start: float
    length: float


# -- deciding --------------------------------------------------------------------------------------


def split(entry: CycleReport) -> tuple[list[tuple[str, float]], ...]:
    """(the session's phases before the jump, the helper's, the boot's, the session's after it).

    The session's phases are those with a wall-clock time.  The others follow "jump", the helper's
    first.
    """
    wall = entry.get("wall") or {}
    before: list[tuple[str, float]] = []
    after: list[tuple[str, float]] = []
    helper: list[tuple[str, float]] = []
    boot: list[tuple[str, float]] = []
    own, theirs = before, helper
    for name, seconds in (entry.get("phases") or {}).items():
        if not isinstance(seconds, int | float):
            continue
        if name in wall or (not wall and own is before and not helper):
            own.append((name, float(seconds)))
            if name == "jump":
                own = after
        else:
            if name.startswith(BOOT):
                theirs = boot
            theirs.append((name, float(seconds)))
    return before, helper, boot, after


def bars(entry: CycleReport) -> list[Bar]:
    """The phases in their lanes, one after the other, without the time while the power was off."""
    before, helper, boot, after = split(entry)
    out = []
    at = 0.0
    for lane, phases in (
        ("session", before),
        ("helper", helper),
        ("boot", boot),
        ("session", after),
    ):
        for name, seconds in phases:
            out.append(Bar(lane, name, at, max(0.0, seconds)))
            at += max(0.0, seconds)
    return out


def ticks(length: float, most: int = 10) -> list[float]:
    """Round times from 0 to ``length`` for the labels of a scale; seconds."""
    step = 0.1
    while length / step > most:
        step = round(step * (2.5 if f"{step:g}".strip("0.")[0] == "2" else 2), 3)
    return [round(i * step, 3) for i in range(int(length / step) + 1)]


def cells(found: CycleReport) -> list[dict[str, float]]:
    """The map's parts: the share of each kind, 0 to 1.  An unknown digit counts as 0."""
    kinds = {kind: str(found[kind]) for kind in KINDS if isinstance(found.get(kind), str)}
    count = max((len(digits) for digits in kinds.values()), default=0)
    out = []
    for at in range(count):
        shares = {}
        for kind, digits in kinds.items():
            share = max(0, SHARES.find(digits[at])) if at < len(digits) else 0
            if share:
                shares[kind] = share / (len(SHARES) - 1)
        # Each share was rounded up.
        total = max(1.0, sum(shares.values()))
        out.append({kind: share / total for kind, share in shares.items()})
    while out and not out[-1]:
        out.pop()
    return out


# -- drawing ---------------------------------------------------------------------------------------


class Canvas:
    """An SVG document that grows downwards."""

    def __init__(self, title: str) -> None:
        self.root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
        ET.SubElement(self.root, "title").text = title
        ET.SubElement(self.root, "style").text = STYLE
        self._ground = self.box(0, 0, WIDTH, 0, "ground")
        self.y = float(MARGIN)

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, hint: str = ""
    ) -> ET.Element:
        """A rectangle; ``hint`` is shown when the pointer is on it."""
        out = ET.SubElement(
            self.root,
            "rect",
            {"class": kind},
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            width=f"{width:.1f}",
            height=f"{height:.1f}",
        )
        if hint:
            ET.SubElement(out, "title").text = hint
        return out

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text; ``y`` is its base line."""
        out = ET.SubElement(
            self.root, "text", {"class": kind, "text-anchor": anchor}, x=f"{x:.1f}", y=f"{y:.1f}"
        )
        out.text = words

    def line(self, x: float, y: float, bottom: float) -> None:
        """A thin vertical line."""
        ET.SubElement(
            self.root,
            "line",
            {"class": "line"},
            x1=f"{x:.1f}",
            x2=f"{x:.1f}",
            y1=f"{y:.1f}",
            y2=f"{bottom:.1f}",
        )

    def done(self) -> str:
        """The document."""
        height = self.y + MARGIN
        self._ground.set("height", f"{height:.0f}")
        self.root.set("viewBox", f"0 0 {WIDTH} {height:.0f}")
        self.root.set("width", str(WIDTH))
        self.root.set("height", f"{height:.0f}")
        ET.indent(self.root)
        return ET.tostring(self.root, encoding="unicode") + "\n"


def heading(canvas: Canvas, entry: CycleReport) -> None:
    """Which cycle it was and how it ended."""
    canvas.text(MARGIN, canvas.y + 14, show.head(entry), "head")
    canvas.y += 36
    facts = [show.moment(entry.get("started")), *(f"{n}: {v}" for n, v in show.figures(entry))]
    for line in wrapped(facts, 120):
        canvas.text(MARGIN, canvas.y, line, "faint")
        canvas.y += 16
    if entry.get("error"):
        words = f"{entry['error']} ({entry.get('where', '?')}): {entry.get('what', '')}"
        for line in wrapped(words.split(), 120, " "):
            canvas.text(MARGIN, canvas.y, line)
            canvas.y += 17
    canvas.y += 14


def wrapped(words: Iterable[str], width: int, between: str = "  \u00b7  ") -> list[str]:
    """Words in lines of at most ``width`` characters."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(between) + len(word) <= width:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines


def timeline(canvas: Canvas, phases: Sequence[Bar]) -> None:
    """The three lanes, a scale, and a table of the phases."""
    canvas.text(MARGIN, canvas.y, "Phases, in seconds, without the time while the power was off")
    canvas.y += 12
    length = sum(phase.length for phase in phases)
    if not length:
        canvas.text(MARGIN, canvas.y + 16, "No phases were kept.", "faint")
        canvas.y += 40
        return
    left, scale = MARGIN + LANE, (WIDTH - 2 * MARGIN - LANE) / length
    bottom = canvas.y + len(LANES) * ROW + 6
    for tick in ticks(length):
        canvas.line(left + tick * scale, canvas.y, bottom)
        canvas.text(left + tick * scale, bottom + 13, f"{tick:g}", "faint", "middle")
    for number, lane in enumerate(LANES):
        y = canvas.y + number * ROW + 4
        mine = [phase for phase in phases if phase.lane == lane]
        total = f" {sum(phase.length for phase in mine):.1f} s" if mine else ""
        canvas.text(MARGIN, y + 15, f"{lane}{total}")
        for phase in mine:
            words = f"{phase.name} {phase.length:.2f}"
            width = phase.length * scale
            # A gap between two phases, if there is room for one.
            drawn = max(1.0, width - 1)
            canvas.box(left + phase.start * scale, y, drawn, ROW - 6, lane, f"{words} s")
    canvas.y = bottom + 34
    column, columns = (WIDTH - 2 * MARGIN) / 4, 4
    rows = -(-len(phases) // columns)
    for number, phase in enumerate(phases):
        x = MARGIN + number // rows * column
        y = canvas.y + number % rows * 18
        canvas.box(x, y - 9, 9, 9, phase.lane)
        canvas.text(x + 15, y, phase.name)
        canvas.text(x + column - 24, y, f"{phase.length:.2f} s", "", "end")
    canvas.y += rows * 18 + 18


def memory(canvas: Canvas, found: CycleReport) -> None:
    """Physical memory from left to right, each part divided by kind of page."""
    parts = cells(found)
    size = found.get("cell_pages")
    if not parts or not isinstance(size, int) or size <= 0:
        return
    total = len(parts) * size * PAGE
    canvas.text(MARGIN, canvas.y, "Physical memory by kind of page, from address 0")
    canvas.y += 12
    width, height = (WIDTH - 2 * MARGIN) / len(parts), 96
    canvas.box(MARGIN, canvas.y, WIDTH - 2 * MARGIN, height, "hole", "no RAM")
    for number, part in enumerate(parts):
        y = canvas.y + height
        x = MARGIN + number * width
        shares = ", ".join(f"{WORDS[kind]} {share:.0%}" for kind, share in part.items())
        hint = f"{show.size(number * size * PAGE)}: {shares}"
        for kind in KINDS:
            if kind in part:
                y -= part[kind] * height
                canvas.box(x, y, width + 0.1, part[kind] * height, kind, hint)
    canvas.y += height + 14
    for quarter in range(5):
        anchor = ("start", "middle", "middle", "middle", "end")[quarter]
        x = MARGIN + (WIDTH - 2 * MARGIN) * quarter / 4
        canvas.text(x, canvas.y, show.size(total * quarter / 4), "faint", anchor)
    canvas.y += 24
    x = float(MARGIN)
    seen = [kind for kind in KINDS if any(kind in part for part in parts)]
    for kind, words in [*((kind, WORDS[kind]) for kind in seen), ("hole", "no RAM")]:
        canvas.box(x, canvas.y - 10, 11, 11, kind)
        canvas.text(x + 17, canvas.y, words)
        x += 17 + 8 * len(words) + 20
    canvas.y += 6


def svg(entry: CycleReport) -> str:
    """The picture of a cycle."""
    canvas = Canvas(show.head(entry))
    heading(canvas, entry)
    timeline(canvas, bars(entry))
    if isinstance(entry.get("map"), Mapping):
        memory(canvas, entry["map"])
    return canvas.done()

# SPDX-License-Identifier: GPL-2.0-or-later
"""timeline.svg: the phases of each system, from the request to running again.

Pure: records in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .figures import SYSTEMS, TITLES, Cell, Record, chosen, typical

WIDTH, LEFT, RIGHT = 1200, 190, 40
ROW, BAR = 34, 22
GAP = 14
"""Pixels of no power between the two parts of a row."""
COLOURS = {
    # what each system does before it writes
    "request": "#d9d9d4",
    "check": "#cfe0f5",
    "prepare": "#cfe0f5",
    "stage": "#9fc1e6",
    "hooks-pre": "#cfe0f5",
    "sync": "#cfe0f5",
    "freeze": "#cfe0f5",
    "jump": "#5b8fc7",
    "make room in memory": "#e6a15c",
    "stop devices": "#9fc1e6",
    "copy in memory": "#f0c27f",
    "start devices": "#9fc1e6",
    "helper boot": "#b9a3d6",
    "scan": "#d7c9ea",
    "find target": "#d7c9ea",
    "handoff": "#d7c9ea",
    # the disk
    "copy": "#4f9d69",
    "write": "#4f9d69",
    "commit": "#2f6f47",
    "switch off": "#d9d9d4",
    # the way back
    "firmware, boot loader": "#d9d9d4",
    "boot kernel": "#b9a3d6",
    "resume check": "#d7c9ea",
    "restorer boot": "#8e75b5",
    "put back": "#4f9d69",
    "load": "#4f9d69",
    "read": "#4f9d69",
    "session wakes": "#9fc1e6",
}
OTHER = "#c9b458"


def step(longest: float) -> float:
    """Seconds between two lines of the axis: 1, 2 or 5 times a power of ten, about ten of them."""
    raw = max(longest, 1.0) / 10
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw)


def segment(x: float, y: float, width: float, name: str, seconds: float) -> str:
    colour = COLOURS.get(name, OTHER)
    label = f"{name}: {seconds:.1f} s"
    out = (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"'
        f' stroke="#fdfdfb" stroke-width="0.6"><title>{escape(label)}</title></rect>'
    )
    if width > 7 * len(name) + 8:
        out += (
            f'<text x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle"'
            f' font-size="11">{escape(name)}</text>'
        )
    return out


def bar(record: Record, y: int, scale: float) -> list[str]:
    """One row: the way off, a gap, the way back."""
    out = []
    for spans, start in (
        (record.saving, LEFT),
        (record.resuming, LEFT + record.off * scale + GAP),
    ):
        out += [
            segment(start + begin * scale, y, (end - begin) * scale, name, end - begin)
            for name, begin, end in spans
        ]
    end = LEFT + (record.off + record.running) * scale + GAP
    out.append(
        f'<text x="{end + 6:.1f}" y="{y + 15}" font-size="12" fill="#555">'
        f"{record.off:.0f} + {record.running:.0f} s</text>"
    )
    return out


def block(records: Sequence[Record], cell: Cell, y: int, scale: float) -> tuple[list[str], int]:
    """A cell's heading and rows; where the next one begins."""
    out = [f'<text x="20" y="{y}" font-weight="bold">{escape(cell.name())}</text>']
    y += 12
    for system in SYSTEMS:
        record = typical(chosen(records, cell, system))
        if record is None:
            continue
        out.append(f'<text x="20" y="{y + 15}" font-size="13">{escape(TITLES[system])}</text>')
        out += bar(record, y, scale)
        y += ROW
    return out, y + 24


def timeline(records: Sequence[Record]) -> str:
    """The picture, as SVG: of each system the cycle with the median time."""
    shown = [
        record
        for cell in sorted({r.cell for r in records})
        for system in SYSTEMS
        if (record := typical(chosen(records, cell, system)))
    ]
    longest = max((r.off + r.running for r in shown), default=1.0)
    scale = (WIDTH - LEFT - RIGHT - 90 - GAP) / longest
    body: list[str] = []
    y = 70
    for cell in sorted({r.cell for r in records}):
        part, y = block(records, cell, y, scale)
        body += part
    every = step(longest)
    lines = []
    for n in range(int(longest / every) + 1):
        x = LEFT + n * every * scale
        lines.append(
            f'<line x1="{x:.1f}" y1="52" x2="{x:.1f}" y2="{y - 24}" stroke="#e4e4de"/>'
            f'<text x="{x:.1f}" y="46" text-anchor="middle" font-size="11" fill="#555">'
            f"{n * every:g} s</text>"
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}"'
        f' height="{y}" font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-size="14"'
        ' fill="#222">\n'
        "<title>From the request to power off, and from power on to the user's process</title>\n"
        f'<rect width="{WIDTH}" height="{y}" fill="#fdfdfb"/>\n'
        '<text x="20" y="24" font-size="19" font-weight="bold">Request to power off, and power on'
        " to running</text>\n"
    )
    return head + "\n".join(lines + body) + "\n</svg>\n"

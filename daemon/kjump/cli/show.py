# SPDX-License-Identifier: GPL-2.0-or-later
"""What kjumpctl prints: reports, states and figures for a person.

Pure: values in, text out.  Uses colour only if the caller asks for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kjump.machine.ranges import PAGE

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"
COLOURS = {
    "yes": GREEN,
    "ok": GREEN,
    "returned": GREEN,
    "warm": GREEN,
    "no": YELLOW,
    "challenge": YELLOW,
    "na": RED,
    "failed": RED,
}


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour: a terminal, and NO_COLOR not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, on: bool) -> str:
    """The text in a colour, or as it is."""
    return f"\x1b[{colour}m{text}\x1b[0m" if on and text else text


def size(count: float) -> str:
    """Bytes for a person."""
    if count < 10 << 10:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 10 << 10 or unit == "GiB":
            return f"{count:.1f} {unit}" if count < 100 else f"{count:.0f} {unit}"
    return ""


def bar(percent: int) -> str:
    """A progress bar."""
    return f"[{'#' * (percent * 40 // 100):40}] {percent:3d} %"


def moment(seconds: float | None) -> str:
    """A time in seconds since 1970, local."""
    if not seconds:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def table(rows: Iterable[Sequence[str]], *, heading: Sequence[str] | None = None) -> str:
    """Columns, aligned: the first one to the left, all others to the right."""
    lines = [list(row) for row in ([heading] if heading else [])] + [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    out = []
    for row in lines:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def figures(report: CycleReport) -> list[tuple[str, str]]:
    """Pages, image size and ratio of a report, as far as it has them."""
    rows: list[tuple[str, str]] = []
    pages = report.get("pages") or {}
    for key, count in pages.items():
        name = "saved" if key == "data" else key
        rows.append((f"pages {name}", f"{count} ({size(count * PAGE)})"))
    image = report.get("image") or {}
    stored, data = image.get("size"), image.get("data")
    if stored:
        rows.append(("image size", size(stored)))
        if data:
            rows.append(("ratio", f"{data / stored:.2f} : 1"))
    return rows


def phases(report: CycleReport) -> list[tuple[str, str]]:
    """The phases in seconds, in their order."""
    found = report.get("phases") or {}
    return [(str(name), f"{float(seconds):.2f} s") for name, seconds in found.items()]


def head(report: CycleReport, *, colour: bool = False) -> str:
    """Which cycle, and how it ended."""
    result = str(report.get("result", "?"))
    words = {
        "ok": "restored from disk",
        "returned": "returned as asked",
        "failed": "failed",
        "warm": "warm",
    }
    name = "Helper" if result == "warm" else "Cycle"
    return f"{name} {report.get('cycle', '?')}: " + paint(
        words.get(result, result), COLOURS.get(result, BOLD), on=colour
    )


def report_text(report: CycleReport, *, colour: bool = False) -> str:
    """One cycle's report: how it ended, the phases, the figures."""
    parts = [head(report, colour=colour)]
    if report.get("started"):
        parts.append(f"{moment(report['started'])} to {moment(report.get('finished'))}")
    if report.get("error"):
        what = "  ".join(str(report[key]) for key in ("what", "todo") if report.get(key))
        parts.append(f"{report['error']} ({report.get('where', '?')}): {what}")
    if report.get("fallback"):
        parts.append("The kernel's own hibernation was done instead.")
    elif report.get("no_fallback"):
        parts.append(f"The kernel's own hibernation was not done instead: {report['no_fallback']}")
    rows = phases(report) + figures(report)
    if rows:
        parts.append(table(rows))
    return "\n".join(parts)


def reasons_text(reasons: Iterable[Sequence[str]]) -> str:
    """Reasons why not, one per line."""
    return "\n".join(f"  {code}: {sentence}" for code, sentence in reasons)


def status_text(values: Mapping[str, Any], *, colour: bool = False) -> str:
    """The daemon's properties for a person."""
    available = str(values.get("Available", "?"))
    lines = [
        f"kjump {values.get('Version', '?')}, {values.get('State', '?')}",
    ]
    progress = values.get("Progress") or (0, "")
    if values.get("Operation", "none") != "none":
        lines.append(f"  {values['Operation']}: {progress[1]} ({progress[0]} %)")
    lines.append("Can hibernate: " + paint(available, COLOURS.get(available, BOLD), on=colour))
    if values.get("Reasons"):
        lines.append(reasons_text(values["Reasons"]))
    target = values.get("Target") or {}
    if target.get("present"):
        spec = target.get("spec", "")
        path = target.get("path", "")
        name = path if path == spec else f"{spec} ({path})"
        kind = str(target.get("kind", "partition"))
        if target.get("file"):
            kind = "file" if kind == "file" else "swap file"
            name = f"{target['file']} (on {path})"
        what = {"swap": "swap partition", "swap file": "swap file"}.get(kind, kind)
        free = " free" if "swap" in kind else ""
        lines.append(f"Target: {what} {name}, {size(target.get('size', 0))}{free}")
    else:
        lines.append(f"Target: {target.get('spec') or 'none'}{' (not found)' * bool(target)}")
    window = values.get("Window") or {}
    if window:
        lines.append(
            f"Window: {size(window.get('size', 0))} for the helper kernel;"
            f" {size(window.get('available_needed', 0))} of memory must be available"
        )
    if values.get("Staged", "no") != "no":
        lines.append(f"Helper: {values['Staged']}; its memory stays in use until it is unstaged")
    lines += [f"Configuration: {warning}" for warning in values.get("Warnings") or ()]
    last = values.get("LastCycle") or {}
    lines += ["", report_text(last, colour=colour) if last else "No cycle yet."]
    return "\n".join(lines)


def history_text(entries: Sequence[CycleReport], *, colour: bool = False) -> str:
    """All cycles, one per line, newest last."""
    if not entries:
        return "No cycle yet."
    rows = []
    for entry in entries:
        result = str(entry.get("result", "?"))
        jump = (entry.get("phases") or {}).get("jump")
        rows.append(
            (
                moment(entry.get("started")),
                str(entry.get("cycle", "?"))[:8],
                result,
                f"{float(jump):.1f} s" if jump is not None else "-",
                str(entry.get("error", "")),
            )
        )
    text = table(rows, heading=("started", "cycle", "result", "jump", "error"))
    if not colour:
        return text
    for word in ("ok", "returned", "failed"):
        text = text.replace(f" {word} ", f" {paint(word, COLOURS[word], on=True)} ")
    return text

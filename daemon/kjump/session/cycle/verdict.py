# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report means: how the cycle ended, and where it failed.  Pure.

Runs in the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kjump.errors import (
    HelperSilent,
    KjumpError,
    from_report,
)


def verdict(
    report: Mapping[str, Any] | None, *, warming: bool = False
) -> tuple[str, KjumpError | None]:
    """What the report page says about the jump: ("ok" | "returned" | "warm" | "failed", error).

    "ok": restored from disk.  "returned": the helper jumped back because it was asked to.  "warm":
    it rests; that is an answer only to a warm-up (``warming``).
    """
    if report is None:
        return "failed", HelperSilent("The session runs again, but nobody reported why.")
    by, result = report.get("by"), report.get("result")
    if result == "failed" or report.get("error"):
        return "failed", from_report(report)
    if warming:
        if by == "helper" and result == "warm":
            return "warm", None
    elif by == "resume" and result == "ok":
        return "ok", None
    elif by == "helper" and result == "returned":
        return "returned", None
    return "failed", HelperSilent(f"The report makes no sense: by {by!r}, result {result!r}.")


def where(error: KjumpError | None, report: Mapping[str, Any] | None) -> str:
    """In which of the three kernels a cycle ended: session, helper or resume."""
    by = str(report.get("by", "")) if report else ""
    if by in ("helper", "resume"):
        return by
    return "helper" if isinstance(error, HelperSilent) else "session"


def merged_phases(ours: Mapping[str, float], report: Mapping[str, Any] | None) -> dict[str, float]:
    """Seconds of each phase in the order in which they came: the other kernels' after the jump.

    A name that both have gets its place before it ("resume check").
    """
    theirs: dict[str, float] = {}
    told = report.get("phases") if report else None
    if report and isinstance(told, Mapping):
        for name, seconds in told.items():
            if isinstance(seconds, int | float):
                place = f"{report.get('by', 'helper')} " if name in ours else ""
                theirs[f"{place}{name}"] = round(float(seconds), 3)
    out: dict[str, float] = {}
    for name, seconds in ours.items():
        out[name] = round(seconds, 3)
        if name == "jump":
            out |= theirs
    return out

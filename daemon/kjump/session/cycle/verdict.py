# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report means: how the cycle ended, and where it failed.  Pure.

Runs in the session.
"""

from __future__ import annotations

from collections.abc import Mapping

from kjump.errors import HelperSilent, KjumpError
from kjump.handoff.report import FAILED, HELPER, OK, RESTING, RESUME, RETURNED, Report


def verdict(report: Report | None, *, warming: bool = False) -> tuple[str, KjumpError | None]:
    """What the report page says about the jump: ("ok" | "returned" | "warm" | "failed", error).

    "ok": restored from disk.  "returned": the helper jumped back because it was asked to.  "warm":
    it rests; that is an answer only to a warm-up (``warming``).
    """
    if report is None:
        return FAILED, HelperSilent("The session runs again, but nobody reported why.")
    by, result = report.by, report.result
    if result == FAILED or report.error:
        return FAILED, report.cause
    if warming:
        if (by, result) == (HELPER, RESTING):
            return RESTING, None
    elif (by, result) in ((RESUME, OK), (HELPER, RETURNED)):
        return result, None
    return FAILED, HelperSilent(f"The report makes no sense: by {by!r}, result {result!r}.")


def where(error: KjumpError | None, report: Report | None) -> str:
    """In which of the three kernels a cycle ended: session, helper or resume."""
    if report is not None and report.by in (HELPER, RESUME):
        return report.by
    return HELPER if isinstance(error, HelperSilent) else "session"


def merged_phases(ours: Mapping[str, float], report: Report | None) -> dict[str, float]:
    """Seconds of each phase in the order in which they came: the other kernels' after the jump.

    A name that both have gets its place before it ("resume check").
    """
    theirs: dict[str, float] = {}
    if report is not None:
        for name, seconds in report.phases.items():
            place = f"{report.by or HELPER} " if name in ours else ""
            theirs[f"{place}{name}"] = round(seconds, 3)
    out: dict[str, float] = {}
    for name, seconds in ours.items():
        out[name] = round(seconds, 3)
        if name == "jump":
            out |= theirs
    return out

# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the session's memory in the helper: its notes, and its pages.

Runs in the helper.  It only reads.
"""

from __future__ import annotations

from collections.abc import Callable

from kjump.errors import DamagedHandoff, Internal, MemoryUnreadable
from kjump.handoff import note
from kjump.helper.states import PageSpan
from kjump.machine import pages, vmcoreinfo
from kjump.machine.maps import Maps
from kjump.machine.ranges import PAGE
from kjump.machine.vmcore import Vmcore


def read_notes(core: Vmcore) -> tuple[dict[str, str], note.Note]:
    """VMCOREINFO and the handoff note.  Raises `DamagedHandoff`, `WrongHandoffVersion`."""
    facts: dict[str, str] | None = None
    found: note.Note | None = None
    for owner, _kind, descriptor in core.notes():
        if owner == vmcoreinfo.OWNER and facts is None:
            facts = vmcoreinfo.parse(descriptor)
        elif owner == note.OWNER and found is None:
            found = note.unpack(descriptor)
    if facts is None:
        raise DamagedHandoff("There is no VMCOREINFO note in the core header.")
    if found is None:
        raise DamagedHandoff("There is no KJUMP note in the core header.")
    return facts, found


def gatherer(core: Vmcore) -> Callable[[PageSpan, pages.Bundle], None]:
    """A function that gathers a span's pages from the session's memory; for any thread."""
    maps = Maps(core.map, core.readable())

    def gather(span: PageSpan, bundle: pages.Bundle) -> None:
        """Raises `MemoryUnreadable`, `Internal`."""
        kinds, end = span.kinds.kinds, span.at + span.last - span.first
        wanted = sum(kinds.count(kind, span.at, end) for kind in (pages.SAVE, pages.ZERO))
        for pfn, count, part in maps.over(span.first, span.last):
            at = span.at + pfn - span.first
            looked = bundle.gather(part.view, part.at(pfn), count, span.kinds, at, pfn)
            if looked != count:
                raise Internal("A chunk has no room for its pages.")
        if bundle.used + bundle.zeros != wanted:
            raise MemoryUnreadable(
                f"Not all pages from {span.first * PAGE:#x} on are in the session's memory."
            )

    return gather

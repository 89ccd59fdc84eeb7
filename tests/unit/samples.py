# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents for tests: whole ones, with whatever a test wants otherwise."""

from __future__ import annotations

import uuid
from dataclasses import fields, replace
from typing import Any

from kjump.handoff.documents import MachineFacts, SaveOrder, TargetPlace, WarmOrder
from kjump.image.description import Description
from kjump.machine.memory import Entry

FACTS = MachineFacts(
    machine="me",
    release="6.12.0",
    levels=4,
    window=(0x4000000, 0x6000000),
    low=(),
    ram=((0x100000, 0x8000000),),
    firmware_map=(Entry(0x100000, 0x8000000, 1),),
    page_count=32000,
    page_offset=0,
    report_page=0x200000,
    nonce=bytes(16),
)
DESCRIPTION = Description(FACTS, jump_back=0x7000000, hostname="h")
ORDER = SaveOrder(FACTS, uuid.UUID(int=1), TargetPlace("/dev/t", ("/dev/t",), 1 << 30), 100)
WARM_ORDER = WarmOrder(FACTS, 0x5000, ("/dev/disk/by-partuuid/x",))


def _changed(document: Any, changes: dict[str, Any]) -> Any:
    """A document with some of its fields, or of its machine's facts, changed."""
    names = {field.name for field in fields(MachineFacts)}
    facts = {name: value for name, value in changes.items() if name in names}
    others = {name: value for name, value in changes.items() if name not in names}
    return replace(document, facts=replace(document.facts, **facts), **others)


def description(**changes: Any) -> Description:
    found = _changed(DESCRIPTION, changes)
    assert isinstance(found, Description)
    return found


def order(**changes: Any) -> SaveOrder:
    found = _changed(ORDER, changes)
    assert isinstance(found, SaveOrder)
    return found

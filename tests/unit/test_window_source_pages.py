# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of what the jump exchanged: found if it is right, and only then."""

from __future__ import annotations

import pytest

from kjump.image.window_source_pages import DESTINATION, DONE, INDIRECTION, SOURCE, pairs
from kjump.machine.ranges import PAGE

WANTED = [(0x10, 0x12), (0x20, 0x23)]
CONTROL = 0x100
JUMP_BACK = CONTROL * PAGE + 0x123


def entry(pfn: int, kind: int) -> int:
    return pfn * PAGE | kind


def page(*words: int) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words).ljust(PAGE, b"\0")


def listed(*words: int, head: int | None = None) -> dict[int, bytes]:
    first = entry(0x101, INDIRECTION) if head is None else head
    return {CONTROL: page(*[0xCC] * 70, first), 0x101: page(*words)}


def found(memory: dict[int, bytes]) -> dict[int, int] | None:
    return pairs(lambda pfn: memory.get(pfn, b""), JUMP_BACK, WANTED)


GOOD = (
    entry(0x10, DESTINATION),
    entry(0x200, SOURCE),
    entry(0x201, SOURCE),
    entry(0x20, DESTINATION),
    entry(0x300, SOURCE),
    entry(0x21, SOURCE),
    entry(0x150, SOURCE),
    DONE,
)


def test_found() -> None:
    wanted = {0x10: 0x200, 0x11: 0x201, 0x20: 0x300, 0x21: 0x21, 0x22: 0x150}
    assert found(listed(*GOOD)) == wanted
    # Goes on in another page, and other words of the control page lead astray before it.
    memory = listed(*GOOD[:3], entry(0x102, INDIRECTION)) | {0x102: page(*GOOD[3:])}
    memory[CONTROL] = (
        page(entry(0x103, INDIRECTION), entry(0x999, INDIRECTION))[:16] + memory[CONTROL][16:]
    )
    memory[0x103] = page(*[entry(0x10, DESTINATION)] * 512)
    assert found(memory) == wanted


@pytest.mark.parametrize(
    "words",
    [
        (*GOOD[:-2], DONE),  # one is missing
        GOOD[:-1],  # no end: zeros follow
        (*GOOD[:-1], entry(1024, SOURCE), DONE),  # one too many
        GOOD[:1] + GOOD[:1] + GOOD[1:3] + GOOD,  # twice
        GOOD[1:],  # a source before any destination
        (*GOOD[:-1], entry(257, INDIRECTION)),  # in a circle
        (*GOOD[:-1], entry(16, INDIRECTION)),  # in the window
        (*GOOD[:3], entry(32, DESTINATION | SOURCE), *GOOD[4:]),
        (entry(0x10, DESTINATION),) * 512,  # the page's end is the list's
        (entry(0x101, INDIRECTION),),  # in a circle at once: would never end
        (),
    ],
)
def test_not_found(words: tuple[int, ...]) -> None:
    assert found(listed(*words)) is None


def test_nothing_at_all() -> None:
    assert found({}) is None
    assert found({CONTROL: bytes(PAGE)}) is None
    assert found(listed(*GOOD, head=entry(0x101, SOURCE))) is None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and changing an image's superblock, so that every power cut leaves a valid state.

Runs in all three kernels.  A change is written to the slot that does not count, and flushed, then
to the other one, and flushed.  After the first flush the change is in force; after the second no
single bad block can bring the old state back.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from kjump.errors import TargetWriteFailed
from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, SLOTS, Superblock, newest, unpack_superblock


def load(device: DirectDevice) -> Superblock | None:
    """The superblock that counts, or None.  Raises `ImageVersion`, OSError."""
    return newest([device.read(slot, BLOCK) for slot in SLOTS])


def store(device: DirectDevice, superblock: Superblock, **changes: Any) -> Superblock:
    """Write ``superblock`` with the changes and the next generation; returns what was written.

    Raises `TargetWriteFailed`.
    """
    after = _changed(superblock, changes)
    block = after.pack()
    for slot in _order(device):
        device.write(slot, block)
        device.flush()
    return after


def settle(device: DirectDevice, superblock: Superblock, **changes: Any) -> bool:
    """Like `store`, but it goes as far as it can: whether the change holds for the next boot.

    It holds once it is flushed in the first slot, even if the second then fails.  Never raises.
    """
    after = _changed(superblock, changes)
    holds = False
    for slot in _order(device):
        try:
            device.write(slot, after.pack())
            device.flush()
        except (TargetWriteFailed, OSError):
            return holds
        holds = True
    return holds


def _changed(superblock: Superblock, changes: dict[str, Any]) -> Superblock:
    generation = superblock.generation + 1
    return replace(superblock, generation=generation, changed=time.time(), **changes)


def _order(device: DirectDevice) -> tuple[int, ...]:
    """The slots, beginning with the one that does not count; an unreadable slot never counts."""
    first, second = (_read(device, slot) for slot in SLOTS)
    if first is not None and (second is None or first.generation >= second.generation):
        return SLOTS[1], SLOTS[0]
    return SLOTS


def _read(device: DirectDevice, slot: int) -> Superblock | None:
    try:
        return unpack_superblock(device.read(slot, BLOCK))
    except OSError:
        return None

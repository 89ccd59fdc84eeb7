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

from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, SLOTS, Superblock, newest, unpack_superblock


def load(device: DirectDevice) -> Superblock | None:
    """The superblock that counts, or None.  Raises `ImageVersion`, OSError."""
    return newest([device.read(slot, BLOCK) for slot in SLOTS])


def store(device: DirectDevice, superblock: Superblock, **changes: Any) -> Superblock:
    """Write ``superblock`` with the changes and the next generation; returns what was written.

    Raises `TargetWriteFailed`.
    """
    after = replace(
        superblock, generation=superblock.generation + 1, changed=time.time(), **changes
    )
    block = after.pack()
    for slot in _order(device):
        device.write(slot, block)
        device.flush()
    return after


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

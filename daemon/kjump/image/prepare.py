# SPDX-License-Identifier: GPL-2.0-or-later
"""What the session does to a target: prepare it for an image, and mark the image spent.

Runs in the session only.  It writes only to blocks that the caller owns at that moment.
"""

from __future__ import annotations

import uuid
import zlib
from dataclasses import replace
from pathlib import Path

from kjump.errors import (
    KjumpError,
    TargetHoldsData,
    TargetTooSmall,
)
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.image import locator as locators
from kjump.image import superblocks
from kjump.image.device import PIECE, ByteSpan, DirectDevice
from kjump.image.layout import (
    BLOCK,
    COMPLETE,
    EMPTY,
    RESTORER_OFFSET,
    RESTORING,
    SPENT,
    WRITING,
    Superblock,
)
from kjump.image.locator import Locator
from kjump.image.target import SMALLEST, Area, Found
from kjump.machine.ranges import align_up


def prepare_target(
    path: Path,
    *,
    cycle_id: uuid.UUID,
    hostname: str,
    restorer: tuple[Path, Path] | None = None,
    area: Area | None = None,
) -> None:
    """Mark the target as the one for this cycle; the helper writes to no other.

    ``restorer``: kernel and initrd to store with the image, for restoring in place.  ``area``: the
    part of the device that is the target; None: all of it.  Raises
    `TargetInUse`, `TargetMissing`, `TargetTooSmall`, `TargetHoldsData`, `TargetWriteFailed`.
    """
    blocks: list[int] = []
    spans: list[ByteSpan] | None = None
    with DirectDevice(path, writable=True, exclusive=area is None) as device:
        if area is not None:
            _take(device, area)
            blocks, spans = locators.lay_out(area.spans)
            device.lay(spans)
        if device.size < SMALLEST:
            raise TargetTooSmall(f"The target {path} has {device.size >> 20} MiB.")
        old = superblocks.load(device)
        fresh = Superblock(
            EMPTY, old.generation if old else 0, cycle_id, outcome=Report(hostname=hostname)
        )
        if restorer is not None:
            kernel, initrd = restorer
            fresh = replace(
                fresh,
                kernel_length=kernel.stat().st_size,
                initrd_length=initrd.stat().st_size,
            )
            if fresh.chunks_offset >= device.size:
                raise TargetTooSmall(f"The target {path} has {device.size >> 20} MiB.")
            if old is not None:
                # If the power fails in between, the target must not look as if it had an image.
                spent = superblocks.store(device, old, state=SPENT)
                fresh = replace(fresh, generation=spent.generation)
            fresh = replace(
                fresh,
                kernel_crc=_write_file(device, kernel, RESTORER_OFFSET, fresh.kernel_length),
                initrd_crc=_write_file(device, initrd, fresh.initrd_offset, fresh.initrd_length),
            )
            device.flush()
        superblocks.store(device, fresh)
        if area is not None and spans is not None:
            device.lay(None)
            locators.write_map(device, area.locator, Locator(cycle_id, area.kind), blocks, spans)


def _take(device: DirectDevice, area: Area) -> None:
    """Make sure that we may use the locator's block, and remove an old locator.

    Raises `TargetHoldsData`, `TargetWriteFailed`, OSError.
    """
    if area.kind == locators.SWAP:
        block = device.read(area.locator, BLOCK)
        if not locators.is_swap(block) or foreign_boot_code(block):
            raise TargetHoldsData(
                f"Another program uses the first bytes of the swap area on {device.path}.",
                advice="Recreate the area with mkswap, or choose another target.",
            )
    locators.clear(device, area.locator)


def foreign_boot_code(block: bytes) -> bool:
    """Whether the room for the locator in a swap header holds something else."""
    return not locators.is_locator(block) and any(block[: locators.SIZE])


def _write_file(device: DirectDevice, path: Path, offset: int, length: int) -> int:
    """Copy a file of ``length`` bytes to the device, in pieces; returns its CRC-32.

    Raises `TargetWriteFailed`, OSError.
    """
    checksum = done = 0
    with path.open("rb") as file, device.buffer(PIECE) as buffer:
        while done < length:
            piece = file.read(min(PIECE, length - done))
            if not piece:
                raise OSError(f"{path} became shorter while it was read")
            checksum = zlib.crc32(piece, checksum)
            buffer[: len(piece)] = piece
            size = align_up(len(piece), BLOCK)
            buffer[len(piece) : size] = bytes(size - len(piece))
            device.write_from(buffer, size, offset + done)
            done += len(piece)
    return checksum


def retire_image(
    path: Path,
    error: KjumpError | None,
    *,
    cycle_id: uuid.UUID | None = None,
    area: Area | None = None,
) -> Found | None:
    """Mark the image spent, with the reason, whatever its state was; returns what it was before.

    With ``cycle_id``, only the image of that cycle.  Does nothing to a spent or absent image.
    ``area``: the blocks that the target owns at this moment; an image that a locator leads to is
    only marked if it lies in exactly these.  The locator of a swap area is removed.
    """
    with DirectDevice(path, writable=True) as device:
        try:
            if area is not None and not _lay_area(device, area):
                return None
            return _spend(device, error, cycle_id)
        finally:
            if area is not None and area.kind == locators.SWAP:
                device.lay(None)
                locators.clear(device, area.locator)


def _lay_area(device: DirectDevice, area: Area) -> bool:
    """Make ``device`` present the image in the area; False if the locator leads elsewhere."""
    blocks, spans = locators.lay_out(area.spans)
    _, found = locators.read(device, area.locator)
    if found is None or found.map_offset != blocks[0]:
        return False
    if locators.read_map(device, found, area.locator) != spans:
        return False
    device.lay(spans)
    return True


def _spend(
    device: DirectDevice, error: KjumpError | None, cycle_id: uuid.UUID | None
) -> Found | None:
    superblock = superblocks.load(device)
    if superblock is None or (cycle_id is not None and superblock.cycle != cycle_id):
        return None
    before = Found(superblock.state_name, superblock.cycle, superblock.outcome, superblock.changed)
    if superblock.state in (WRITING, COMPLETE, RESTORING, EMPTY):
        outcome = superblock.outcome if error is None else reports.failed("", error)
        superblocks.store(device, superblock, state=SPENT, outcome=outcome)
    return before


def remove_locator(path: Path, at: int) -> None:
    """Remove the locator, because the blocks that it leads to do not belong to an image.

    Raises `TargetMissing`, `TargetWriteFailed`, OSError.
    """
    with DirectDevice(path, writable=True) as device:
        locators.clear(device, at)

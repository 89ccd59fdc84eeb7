# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the target that a cycle holds: slots of a swap area, blocks of a file.

Runs in the session, in the worker of a cycle.  Only slots of a swap area that this process holds
are ever written to; they are given back when the session runs again, and by the kernel itself if
this process dies.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Protocol

from kjump.errors import Internal, KjumpError, StagingFailed, TargetTooSmall
from kjump.image import locator
from kjump.image.layout import BLOCK
from kjump.image.prepare import prepare_target, remove_locator, retire_image
from kjump.image.target import Area
from kjump.machine.swap import Slots, Writable
from kjump.session.target import files
from kjump.session.target.devices import FILE, SWAP, TargetDevice


class Claim(Protocol):
    """A target that is prepared, from then until the cycle is over."""

    def check(self) -> None:
        """Just before the jump: has nothing moved?  Raises `StagingFailed`."""

    def retire(self, error: KjumpError | None) -> None:
        """Mark the image spent, with the reason.  Raises `KjumpError`, OSError."""

    def close(self) -> None:
        """Give back what is held."""


class WholeDeviceClaim:
    """A partition: nothing to hold."""

    def __init__(self, device: TargetDevice, cycle: uuid.UUID) -> None:
        self._device = device
        self._cycle = cycle

    def check(self) -> None:
        pass

    def retire(self, error: KjumpError | None) -> None:
        retire_image(self._device.path, error, cycle_id=self._cycle)

    def close(self) -> None:
        pass


class AreaClaim(WholeDeviceClaim):
    """An area of a device, with its slots if it is swap."""

    def __init__(
        self, device: TargetDevice, cycle: uuid.UUID, area: Area, slots: Slots | None = None
    ) -> None:
        super().__init__(device, cycle)
        self._area = area
        self._slots = slots

    def check(self) -> None:
        """Files can be moved: by defragmenting, by btrfs balance."""
        if not self._device.file:
            return
        try:
            found = files.blocks_of(Path(self._device.file), swap=self._slots is not None)
        except KjumpError as error:
            raise StagingFailed(f"The target changed in the meantime: {error.what}") from error
        moved = found.first != self._device.locator
        if self._slots is None:
            moved = moved or found != self._device.blocks
        if moved:
            raise StagingFailed("The target's file was moved in the meantime.", advice="Try again.")

    def retire(self, error: KjumpError | None) -> None:
        retire_image(self._device.path, error, cycle_id=self._cycle, area=self._area)

    def close(self) -> None:
        if self._slots is not None:
            self._slots.close()


def largest_image_size() -> int:
    """Bytes that any image of this machine fits into: RAM, one hundredth of it, and 64 MiB."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ram + ram // 100 + (64 << 20)


def file_area(device: TargetDevice) -> Area:
    """The area of an image file: all its blocks but the first, which is the locator's."""
    if device.blocks is None or device.locator is None:
        raise Internal("The blocks of the target's file were not read.")
    (first, length), *others = device.blocks.spans
    spans = [(first + BLOCK, length - BLOCK), *others] if length > BLOCK else others
    return Area(locator.FILE, device.locator, tuple(spans))


def prepare(
    device: TargetDevice, cycle: uuid.UUID, restorer: tuple[Path, Path] | None, needed: int = 0
) -> Claim:
    """Take what the image needs of the target, and mark it as this cycle's.

    ``needed``: bytes of free swap to take at most; 0: `largest_image_size`.  If it fails,
    everything is given back.  Raises any `KjumpError` of the target, OSError.
    """
    area: Area | None = None
    slots: Slots | None = None
    held: Claim = WholeDeviceClaim(device, cycle)
    if device.kind == FILE:
        area = file_area(device)
        held = AreaClaim(device, cycle, area)
    elif device.kind == SWAP:
        if device.locator is None:
            raise Internal("The target's swap area was not read.")
        slots = Slots(
            os.stat(device.path).st_rdev, device.locator, (needed or largest_image_size()) // BLOCK
        )
        area = Area(locator.SWAP, device.locator, tuple(locator.merged(slots.spans)))
        held = AreaClaim(device, cycle, area, slots)
    try:
        prepare_target(
            device.path,
            cycle_id=cycle,
            hostname=socket.gethostname(),
            restorer=restorer,
            area=area,
        )
    except TargetTooSmall as error:
        _undo(held, error)
        if slots is None:
            raise
        free = sum(length for _, length in slots.spans) >> 20
        raise TargetTooSmall(
            f"Only {free} MiB of swap are free on {device.path}, too little for an image.",
            advice="Add swap, or close programs that are swapped out.",
        ) from error
    except BaseException as error:
        _undo(held, error if isinstance(error, KjumpError) else None)
        raise
    return held


def _undo(held: Claim, error: KjumpError | None) -> None:
    """Nothing may be left that looks like an image in slots that are given back."""
    try:
        held.retire(error)
    except (KjumpError, OSError):
        pass  # the first error is the one to report
    finally:
        held.close()


def remove_swap_locator(device: TargetDevice) -> None:
    """Remove the locator from a swap area whose slots nobody holds; writes to nothing else.

    Raises `KjumpError`, OSError.
    """
    at = device.locator or 0
    if device.kind != SWAP:  # switched off meanwhile: a partition like others
        remove_locator(device.path, at)
        return
    with Writable(os.stat(device.path).st_rdev, at):
        remove_locator(device.path, at)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The target: finding it by its name, opening and examining it, and marking its image spent.

Runs in all three kernels.  The session finds devices through udev itself
(`kjump.session.target.devices`), the initrds by the links that udev makes.  A target is a whole
device, or an `Area` of one that a locator leads to (`kjump.image.locator`).  Nothing here mounts
anything, and it writes only to blocks that the caller owns at that moment.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import (
    ImageDamaged,
    KjumpError,
    NoImage,
    NoTarget,
    TargetMissing,
)
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.image import description, superblocks
from kjump.image import locator as locators
from kjump.image.device import ByteSpan, DirectDevice
from kjump.image.layout import (
    BLOCK,
    DESCRIPTION_OFFSET,
    SPENT,
    Superblock,
)
from kjump.image.locator import Locator
from kjump.machine import udev

SMALLEST = 16 << 20


@dataclass(frozen=True)
class Target:
    """A device that was found; ``size`` in bytes, ``links`` its stable names under /dev/disk."""

    spec: str
    path: Path
    size: int
    partuuid: str
    links: tuple[str, ...]
    locator: int | None = None
    """Byte offset of the locator on the device; None: the target is the whole device."""

    @property
    def names(self) -> tuple[str, ...]:
        """Paths under which another kernel finds the device: its stable names, if it has any."""
        return self.links or (str(self.path),)


@dataclass(frozen=True)
class Area:
    """Blocks of a device that the target owns now: those of a file, or slots of a swap area."""

    kind: int
    """`locator.FILE` or `locator.SWAP`."""
    locator: int
    """Byte offset of the block with the locator."""
    spans: tuple[ByteSpan, ...]
    """Bytes of the device for the map and the image, without the locator's block."""


class Opened(DirectDevice):
    """An open target: the image's bytes from 0 on, and the locator that led there, if any."""

    locator: Locator | None = None
    locator_at: int = 0


@dataclass(frozen=True)
class Found:
    """What an examined target holds."""

    state: str
    cycle_id: uuid.UUID
    reason: Report
    changed: float
    machine: str = ""
    """Identity of the machine on which it was saved; empty if the image does not say."""
    hostname: str = ""
    area: int = 0
    """`locator.FILE` or `locator.SWAP` if a locator leads to it, else 0."""

    def is_session_of_another(self, machine: str) -> bool:
        """Whether another machine may still resume from it: then we must not touch it."""
        return self.state == "complete" and bool(self.machine) and self.machine != machine


def links(spec: str) -> list[Path]:
    """The paths under which udev knows a target that is a device: any of them leads to it.

    Raises `NoTarget` for a spec that is empty or of an unknown form.
    """
    found = udev.paths(spec)
    if not found:
        raise NoTarget(f"No target is configured ({spec!r}).")
    return found


def link(spec: str) -> Path:
    """The first of `links` that is there; the first of all if none is.  Raises `NoTarget`."""
    found = links(spec)
    return next((path for path in found if path.exists()), found[0])


def parse_location(text: str) -> tuple[list[Path], int | None]:
    """Read ``kjump.target=DEVICE[:OFFSET]``: the possible paths of the device, and the byte offset
    of the locator or None.

    A number after the last colon is the offset; a colon at the end means that there is no offset.
    Raises `NoTarget`.
    """
    spec, colon, number = text.rpartition(":")
    if colon and number.isascii() and number.isdigit():
        return links(spec), int(number)
    return links(spec if colon and not number else text), None


def format_location(path: Path, locator: int | None) -> str:
    """The text that `parse_location` reads."""
    if locator is not None:
        return f"{path}:{locator}"
    # Names below by-path may themselves end in a colon and a number.
    return f"{path}:" if ":" in path.name else f"{path}"


def open_image(path: Path, locator: int | None = None, *, writable: bool = False) -> Opened:
    """Open a target so that byte 0 is the start of its image, through the locator at this byte.

    ``locator`` None: use the locator or the superblock at the device's start.  Raises `NoImage`
    if there is neither, `ImageDamaged`, `ImageVersion`, `TargetMissing`.
    """
    device = Opened(path, writable=writable)
    try:
        if locator is None and device.size < BLOCK:
            return device
        at = locator or 0
        block, found = locators.read(device, at)
        if found is None:
            # A swap area has no superblock after its header.
            if locator or locators.is_swap(block):
                raise NoImage(f"There is no image on {path}.")
            return device
        device.locator, device.locator_at = found, at
        spans = locators.read_map(device, found, at)
        device.lay(spans)
        superblock = superblocks.load(device)
        if superblock is None or superblock.cycle != found.cycle:
            raise ImageDamaged(f"The locator on {path} does not lead to its image.")
    except OSError as error:
        device.close()
        raise ImageDamaged(f"{path} cannot be read: {error.strerror}.") from error
    except BaseException:
        device.close()
        raise
    return device


def pass_over(device: DirectDevice, superblock: Superblock, outcome: Report) -> None:
    """Mark an image spent, with the reason, where the next session finds it.

    Raises `TargetWriteFailed`, OSError.
    """
    superblocks.store(device, superblock, state=SPENT, outcome=outcome)
    if isinstance(device, Opened) and device.locator is not None:
        with DirectDevice(device.path, writable=True) as whole:
            locators.leave(whole, device.locator_at, device.locator, outcome)


def give_up(device: DirectDevice, superblock: Superblock, error: KjumpError) -> KjumpError:
    """Mark an image spent because of an error; returns the error to report.

    This is the same error.  If the mark cannot be written, its text also says so: the reason must
    not be lost, and the boot continues in any case.
    """
    try:
        pass_over(device, superblock, reports.failed(reports.RESUME, error))
    except (KjumpError, OSError) as failure:
        why = failure.what if isinstance(failure, KjumpError) else f"{failure.strerror}."
        return type(error)(
            f"{error.what}  The image could not be marked as spent: {why}",
            advice=error.todo,
        )
    return error


def leave_reason(path: Path, at: int, error: KjumpError) -> None:
    """Put the reason into a locator whose image cannot be reached.

    Raises `KjumpError`, OSError.
    """
    with DirectDevice(path, writable=True) as whole:
        _, found = locators.read(whole, at)
        if found is not None and found.outcome.is_blank:
            locators.leave(whole, at, found, reports.failed(reports.RESUME, error))


def wait_for(
    paths: list[Path],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """The first of the paths that appears within the time.  Raises `TargetMissing`.

    ``clock``: the time in seconds; ``pause``: waits that many seconds.
    """
    deadline = clock() + seconds
    while True:
        for path in paths:
            if path.exists():
                return path
        if clock() >= deadline:
            names = ", ".join(map(str, paths))
            raise TargetMissing(f"The target did not appear within {seconds:.0f} s: {names}.")
        pause(0.05)


def examine(path: Path, locator: int | None = None) -> Found | None:
    """The image on the device, or None; ``locator``: as for `open_image`.

    Raises `TargetMissing`, `ImageVersion`, `ImageDamaged`, OSError.
    """
    try:
        device = open_image(path, locator)
    except NoImage:
        return None
    except ImageDamaged as error:
        found = _located(path, locator or 0)
        if found is None:
            raise
        # Swapped memory may have overwritten the superblock; the locator is still right.
        if found.outcome.is_blank:
            reason = reports.failed(reports.RESUME, error)
            return Found("complete", found.cycle, reason, found.changed, area=found.kind)
        return Found("spent", found.cycle, found.outcome, found.changed, area=found.kind)
    with device:
        superblock = superblocks.load(device)
        if superblock is None:
            return None
        text = device.read(DESCRIPTION_OFFSET, superblock.description_length)
    owner = description.owner(text)
    return Found(
        superblock.state_name,
        superblock.cycle,
        superblock.outcome,
        superblock.changed,
        owner.machine,
        owner.hostname,
        device.locator.kind if device.locator else 0,
    )


def _located(path: Path, at: int) -> Locator | None:
    """The locator alone, without reading what it leads to."""
    try:
        with DirectDevice(path) as device:
            return locators.read(device, at)[1]
    except (KjumpError, OSError):
        return None

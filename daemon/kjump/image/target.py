"""The target: finding it by its name, and what the session does with it before and after.

Runs in all three kernels; the session finds devices through udev itself (`session.devices`), the
initrds by the links that udev makes.
"""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kjump.errors import KjumpError, NoTarget, TargetMissing, TargetTooSmall
from kjump.image import superblocks
from kjump.image.device import PIECE, Device
from kjump.image.layout import (
    BLOCK,
    COMPLETE,
    DESCRIPTION_OFFSET,
    EMPTY,
    RESTORER_OFFSET,
    RESTORING,
    SPENT,
    WRITING,
    Superblock,
)
from kjump.machine.ranges import align_up

SMALLEST = 16 << 20
LINKS = {
    "PARTUUID": "/dev/disk/by-partuuid",
    "PARTLABEL": "/dev/disk/by-partlabel",
    "UUID": "/dev/disk/by-uuid",
    "LABEL": "/dev/disk/by-label",
}


@dataclass(frozen=True)
class Target:
    """A device that was found; ``size`` in bytes, ``links`` its stable names under /dev/disk."""

    spec: str
    path: Path
    size: int
    partuuid: str
    links: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What an examined target holds."""

    state: str
    cycle_id: uuid.UUID
    reason: Mapping[str, Any]
    changed: float
    machine: str = ""
    """Identity of the machine it was saved on; empty where it does not say."""
    hostname: str = ""

    def is_session_of_another(self, machine: str) -> bool:
        """Whether another machine may still resume from it: then it is not ours to touch."""
        return self.state == "complete" and bool(self.machine) and self.machine != machine


def link(spec: str) -> Path:
    """The path udev gives a target spec (``PARTUUID=…``, ``PARTLABEL=…``, a path).

    Raises `NoTarget` for an empty or unknown form.
    """
    if spec.startswith("/dev/"):
        return Path(spec)
    kind, sign, value = spec.partition("=")
    if not sign or kind not in LINKS or not value or "/" in value:
        raise NoTarget(f"No target is configured ({spec!r}).")
    if kind in ("PARTUUID", "UUID"):
        value = value.lower()
    return Path(LINKS[kind], value)


def wait_for(paths: list[Path], seconds: float) -> Path:
    """The first of the paths that is there within the time.  Raises `TargetMissing`."""
    deadline = time.monotonic() + seconds
    while True:
        for path in paths:
            if path.exists():
                return path
        if time.monotonic() >= deadline:
            names = ", ".join(map(str, paths))
            raise TargetMissing(f"The target did not appear within {seconds:.0f} s: {names}.")
        time.sleep(0.05)


def examine(path: Path) -> Found | None:
    """The image on the device, or None.  Raises `TargetMissing`, `ImageVersion`, OSError."""
    with Device(path) as device:
        superblock = superblocks.load(device)
        if superblock is None:
            return None
        text = device.read(DESCRIPTION_OFFSET, superblock.description_length)
    try:
        description = json.loads(text)
        machine, hostname = str(description["machine"]), str(description["hostname"])
    except (ValueError, KeyError, TypeError):
        machine = hostname = ""
    return Found(
        superblock.state_name,
        superblock.cycle,
        superblock.outcome,
        superblock.changed,
        machine,
        hostname,
    )


def prepare(
    path: Path,
    *,
    cycle_id: uuid.UUID,
    hostname: str,
    restorer: tuple[Path, Path] | None = None,
) -> None:
    """Mark the target as the one for this cycle; the helper writes to no other.

    ``restorer``: kernel and initrd that go with the image, so that memory can be put back in
    place.  Raises `TargetInUse`, `TargetMissing`, `TargetTooSmall`, `TargetWriteFailed`.
    """
    with Device(path, writable=True, exclusive=True) as device:
        if device.size < SMALLEST:
            raise TargetTooSmall(f"The target {path} has {device.size >> 20} MiB.")
        old = superblocks.load(device)
        fresh = Superblock(
            EMPTY, old.generation if old else 0, cycle_id, outcome={"hostname": hostname}
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
                # Torn in between, what is there must not look like an image.
                superblocks.store(device, old, state=SPENT)
            fresh = replace(
                fresh,
                kernel_crc=_write_file(device, kernel, RESTORER_OFFSET, fresh.kernel_length),
                initrd_crc=_write_file(device, initrd, fresh.initrd_offset, fresh.initrd_length),
            )
            device.flush()
        superblocks.store(device, fresh)


def _write_file(device: Device, path: Path, offset: int, length: int) -> int:
    """Copy a file of ``length`` bytes to the device, in pieces; its CRC-32.

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


def retire(
    path: Path, error: KjumpError | None, *, cycle_id: uuid.UUID | None = None
) -> Found | None:
    """Mark the image spent, with the reason, whatever its state was; what it was before.

    With ``cycle_id`` only the image of that cycle.  Does nothing to a spent or absent one.
    """
    with Device(path, writable=True) as device:
        superblock = superblocks.load(device)
        if superblock is None or (cycle_id is not None and superblock.cycle != cycle_id):
            return None
        before = Found(
            superblock.state_name, superblock.cycle, superblock.outcome, superblock.changed
        )
        if superblock.state in (WRITING, COMPLETE, RESTORING, EMPTY):
            outcome = dict(superblock.outcome)
            if error is not None:
                outcome = error.report()
            superblocks.store(device, superblock, state=SPENT, outcome=outcome)
    return before

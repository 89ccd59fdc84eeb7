# SPDX-License-Identifier: GPL-2.0-or-later
"""The target device: found by its name, described, and watched.

Runs in the session.  The configuration names a partition, a file, or a swap area in use; this
module finds out which.  Nothing here opens a device for writing or decides whether it may be
overwritten; `kjump.session.checks.readiness` decides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump.errors import KjumpError, NoTarget, TargetMissing
from kjump.machine import udev
from kjump.session.target import files
from kjump.session.target.mounts import Mount, read_mounts
from kjump.session.target.swaps import read_swaps, swap_numbers

if TYPE_CHECKING:
    from kjump.image.target import Target

SECTOR = 512
"""/sys/class/block/*/size counts these, whatever the device's own sector size."""
PARTITION, FILE, SWAP = "partition", "file", "swap"


@dataclass(frozen=True)
class TargetDevice:
    """A block device as udev and the kernel describe it."""

    path: Path
    """Kernel's device node, e.g. /dev/vda3."""
    size: int
    """Bytes."""
    number: str = ""
    """``major:minor``, as mountinfo writes it."""
    partuuid: str = ""
    label: str = ""
    """PARTLABEL, as the partition table has it."""
    links: tuple[str, ...] = ()
    """Other paths of the same device (udev's DEVLINKS)."""
    signature: str = ""
    """What udev found on it: a file system's or partition table's type; empty: nothing.  Of a
    file: not empty if it was written to through its file system."""
    holders: tuple[str, ...] = ()
    """Devices stacked on it (dm, md)."""
    properties: dict[str, str] = field(default_factory=dict, compare=False)
    kind: str = PARTITION
    """`PARTITION`: all of it is the target; `FILE`: blocks of a file on it; `SWAP`: free slots of
    a swap area that is in use, the device itself or a file on it."""
    file: str = ""
    """Path of the image file or swap file."""
    locator: int | None = None
    """Byte offset of the target's first block on the device; None for a partition."""
    room: int = 0
    """Bytes of the target if it is not the whole device: the file's, or those of free swap."""
    blocks: files.Blocks | None = field(default=None, compare=False)
    """Where the image file is on its device."""

    @property
    def capacity(self) -> int:
        """Bytes that an image may have, about."""
        return self.size if self.kind == PARTITION else self.room

    def target(self, spec: str) -> Target:
        """The device as the image code wants it."""
        from kjump.image.target import Target

        return Target(spec, self.path, self.capacity, self.partuuid, self.links, self.locator)

    @property
    def place(self) -> str:
        """What the boot initrd has to know besides the settings: where the first block of a file
        is.  Empty if the settings are enough."""
        if not self.file:
            return ""
        return f"{self.partuuid or self.path}:{self.locator}"


# -- deciding ------------------------------------------------------------------------------------


def matches(spec: str, device: TargetDevice) -> bool:
    """Whether a ``[Target] Path=`` names this device.

    By udev's links alone, as they are all that the boot initrd has.
    """
    names = {str(device.path), *device.links}
    return any(str(path) in names for path in udev.paths(spec))


def device_named(spec: str, devices: Iterable[TargetDevice]) -> TargetDevice:
    """The one device a spec names.  Raises `NoTarget` or `TargetMissing`."""
    if not spec:
        raise NoTarget("No target is configured.")
    found = [device for device in devices if matches(spec, device)]
    if not found:
        raise TargetMissing(f"The target {spec} was not found.")
    if len(found) > 1:
        names = " and ".join(sorted(str(device.path) for device in found))
        raise TargetMissing(
            f"{spec} names more than one device: {names}.",
            advice="Give them different names, or use PARTUUID= in /etc/kjump/kjump.conf.",
        )
    return found[0]


def occupation(
    device: TargetDevice, mounts: Iterable[Mount], swaps: Iterable[str], *, claimed: bool
) -> str | None:
    """Who uses a device, as the end of "it is ...", or None.

    ``swaps``: ``major:minor`` of the swap areas; ``claimed``: whether the kernel refused an
    exclusive open.
    """
    for mount in mounts:
        if mount.number == device.number:
            return f"mounted on {mount.point}"
    if device.number in swaps:
        return "in use as swap"
    if device.holders:
        return "in use by " + ", ".join(device.holders)
    return "in use by the kernel" if claimed else None


# -- reading -------------------------------------------------------------------------------------


def from_udev(device: Any) -> TargetDevice:
    """A `pyudev.Device` of subsystem block in our words."""
    properties = {str(key): str(value) for key, value in device.properties.items()}
    number = device.device_number
    folder = Path(device.sys_path)
    try:
        sectors = int(device.attributes.asstring("size"))
    except (KeyError, ValueError):
        sectors = 0
    try:
        holders = tuple(sorted(os.listdir(folder / "holders")))
    except OSError:
        holders = ()
    return TargetDevice(
        path=Path(device.device_node),
        size=sectors * SECTOR,
        number=f"{os.major(number)}:{os.minor(number)}",
        partuuid=properties.get("ID_PART_ENTRY_UUID", properties.get("PARTUUID", "")),
        label=udev.decode(properties.get("ID_PART_ENTRY_NAME", properties.get("PARTNAME", ""))),
        links=tuple(sorted(filter(None, properties.get("DEVLINKS", "").split(" ")))),
        signature=signature(properties),
        holders=holders,
        properties=properties,
    )


def signature(properties: Mapping[str, str]) -> str:
    """What udev found on a device.  A partition also bears its disk's partition table type
    (60-persistent-storage.rules imports the parent's properties), which says nothing of it."""
    found = properties.get("ID_FS_TYPE", "")
    if not found and properties.get("DEVTYPE") != "partition":
        found = properties.get("ID_PART_TABLE_TYPE", "")
    return found


def list_devices() -> list[TargetDevice]:
    """All block devices with a node."""
    import pyudev

    found = pyudev.Context().list_devices(subsystem="block")
    return [from_udev(device) for device in found if device.device_node]


def resolve(spec: str) -> TargetDevice:
    """The target that a spec names, now.

    Raises `NoTarget`, `TargetMissing`, `TargetMapped`, `UnsuitableFile`.
    """
    if udev.names_a_file(spec):
        return _file(Path(os.path.realpath(spec)))
    if spec.startswith("/dev/"):
        # A path may be a link that udev does not know of.
        spec = os.path.realpath(spec)
    device = device_named(spec, list_devices())
    files.refuse_mapped(_number(device), f"The target {device.path}")
    area = next((a for a in read_swaps() if not a.is_file and _is_device(a.path, device)), None)
    if area is None:
        return device
    return replace(device, kind=SWAP, locator=0, room=area.free)


def _file(path: Path) -> TargetDevice:
    """The target that is a file: where it is on its device, and whether it is swap."""
    area = next((a for a in read_swaps() if a.is_file and _is_same(a.path, path)), None)
    blocks = files.blocks_of(path, swap=area is not None)
    device = next((d for d in list_devices() if _number(d) == blocks.device), None)
    if device is None:
        raise TargetMissing(f"Cannot find out which device {path} is on.")
    found = replace(
        device,
        file=str(path),
        locator=blocks.first,
        # These belong to the device, not to the file.
        signature="",
        holders=(),
    )
    if area is not None:
        return replace(found, kind=SWAP, room=area.free)
    return replace(
        found,
        kind=FILE,
        room=blocks.size,
        blocks=blocks,
        signature="written" if blocks.written else "",
    )


def _number(device: TargetDevice) -> int:
    major, _, minor = device.number.partition(":")
    return os.makedev(int(major), int(minor))


def _is_device(path: Path, device: TargetDevice) -> bool:
    try:
        return os.stat(path).st_rdev == _number(device)
    except OSError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def is_claimed(path: Path) -> bool:
    """Whether the kernel refuses an exclusive open: mounted, swap, or part of something."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def user_of(device: TargetDevice) -> str | None:
    """Who uses the device now, or None."""
    return occupation(device, read_mounts(), swap_numbers(), claimed=is_claimed(device.path))


def resolve_or_error(spec: str) -> TargetDevice | KjumpError:
    """`resolve` with the error as a value, for facts."""
    try:
        return resolve(spec)
    except KjumpError as error:
        return error

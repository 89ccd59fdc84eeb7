"""The target device: found by its name, described, and watched.

Runs in the session.  It never opens a device for writing and never decides whether a device may
be overwritten; `kjump.session.readiness` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump.errors import KjumpError, NoTarget, TargetMissing

if TYPE_CHECKING:
    from kjump.image.target import Target

SECTOR = 512
"""/sys/class/block/*/size counts these, whatever the device's own sector size."""


@dataclass(frozen=True)
class Device:
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
    """What udev found on it: a file system's or partition table's type; empty: nothing."""
    holders: tuple[str, ...] = ()
    """Devices stacked on it (dm, md)."""
    properties: dict[str, str] = field(default_factory=dict, compare=False)

    def target(self, spec: str) -> Target:
        """The device as the image code wants it."""
        from kjump.image.target import Target

        return Target(spec, self.path, self.size, self.partuuid, self.links)


# -- deciding ------------------------------------------------------------------------------------


def decode(text: str) -> str:
    r"""udev's ``\x20`` escapes undone (libudev's encoding of names)."""
    out = bytearray()
    at = 0
    while at < len(text):
        if text.startswith("\\x", at):
            try:
                out.append(int(text[at + 2 : at + 4], 16))
                at += 4
                continue
            except ValueError:
                pass
        out += text[at].encode("utf-8", "surrogateescape")
        at += 1
    return out.decode("utf-8", "replace")


def matches(spec: str, device: Device) -> bool:
    """Whether a ``[Target] Path=`` names this device."""
    kind, _, value = spec.partition("=")
    if kind == "PARTUUID":
        return device.partuuid.lower() == value.lower()
    if kind == "PARTLABEL":
        return device.label == value
    return spec == str(device.path) or spec in device.links


def choose(spec: str, devices: Iterable[Device]) -> Device:
    """The one device a spec names.  Raises `NoTarget` or `TargetMissing`."""
    if not spec:
        raise NoTarget("No target is configured.")
    found = [device for device in devices if matches(spec, device)]
    if not found:
        raise TargetMissing(f"The target {spec} is not there.")
    if len(found) > 1:
        names = " and ".join(sorted(str(device.path) for device in found))
        raise TargetMissing(
            f"{spec} names more than one device: {names}.",
            advice="Give them different names, or use PARTUUID= in /etc/kjump/kjump.conf.",
        )
    return found[0]


def occupation(
    device: Device, mountinfo: str, swaps: Iterable[str], *, claimed: bool
) -> str | None:
    """Who uses a device, as the end of "it is ...", or None.

    ``mountinfo``: text of /proc/self/mountinfo; ``swaps``: ``major:minor`` of the swap areas;
    ``claimed``: whether the kernel refused an exclusive open.
    """
    for line in mountinfo.splitlines():
        words = line.split()
        if len(words) > 4 and words[2] == device.number:
            return f"mounted on {words[4]}"
    if device.number in swaps:
        return "in use as swap"
    if device.holders:
        return "in use by " + ", ".join(device.holders)
    return "in use by the kernel" if claimed else None


# -- reading -------------------------------------------------------------------------------------


def describe(device: Any) -> Device:
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
    return Device(
        path=Path(device.device_node),
        size=sectors * SECTOR,
        number=f"{os.major(number)}:{os.minor(number)}",
        partuuid=properties.get("ID_PART_ENTRY_UUID", properties.get("PARTUUID", "")),
        label=decode(properties.get("ID_PART_ENTRY_NAME", properties.get("PARTNAME", ""))),
        links=tuple(sorted(properties.get("DEVLINKS", "").split())),
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


def listing() -> list[Device]:
    """All block devices with a node."""
    import pyudev

    found = pyudev.Context().list_devices(subsystem="block")
    return [describe(device) for device in found if device.device_node]


def resolve(spec: str) -> Device:
    """The device a spec names, now.  Raises `NoTarget` or `TargetMissing`."""
    if spec.startswith("/dev/"):
        # A path may be a link that udev does not know of.
        spec = os.path.realpath(spec)
    return choose(spec, listing())


def swap_numbers(text: str | None = None) -> set[str]:
    """``major:minor`` of the swap partitions in /proc/swaps."""
    if text is None:
        try:
            text = Path("/proc/swaps").read_text()
        except OSError:
            return set()
    numbers = set()
    for line in text.splitlines()[1:]:
        try:
            status = os.stat(line.split()[0])
        except (OSError, IndexError):
            continue
        if status.st_rdev:
            numbers.add(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    return numbers


def is_claimed(path: Path) -> bool:
    """Whether the kernel refuses an exclusive open: mounted, swap, or part of something."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def user_of(device: Device) -> str | None:
    """Who uses the device now, or None."""
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text()
    except OSError:
        mountinfo = ""
    return occupation(device, mountinfo, swap_numbers(), claimed=is_claimed(device.path))


def watch(changed: Callable[[], None]) -> Callable[[], None]:
    """Call ``changed`` on the main loop whenever a block device comes, goes or changes, and
    memory or a processor as well.

    Returns what stops it.
    """
    import pyudev
    from pyudev.glib import MonitorObserver

    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    for subsystem in ("block", "memory", "cpu"):
        monitor.filter_by(subsystem)
    observer = MonitorObserver(monitor)
    handler = observer.connect("device-event", lambda *_arguments: changed())
    monitor.start()

    def stop() -> None:
        observer.disconnect(handler)
        observer.enabled = False

    return stop


def error_or_device(spec: str) -> Device | KjumpError:
    """`resolve` with the error as a value, for facts."""
    try:
        return resolve(spec)
    except KjumpError as error:
        return error

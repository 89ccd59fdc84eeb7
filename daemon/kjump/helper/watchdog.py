# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchdog that restarts the machine when the whole helper hangs.

Runs in the helper.  It uses a hardware watchdog if there is one, else the kernel's own (softdog).
It uses only a watchdog that is known to stop on request: one that kept ticking would restart the
session later.  A restart loses the session; `kjump.helper.watch` acts earlier, so that it is rarely
needed.

Numbers are those of uapi/linux/watchdog.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
WDIOC_GETSUPPORT = 0x80285700
INFO = struct.Struct("=II32s")
"""struct watchdog_info, little-endian: options, firmware version, identity."""
DEVICES = Path("/dev")
CLASS = Path("/sys/class/watchdog")
MODULES = Path("/sys/module")
OPTIONS = Path("/etc/modprobe.d/kjump.conf")
"""Has a line ``options MODULE nowayout=0`` for each watchdog's driver in this initrd."""
SOFT = "softdog"


def stops(node: Path) -> bool:
    """Whether the watchdog stops on request, as far as /sys shows.  ``node``: its folder in
    /sys/class/watchdog.

    The file exists with CONFIG_WATCHDOG_SYSFS.  Without it, a driver that is a module will do,
    because modprobe.d in this initrd sets nowayout=0 for each driver in it.  Some drivers do not
    show their device (softdog, which has none, and i6300esb): for these it is enough that one of
    these modules is loaded.
    """
    try:
        return (node / "nowayout").read_text().strip() == "0"
    except OSError:
        pass
    device = node / "device"
    if not device.exists():
        return any((MODULES / name / "initstate").exists() for name in _ours())
    return (device / "driver" / "module" / "initstate").exists()


def fits(granted: int, wanted: int, least: int) -> bool:
    """Whether a watchdog's time, in seconds, is usable: at least ``least``, and, because some
    drivers ignore the request, not many times what was wanted.  Pure."""
    return least <= granted <= 4 * wanted


class Watchdog:
    """A running watchdog: `pet` it in time, and `stop` it before another kernel runs."""

    def __init__(self, fd: int, name: str, seconds: int) -> None:
        self._fd = fd
        self.name = name
        self.seconds = seconds

    def pet(self) -> None:
        try:
            os.write(self._fd, b"\0")
        except OSError:
            pass  # it will restart the machine; nothing better can be done

    def stop(self) -> None:
        """The magic close: the driver stops the watchdog only after this letter."""
        try:
            os.write(self._fd, b"V")
        except OSError:
            pass
        finally:
            os.close(self._fd)


def take(wanted: int, least: int) -> Watchdog | None:
    """Start a hardware watchdog; None if there is no usable one.  Times are in seconds."""
    for path in _nodes():
        if stops(CLASS / path.name) and (found := _start(path, wanted, least)) is not None:
            return found
    return None


def take_soft(wanted: int, least: int) -> Watchdog | None:
    """Load the kernel's own watchdog and start it; None if the kernel has none."""
    before = set(_nodes())
    command = ["modprobe", "-q", SOFT, "nowayout=0"]
    try:
        os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)
    except OSError:
        return None
    for path in _nodes():
        if path not in before and (found := _start(path, wanted, least)) is not None:
            return found
    return None


def _ours() -> list[str]:
    """The modules that this initrd loads with ``nowayout=0``."""
    try:
        lines = OPTIONS.read_text().splitlines()
    except OSError:
        return []
    return [words[1] for line in lines if (words := line.split())[:1] == ["options"] and words[1:]]


def _nodes() -> Iterator[Path]:
    """/dev/watchdog0 and so on; /dev/watchdog is the same as the first."""
    yield from sorted(DEVICES.glob("watchdog[0-9]*"))


def _start(path: Path, wanted: int, least: int) -> Watchdog | None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, WDIOC_SETTIMEOUT, struct.pack("i", wanted))
    except OSError:
        pass  # its time is fixed
    try:
        (granted,) = struct.unpack("i", fcntl.ioctl(fd, WDIOC_GETTIMEOUT, bytes(4)))
    except OSError:
        granted = 0
    found = Watchdog(fd, _name(path, fd), granted)
    if fits(granted, wanted, least):
        return found
    found.stop()
    return None


def _name(path: Path, fd: int) -> str:
    """The module's name, which people know.  If nothing leads to the module, the driver's own name,
    which may be anything ("i6300ESB timer")."""
    driver = CLASS / path.name / "device" / "driver"
    for known in (driver / "module", driver):
        if known.exists():
            return known.resolve().name
    try:
        _, _, name = INFO.unpack(fcntl.ioctl(fd, WDIOC_GETSUPPORT, bytes(INFO.size)))
    except OSError:
        return path.name
    return name.split(b"\0", 1)[0].decode(errors="replace").strip() or path.name


def stop_all() -> None:
    """Stop the watchdogs that a killed copy left running.  Opening one that was stopped starts it
    for a moment."""
    for path in _nodes():
        if stops(CLASS / path.name):
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            Watchdog(fd, "", 0).stop()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of the machine to judge whether it can hibernate.

Runs in the session, as root.  Reading never raises for a machine that lacks something: that is a
fact, too. Nothing here judges, and nothing changes the machine.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kjump import settings as configuration
from kjump.errors import (
    Internal,
    KjumpError,
    NoTarget,
    NoWindow,
)
from kjump.machine import cmdline, memory, udev
from kjump.machine.cmdline import CommandLine
from kjump.machine.memory import read_meminfo
from kjump.machine.swap import SNAPSHOT_DEVICE
from kjump.session.staging import reclaim
from kjump.session.staging import window as windows
from kjump.session.staging.load import vmcoreinfo_note
from kjump.session.staging.sizing import Sizing, size_helper
from kjump.session.target import devices
from kjump.session.target.devices import PARTITION, TargetDevice
from kjump.settings import Settings

BOOT_MARK = Path("/var/lib/kjump/boot.json")
"""Written by whatever built the boot initrd: release, and `settings.fingerprint` then."""
WINDOW_SECONDS = 3.0
"""Seconds for which it is remembered whether there is a window."""


@dataclass(frozen=True)
class Facts:
    """What was read of the machine; the checks know nothing else."""

    machine: str = "x86_64"
    release: str = ""
    lockdown: str = "none"
    """The active mode of /sys/kernel/security/lockdown; "none" if the kernel has no lockdown."""
    kexec_disabled: bool = False
    jump: KjumpError | None = None
    """The kernel's answer to a preserve-context load: its refusal, or None."""
    snapshot_device: bool = True
    command_line: CommandLine = field(default_factory=CommandLine)
    foreign_image: bool = False
    target: TargetDevice | KjumpError = field(default_factory=lambda: NoTarget("No target is set."))
    target_user: str | None = None
    target_session: str = ""
    """The other machine whose session is saved on the target; empty: none."""
    target_is_ours: bool = False
    """Whether an image of ours is on the target: then its content is nobody else's data."""
    sizing: Sizing | KjumpError | None = None
    window: NoWindow | None = None
    """That no window was found a moment ago; None: one was, or nobody could look."""
    available: int = 0
    """Bytes of memory that are free if caches are reclaimed."""
    boot: Mapping[str, Any] | None = None
    """The document in boot.json; None if there is none."""
    warm: bool = False
    """Whether a helper of ours is staged already: then it needs no memory, and is not foreign."""
    fingerprint: str = ""
    """The value in boot.json if the boot initrd is up to date."""
    cmdline_target: str = ""
    """``kjump.target=`` of the kernel command line; empty: it has none."""
    cmdline_target_matches: bool = False
    """Whether that leads to the target."""
    boot_misses: str = ""
    """Where the boot initrd would look for a target that is a device, if that is not the target;
    empty: it finds the target."""


def leads_to(location: str, target: TargetDevice) -> bool:
    """Whether a ``kjump.target=`` leads to this target."""
    from kjump.image.target import parse_location

    try:
        paths, locator = parse_location(location)
    except KjumpError:
        return False
    return found_at(paths) == target.path and (locator or 0) == (target.locator or 0)


def missed_by_boot(spec: str, target: TargetDevice) -> str:
    """The path at which the boot initrd would look for a device in vain; empty: it finds it."""
    paths = udev.paths(spec)
    return str(paths[0]) if paths and found_at(paths) != target.path else ""


def found_at(paths: Sequence[Path]) -> Path:
    """The device that the boot initrd would take: behind the first path that is there."""
    return Path(os.path.realpath(next((path for path in paths if path.exists()), paths[0])))


def lockdown_mode(text: str) -> str:
    """The active mode in ``none [integrity] confidentiality``."""
    for word in text.split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return "none"


def read_text(path: str) -> str:
    """A file's text; empty if it does not exist or we may not read it."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def available_memory(meminfo: Mapping[str, int], zoneinfo: str = "") -> int:
    """MemAvailable of /proc/meminfo and the free memory that it leaves out, in bytes."""
    return meminfo.get("MemAvailable", 0) + reclaim.in_lists(zoneinfo)


def boot_mark(path: Path = BOOT_MARK) -> Mapping[str, Any] | None:
    """What the boot initrd was built with."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


_jump_is_known = False


def probe_jump() -> KjumpError | None:
    """Ask the kernel, until it says yes: that never changes again.

    (Lockdown and the sysctl may be switched on later; they are read apart.)
    """
    global _jump_is_known  # noqa: PLW0603
    if _jump_is_known:
        return None
    from kjump.machine import syscalls

    error = syscalls.probe_kexec_jump()
    _jump_is_known = error is None and not syscalls.kexec_loaded()
    return error


def measure(settings: Settings, release: str) -> Sizing | KjumpError:
    """What the helper needs, or why that cannot be measured."""

    try:
        return size_helper(settings, release)
    except KjumpError as error:
        return error
    except OSError as error:
        return Internal(f"The helper's files could not be measured: {error}.")


def session_of_another(device: TargetDevice) -> str:
    """Name of the other machine whose session is saved on the device; empty: none."""
    from kjump.image import target
    from kjump.machine.identity import machine_identity

    try:
        found = target.examine(device.path, device.locator)
    except (KjumpError, OSError):
        return ""
    if found is None or not found.is_session_of_another(machine_identity()):
        return ""
    return found.hostname or "another machine"


def holds_our_image(device: TargetDevice) -> bool:
    """Whether the target begins with a superblock or a locator of ours."""
    from kjump.image import target

    try:
        return target.examine(device.path, device.locator) is not None
    except (KjumpError, OSError):
        return False


def look_for_window(size: int) -> NoWindow | None:
    """Whether there is no window of ``size`` bytes now.  In doubt there is one."""
    try:
        start, length = vmcoreinfo_note()
        avoid = [(start, start + length)]
        return windows.find_out(size, memory.iomem(), windows.read_kpageflags, avoid)
    except (KjumpError, OSError):
        return None


class WindowLook:
    """Looks for a window, and remembers the answer for some seconds: looking takes up to a second
    if there is none."""

    def __init__(
        self,
        look: Callable[[int], NoWindow | None] = look_for_window,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = WINDOW_SECONDS,
    ) -> None:
        self._look = look
        self._clock = clock
        self._seconds = seconds
        self._known: tuple[float, Settings, int, NoWindow | None] | None = None

    def find(self, settings: Settings, sizing: Sizing | KjumpError | None) -> NoWindow | None:
        """What was found for these settings (the same object: others were read anew) and size."""
        if not isinstance(sizing, Sizing):
            return None
        now, size = self._clock(), sizing.window_size
        if self._known is not None:
            at, of, for_size, found = self._known
            if of is settings and for_size == size and now - at < self._seconds:
                return found
        found = self._look(size)
        self._known = now, settings, size, found
        return found


_window_look = WindowLook()


def target_facts(target: TargetDevice | KjumpError) -> Facts:
    """The facts of the target alone: enough for the checks that need nothing else."""
    if isinstance(target, KjumpError):
        return Facts(target=target)
    return Facts(
        target=target,
        target_user=devices.user_of(target) if target.kind == PARTITION else None,
        target_session=session_of_another(target),
        target_is_ours=holds_our_image(target),
    )


def read_facts(settings: Settings) -> Facts:
    """Read the machine.  Takes up to a second, so never on the main loop; never raises."""
    from kjump.machine import syscalls

    release = platform.release()
    is_x86_64 = platform.machine() == "x86_64"
    target = devices.resolve_or_error(settings.target.path)
    there = target if isinstance(target, TargetDevice) else None
    sizing = measure(settings, release)
    loaded = syscalls.kexec_loaded()
    command_line = cmdline.read()
    cmdline_target = command_line.value(cmdline.TARGET) or ""
    return replace(
        target_facts(target),
        machine=platform.machine(),
        release=release,
        lockdown=lockdown_mode(read_text("/sys/kernel/security/lockdown")),
        kexec_disabled=read_text("/proc/sys/kernel/kexec_load_disabled").strip() == "1",
        jump=probe_jump() if is_x86_64 else None,
        snapshot_device=SNAPSHOT_DEVICE.exists(),
        command_line=command_line,
        foreign_image=loaded,
        sizing=sizing,
        # The pages of a loaded image are scattered over memory, and go when it is unloaded.
        window=None if loaded else _window_look.find(settings, sizing),
        available=available_memory(read_meminfo(), reclaim.read_zoneinfo()),
        boot=boot_mark(),
        fingerprint=configuration.fingerprint(settings, there.place if there else ""),
        cmdline_target=cmdline_target,
        boot_misses=missed_by_boot(settings.target.path, there) if there else "",
        cmdline_target_matches=there is not None and leads_to(cmdline_target, there),
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this machine hibernate by kexec jump, now?  And if not, every reason why.

Runs in the session.  `read` collects facts, the checks are pure functions over them, and
`reasons` is what CanHibernate answers and Hibernate obeys: the same code.  Nothing here changes
the machine, but for one probe of the kernel that stages nothing.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump import settings as configuration
from kjump.errors import (
    ForeignKexecImage,
    Internal,
    KexecDisabled,
    KjumpError,
    Lockdown,
    NoBootResume,
    NoKexecJump,
    NoSnapshotDevice,
    NoTarget,
    PagePoison,
    TargetHoldsData,
    TargetInUse,
    TargetTooSmall,
    TooLittleMemory,
    UnsupportedMachine,
)
from kjump.machine.memory import meminfo
from kjump.session import devices, reclaim
from kjump.session.devices import FILE, PARTITION, SWAP, Device
from kjump.settings import Settings

if TYPE_CHECKING:
    from kjump.session.staging import Sizing

SMALLEST_TARGET = 16 << 20
"""Bytes; below that not even an idle system's kernel memory fits."""
ANOTHER_FILE = "Make another with: kjumpctl setup --file PATH."
BOOT_MARK = Path("/var/lib/kjump/boot.json")
"""Written by whatever built the boot initrd: release, and `settings.fingerprint` then."""


@dataclass(frozen=True)
class Facts:
    """What was read of the machine; the checks know nothing else."""

    machine: str = "x86_64"
    release: str = ""
    lockdown: str = "none"
    """The active mode of /sys/kernel/security/lockdown; "none" where there is no lockdown."""
    kexec_disabled: bool = False
    jump: KjumpError | None = None
    """What the kernel said to a preserve-context load."""
    snapshot_device: bool = True
    command_line: tuple[str, ...] = ()
    foreign_image: bool = False
    target: Device | KjumpError = field(default_factory=lambda: NoTarget("No target is set."))
    target_user: str | None = None
    target_session: str = ""
    """The other machine whose session is saved on the target; empty: none."""
    target_is_ours: bool = False
    """Whether an image of ours is on the target: then its content is no one else's data."""
    sizing: Sizing | KjumpError | None = None
    available: int = 0
    """What could be had, caches reclaimed; bytes."""
    boot: Mapping[str, Any] | None = None
    """The document in boot.json, None where there is none."""
    warm: bool = False
    """Whether a helper of ours is staged already: then it needs no memory, and is not foreign."""
    fingerprint: str = ""
    """What boot.json must say for the boot initrd to be up to date."""
    told: str = ""
    """Where the kernel command line says that the target is (``kjump.target=``); empty: it does
    not."""
    told_right: bool = False
    """Whether the target is there."""


# -- the checks: one fact, one reason -------------------------------------------------------------


def machine(facts: Facts) -> KjumpError | None:
    """The entry code is x86_64's."""
    if facts.machine == "x86_64":
        return None
    return UnsupportedMachine(f"This machine is {facts.machine}.")


def lockdown(facts: Facts) -> KjumpError | None:
    """Lockdown forbids kexec_load in both its modes."""
    if facts.lockdown == "none":
        return None
    return Lockdown(f"The kernel is locked down ({facts.lockdown}).")


def kexec_disabled(facts: Facts) -> KjumpError | None:
    """The sysctl is one-way until the next boot."""
    if not facts.kexec_disabled:
        return None
    return KexecDisabled("Loading kernels with kexec is switched off on this system.")


def jump(facts: Facts) -> KjumpError | None:
    """What the probe said, unless an earlier check says it better."""
    if facts.kexec_disabled or facts.lockdown != "none":
        return facts.jump if isinstance(facts.jump, NoKexecJump) else None
    return facts.jump


def snapshot_device(facts: Facts) -> KjumpError | None:
    """The boot side restores through /dev/snapshot of the same kernel configuration."""
    for word in ("nohibernate", "hibernate=no"):
        if word in facts.command_line:
            return NoSnapshotDevice(f"The kernel was booted with {word}.")
    if facts.snapshot_device:
        return None
    return NoSnapshotDevice("The kernel has no /dev/snapshot.")


def page_poison(facts: Facts) -> KjumpError | None:
    """With poisoning, free pages have content that the kernel checks; we do not save them."""
    for word in facts.command_line:
        name, _, value = word.partition("=")
        if name == "page_poison" and value.lower() in ("1", "on", "y", "yes", "t", "true"):
            return PagePoison(f"The kernel was booted with {word}.")
    return None


def foreign_image(facts: Facts) -> KjumpError | None:
    """Somebody else's kexec image would be thrown away by ours."""
    if not facts.foreign_image or facts.warm:
        return None
    return ForeignKexecImage("A kexec image is staged.")


def target_there(facts: Facts) -> KjumpError | None:
    """Configured and present."""
    return facts.target if isinstance(facts.target, KjumpError) else None


def target_free(facts: Facts) -> KjumpError | None:
    """A partition: not mounted, not swap, nothing stacked on it."""
    if isinstance(facts.target, KjumpError) or facts.target_user is None:
        return None
    return TargetInUse(f"The target {facts.target.path} is {facts.target_user}.")


def target_size(facts: Facts) -> KjumpError | None:
    """Large enough for the smallest image."""
    if isinstance(facts.target, KjumpError) or facts.target.capacity >= SMALLEST_TARGET:
        return None
    target, needed = facts.target, f"at least {mib(SMALLEST_TARGET)} are needed."
    if target.kind == SWAP:
        return TargetTooSmall(
            f"Of the swap on {target.file or target.path} {mib(target.capacity)} are free,"
            f" {needed}",
            advice="Add swap, or close programs that are swapped out.",
        )
    return TargetTooSmall(
        f"The target {target.file or target.path} has {mib(target.capacity)}, {needed}"
    )


def target_empty(facts: Facts) -> KjumpError | None:
    """Nothing of anyone else's is on it."""
    if isinstance(facts.target, KjumpError) or facts.target_is_ours:
        return None
    if facts.target_user is not None or not facts.target.signature or facts.target.kind == SWAP:
        return None  # in use says it better; swap is to hold what the system puts there
    if facts.target.kind == FILE:
        return TargetHoldsData(
            f"The target {facts.target.file} was written to by somebody.",
            advice=ANOTHER_FILE,
        )
    return TargetHoldsData(f"The target {facts.target.path} holds data ({facts.target.signature}).")


def target_session(facts: Facts) -> KjumpError | None:
    """Another machine's session, saved and not yet resumed, is not ours to overwrite."""
    if isinstance(facts.target, KjumpError) or not facts.target_session:
        return None
    if facts.target.kind == SWAP:
        return None  # it was lost when the swap was switched on
    return TargetHoldsData(
        f"The target {facts.target.file or facts.target.path} holds the saved session of"
        f" {facts.target_session}.",
        advice=ANOTHER_FILE if facts.target.kind == FILE else None,
    )


def helper(facts: Facts) -> KjumpError | None:
    """Kernel and initrd of the helper are there and could be measured."""
    return facts.sizing if isinstance(facts.sizing, KjumpError) else None


def boot_resume(facts: Facts) -> KjumpError | None:
    """The boot initrd can resume, and looks where the image will be."""
    if facts.boot is None:
        return NoBootResume("The boot initrd was not built with kjump in it.")
    if facts.told:
        # It wins over what is in the initrd.
        if facts.told_right:
            return None
        return NoBootResume(
            f"The kernel command line says that the target is at {facts.told}, and it is not.",
            advice="Correct kjump.target= where the boot loader has it, and restart.",
        )
    if facts.boot.get("config") != facts.fingerprint:
        file = facts.target.file if isinstance(facts.target, Device) else ""
        where = f", or {file} was moved" if file else ""
        return NoBootResume(f"The boot initrd was built with another configuration{where}.")
    return None


def told_place(command_line: Iterable[str]) -> str:
    """The place in the last ``kjump.target=`` of a kernel command line; empty: none."""
    places = [w.partition("=")[2] for w in command_line if w.startswith("kjump.target=")]
    return places[-1] if places else ""


def is_told(place: str, target: Device) -> bool:
    """Whether a ``kjump.target=`` leads to this target."""
    from kjump.image.target import parse_place

    try:
        path, locator = parse_place(place)
    except KjumpError:
        return False
    real = Path(os.path.realpath(path))
    return real == target.path and (locator or 0) == (target.locator or 0)


def memory(facts: Facts) -> KjumpError | None:
    """Staging finds room for the window."""
    if facts.sizing is None or isinstance(facts.sizing, KjumpError) or facts.warm:
        return None
    need = facts.sizing.available_needed
    if facts.available >= need:
        return None
    return TooLittleMemory(
        f"Staging the helper needs {mib(need)} of available memory,"
        f" and {mib(facts.available)} are available."
    )


CHECKS: tuple[Callable[[Facts], KjumpError | None], ...] = (
    machine,
    lockdown,
    kexec_disabled,
    jump,
    snapshot_device,
    page_poison,
    foreign_image,
    target_there,
    target_free,
    target_size,
    target_empty,
    target_session,
    helper,
    boot_resume,
    memory,
)
"""In the order in which reasons are told: what no setting can change comes first."""


def reasons(facts: Facts) -> list[KjumpError]:
    """Every reason why not, the most fundamental first; empty: it can be done."""
    found = [check(facts) for check in CHECKS]
    return [reason for reason in found if reason is not None]


def availability(found: Iterable[KjumpError]) -> str:
    """``yes``; ``na`` where this machine or kernel cannot; ``no`` where it cannot now."""
    answers = {reason.availability for reason in found}
    if "na" in answers:
        return "na"
    return "no" if answers else "yes"


def mib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / (1 << 20):.0f} MiB"


def lockdown_mode(text: str) -> str:
    """The active mode in ``none [integrity] confidentiality``."""
    for word in text.split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return "none"


# -- reading --------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """A file's text, empty where it is not there or not ours to read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def available_memory(text: str, zoneinfo: str = "") -> int:
    """MemAvailable of /proc/meminfo and the free memory that it leaves out, in bytes."""
    return meminfo(text).get("MemAvailable", 0) + reclaim.in_lists(zoneinfo)


def boot_mark(path: Path = BOOT_MARK) -> Mapping[str, Any] | None:
    """What the boot initrd was built with."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


_jump_is_known = False


def probe() -> KjumpError | None:
    """Ask the kernel once; that it can is not asked again, as that never changes.

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
    """What the helper needs, or why that is not known."""
    from kjump.session import staging

    try:
        return staging.sizing(settings, release)
    except KjumpError as error:
        return error
    except OSError as error:
        return Internal(f"The helper's files could not be measured: {error}.")


def session_of_another(device: Device) -> str:
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


def holds_our_image(device: Device) -> bool:
    """Whether the target begins with a superblock or a locator of ours."""
    from kjump.image import target

    try:
        return target.examine(device.path, device.locator) is not None
    except (KjumpError, OSError):
        return False


def read(settings: Settings) -> Facts:
    """Read the machine.  Takes up to a second, so never on the main loop; never raises."""
    from kjump.machine import syscalls

    release = platform.release()
    is_x86_64 = platform.machine() == "x86_64"
    target = devices.error_or_device(settings.target.path)
    there = target if isinstance(target, Device) else None
    command_line = tuple(read_text("/proc/cmdline").split())
    told = told_place(command_line)
    return Facts(
        machine=platform.machine(),
        release=release,
        lockdown=lockdown_mode(read_text("/sys/kernel/security/lockdown")),
        kexec_disabled=read_text("/proc/sys/kernel/kexec_load_disabled").strip() == "1",
        jump=probe() if is_x86_64 else None,
        snapshot_device=os.path.exists("/dev/snapshot"),
        command_line=command_line,
        foreign_image=syscalls.kexec_loaded(),
        target=target,
        target_user=devices.user_of(there) if there and there.kind == PARTITION else None,
        target_session=session_of_another(there) if there else "",
        target_is_ours=holds_our_image(there) if there else False,
        sizing=measure(settings, release),
        available=available_memory(read_text("/proc/meminfo"), reclaim.read_zoneinfo()),
        boot=boot_mark(),
        fingerprint=configuration.fingerprint(settings, there.place if there else ""),
        told=told,
        told_right=is_told(told, there) if told and there else False,
    )

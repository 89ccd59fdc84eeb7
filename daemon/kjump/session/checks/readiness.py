# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this machine hibernate by kexec jump, now?  And if not, every reason why.

Runs in the session.  `read` collects facts, the checks are pure functions over them, and
`reasons` is what CanHibernate answers and Hibernate obeys: the same code.  Nothing here changes
the machine, but for one probe of the kernel that stages nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kjump.errors import (
    ForeignKexecImage,
    KexecDisabled,
    KjumpError,
    Lockdown,
    NoBootResume,
    NoKexecJump,
    NoSnapshotDevice,
    PagePoison,
    TargetHoldsData,
    TargetInUse,
    TargetTooSmall,
    TooLittleMemory,
    UnsupportedMachine,
)
from kjump.image.target import SMALLEST
from kjump.machine.cmdline import hibernation_off
from kjump.session.checks.facts import Facts
from kjump.session.target.devices import FILE, SWAP, TargetDevice

ANOTHER_FILE = "Make another with: kjumpctl setup --file PATH."


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
    for word in hibernation_off(facts.command_line):
        return NoSnapshotDevice(f"The kernel was booted with {word}.")
    if facts.snapshot_device:
        return None
    return NoSnapshotDevice("The kernel has no /dev/snapshot.")


def page_poison(facts: Facts) -> KjumpError | None:
    """With poisoning, free pages have content that the kernel checks; we do not save them."""
    if not facts.command_line.may_be_on("page_poison"):
        return None
    word = facts.command_line.all("page_poison")[-1]
    return PagePoison(f"The kernel was booted with {word}.")


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
    if isinstance(facts.target, KjumpError) or facts.target.capacity >= SMALLEST:
        return None
    target, needed = facts.target, f"at least {mib(SMALLEST)} are needed."
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
    if facts.cmdline_target:
        # It wins over what is in the initrd.
        if facts.cmdline_target_matches:
            return None
        return NoBootResume(
            f"The kernel command line has kjump.target={facts.cmdline_target}, which does not lead"
            " to the target.",
            advice="Correct kjump.target= in the boot loader's configuration, and restart.",
        )
    if facts.boot_misses:
        return NoBootResume(
            f"The boot initrd would look for the target at {facts.boot_misses}, and that is not"
            " the target.",
            advice="Name the target by its PARTUUID= in /etc/kjump/kjump.conf, then run: kjumpctl"
            " update-initrd.",
        )
    if facts.boot.get("config") != facts.fingerprint:
        file = facts.target.file if isinstance(facts.target, TargetDevice) else ""
        where = f", or {file} was moved" if file else ""
        return NoBootResume(f"The boot initrd was built with another configuration{where}.")
    return None


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


# -- reading --------------------------------------------------------------------------------------

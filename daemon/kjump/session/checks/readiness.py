# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this machine hibernate by kexec jump, now?  And if not, every reason why.

Runs in the session.  `CHECKS` is the table of all checks: pure functions over `Facts`, with the
sentences for ``kjumpctl doctor``.  `reasons` is what CanHibernate answers and Hibernate obeys: the
same code.  Nothing here changes the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
from kjump.session.checks.facts import Facts, target_facts
from kjump.session.staging.sizing import Sizing
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
    """The answer of the probe, unless an earlier check explains it better."""
    if facts.kexec_disabled or facts.lockdown != "none":
        return facts.jump if isinstance(facts.jump, NoKexecJump) else None
    return facts.jump


def snapshot_device(facts: Facts) -> KjumpError | None:
    """The boot kernel, of the same configuration, restores through /dev/snapshot."""
    for word in hibernation_off(facts.command_line):
        return NoSnapshotDevice(f"The kernel was booted with {word}.")
    if facts.snapshot_device:
        return None
    return NoSnapshotDevice("The kernel has no /dev/snapshot.")


def page_poison(facts: Facts) -> KjumpError | None:
    """With poisoning, the kernel checks the content of free pages, and we do not save them."""
    if not facts.command_line.may_be_on("page_poison"):
        return None
    word = facts.command_line.all("page_poison")[-1]
    return PagePoison(f"The kernel was booted with {word}.")


def foreign_image(facts: Facts) -> KjumpError | None:
    """Loading ours would throw away another program's kexec image."""
    if not facts.foreign_image or facts.warm:
        return None
    return ForeignKexecImage("A kexec image is loaded.")


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
            f"The swap on {target.file or target.path} has {mib(target.capacity)} free, {needed}",
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
        return None  # "in use" explains it better; swap holds what the system puts there
    if facts.target.kind == FILE:
        return TargetHoldsData(
            f"Something else was written to the target {facts.target.file}.",
            advice=ANOTHER_FILE,
        )
    if facts.target.signature == "swap":
        return TargetHoldsData(
            f"The target {facts.target.path} is a swap area that is switched off.",
            advice=f"Switch it on with: swapon {facts.target.path}.  Or name another target.",
        )
    return TargetHoldsData(f"The target {facts.target.path} holds data ({facts.target.signature}).")


def target_session(facts: Facts) -> KjumpError | None:
    """Another machine's session, saved and not yet resumed, is not ours to overwrite."""
    if isinstance(facts.target, KjumpError) or not facts.target_session:
        return None
    if facts.target.kind == SWAP:
        return None  # it was lost when that swap was switched on
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
        # It takes precedence over what is in the initrd.
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
        moved = f", or {file} was moved" if file else ""
        return NoBootResume(f"The boot initrd was built with another configuration{moved}.")
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


def window(facts: Facts) -> KjumpError | None:
    """Staging finds a run of memory that the kernel does not keep for itself."""
    return None if facts.warm else facts.window


# -- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Something that a check looks at, and that may be missing."""

    missing: str
    """That it is, as the end of "Not looked at: "."""
    there: Callable[[Facts], bool]


@dataclass(frozen=True)
class Check:
    """One line of the table: all that there is to a check."""

    name: str
    """As ``kjumpctl doctor`` shows it."""
    judge: Callable[[Facts], KjumpError | None]
    """The reason why this machine cannot hibernate; None: this is none.  Pure."""
    fine: Callable[[Facts], str]
    """The sentence if there is no reason."""
    needs: tuple[Need, ...] = ()

    def not_looked_at(self, facts: Facts) -> str:
        """What is missing, so that the check says nothing; empty: it has all it needs."""
        return next((need.missing for need in self.needs if not need.there(facts)), "")


def is_there(facts: Facts) -> bool:
    """Whether the target is."""
    return isinstance(facts.target, TargetDevice)


TARGET = Need("there is no target", is_there)
HELPER = Need(
    "there is no helper to measure", lambda facts: not isinstance(facts.sizing, KjumpError)
)
KEXEC = Need(
    "kexec is not allowed", lambda facts: not facts.kexec_disabled and facts.lockdown == "none"
)

CHECKS = (
    Check("machine", machine, lambda facts: f"The machine is {facts.machine}."),
    Check("lockdown", lockdown, lambda _: "The kernel is not locked down."),
    Check("kexec-disabled", kexec_disabled, lambda _: "Loading kernels with kexec is allowed."),
    Check(
        "jump",
        jump,
        lambda facts: f"The kernel {facts.release} can jump and come back (CONFIG_KEXEC_JUMP).",
        (KEXEC,),
    ),
    Check(
        "snapshot-device",
        snapshot_device,
        lambda _: "The kernel can load an image (/dev/snapshot).",
    ),
    Check("page-poison", page_poison, lambda _: "The kernel does not poison free pages."),
    Check(
        "foreign-image",
        foreign_image,
        lambda facts: (
            "A warm helper is loaded." if facts.warm else "No other kexec image is loaded."
        ),
    ),
    Check(
        "target-there", target_there, lambda facts: f"The target is there: {name_of(facts.target)}."
    ),
    Check("target-free", target_free, lambda _: "Nobody else uses the target.", (TARGET,)),
    Check(
        "target-size",
        target_size,
        lambda facts: f"The target has {mib(room_of(facts.target))}.",
        (TARGET,),
    ),
    Check(
        "target-empty", target_empty, lambda _: "The target holds nobody else's data.", (TARGET,)
    ),
    Check(
        "target-session",
        target_session,
        lambda _: "The target holds no session of another machine.",
        (TARGET,),
    ),
    Check("helper", helper, lambda _: "The helper's kernel and initrd are there."),
    Check(
        "boot-resume",
        boot_resume,
        lambda _: "The boot initrd was made with this configuration.",
    ),
    Check(
        "memory",
        memory,
        lambda facts: (
            f"{mib(facts.available)} of memory are available,"
            f" {mib(needed(facts))} are needed to stage the helper."
        ),
        (HELPER,),
    ),
    Check("window", window, lambda _: "There is room below 4 GiB for the helper.", (HELPER,)),
)
"""In the order in which reasons are given: what no setting can change comes first."""

TARGET_CHECKS = tuple(check for check in CHECKS if TARGET in check.needs)
"""Those that look at nothing but the target."""


def reasons(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[KjumpError]:
    """Every reason why not, the most fundamental first; empty: it can be done."""
    found = [check.judge(facts) for check in checks]
    return [reason for reason in found if reason is not None]


def target_reasons(target: TargetDevice) -> list[KjumpError]:
    """Every reason why this device or file cannot be the target.  Reads the device."""
    return reasons(target_facts(target), TARGET_CHECKS)


def availability(found: Iterable[KjumpError]) -> str:
    """``yes``; ``na`` if this machine or kernel cannot; ``no`` if it cannot now."""
    answers = {reason.availability for reason in found}
    if "na" in answers:
        return "na"
    return "no" if answers else "yes"


def mib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / (1 << 20):.0f} MiB"


def name_of(target: TargetDevice | KjumpError) -> str:
    """The target for a person."""
    if isinstance(target, KjumpError):
        return ""
    if target.kind == SWAP:
        kind = f"swap file {target.file}" if target.file else "swap partition"
        return f"{kind} on {target.path}" if target.file else f"{kind} {target.path}"
    return f"file {target.file} on {target.path}" if target.kind == FILE else str(target.path)


def room_of(target: TargetDevice | KjumpError) -> int:
    """Bytes that an image may have; 0 without a target."""
    return 0 if isinstance(target, KjumpError) else target.capacity


def needed(facts: Facts) -> int:
    """Bytes of available memory that staging needs; 0 if that is not known."""
    return facts.sizing.available_needed if isinstance(facts.sizing, Sizing) else 0

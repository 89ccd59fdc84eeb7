# SPDX-License-Identifier: GPL-2.0-or-later
"""Every readiness check with its result: what ``kjumpctl doctor`` shows of the machine.

Runs in the session, as root.  It shows the checks of `kjump.session.checks.readiness`, and adds
what may go wrong later: a target that may become too small, an outdated initrd, another kernel at
the next boot.  Nothing here changes the machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kjump import VERSION
from kjump.errors import (
    KjumpError,
    NoBootResume,
    NoHelperInitrd,
    NoSnapshotDevice,
    TargetTooSmall,
)
from kjump.machine import displays
from kjump.session import kernels
from kjump.session.checks import readiness
from kjump.session.checks.facts import Facts, read_text
from kjump.session.checks.readiness import mib
from kjump.session.staging import helper_record
from kjump.session.staging.describe import MountedFileSystem, mounted_file_systems
from kjump.session.staging.helper_record import HelperRecord
from kjump.session.target import claim
from kjump.session.target.swaps import SwapArea, read_swaps
from kjump.settings import Settings

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
GRUB = Path("/etc/default/grub")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: str
    """`OK`; `WARNING`: works now, may not later; `FAILED`: hibernation is refused, or a session
    would be lost; `SKIPPED`: could not be checked."""
    sentence: str
    error: str = ""
    """Name of the error, see `kjump.errors`; empty if there is none."""
    advice: str = ""

    def texts(self) -> tuple[str, str, str, str, str]:
        """As the bus has it."""
        return self.name, self.state, self.error, self.sentence, self.advice


def failed(name: str, error: KjumpError) -> Finding:
    """A check that found this."""
    return Finding(name, FAILED, error.what, error.name, error.todo)


def warning(name: str, error: KjumpError) -> Finding:
    """The same, if it does not prevent hibernation yet."""
    return Finding(name, WARNING, error.what, error.name, error.todo)


@dataclass(frozen=True)
class Surroundings:
    """What was read besides `Facts`."""

    largest_image: int = 0
    """Bytes that any image of this machine fits into."""
    helper: HelperRecord = field(default_factory=HelperRecord)
    """What is recorded of the helper's initrd; empty if nothing is."""
    helper_made: float = 0.0
    modules_made: float = 0.0
    """Seconds since 1970: when the helper's initrd and the running kernel's modules were made."""
    plymouth: bool = False
    """Whether the helper's initrd is to have Plymouth, as configured."""
    displays: tuple[str, ...] = ()
    """Modules that drive this session's displays."""
    installed: tuple[str, ...] = ()
    """Releases of the kernels that are installed, oldest first."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Configuration of each of them, as text; empty if it is not known."""
    grub_default: str | None = None
    """GRUB_DEFAULT; None if it is not set."""
    swaps: tuple[SwapArea, ...] = ()
    file_systems: tuple[MountedFileSystem, ...] = ()
    """Those that are mounted."""


# -- the checks of readiness -----------------------------------------------------------------------


def of_readiness(facts: Facts) -> list[Finding]:
    """Each check of readiness, in its order."""
    out = []
    for check in readiness.CHECKS:
        reason = check.judge(facts)
        if reason is not None:
            out.append(failed(check.name, reason))
        elif missing := check.not_looked_at(facts):
            out.append(Finding(check.name, SKIPPED, f"Not looked at: {missing}."))
        else:
            out.append(Finding(check.name, OK, check.fine(facts)))
    return out


# -- more than readiness ---------------------------------------------------------------------------


def room(facts: Facts, more: Surroundings) -> Finding:
    """Whether the target is large largest_image whatever is in memory."""
    name = "target-room"
    if isinstance(facts.target, KjumpError):
        return Finding(name, SKIPPED, "Not looked at: there is no target.")
    capacity = facts.target.capacity
    if capacity >= more.largest_image:
        return Finding(name, OK, f"Any image fits: it has {mib(more.largest_image)} at most.")
    return warning(
        name,
        TargetTooSmall(
            f"The target has {mib(capacity)}.  If memory is full of data that does not compress,"
            f" {mib(more.largest_image)} are needed.",
            advice="Use a larger target to be safe.  If it turns out too small while saving, the"
            " session comes back.",
        ),
    )


def helper_age(facts: Facts, more: Surroundings) -> Finding:
    """Whether the helper's initrd is this kjump's, and as new as the kernel's modules."""
    name = "helper-age"
    if isinstance(facts.sizing, KjumpError):
        return Finding(name, SKIPPED, "Not looked at: there is no helper.")
    version = more.helper.version
    if version and version != VERSION:
        what = f"The helper's initrd is from kjump {version}, this is kjump {VERSION}."
        return failed(name, NoHelperInitrd(what))
    if more.helper_made and more.helper_made < more.modules_made:
        what = f"The modules of {facts.release} have changed since the helper's initrd was made."
        return warning(name, NoHelperInitrd(what))
    if version and more.helper.plymouth != more.plymouth:
        what = f"The helper's initrd was made {'without' if more.plymouth else 'with'} Plymouth."
        return warning(name, NoHelperInitrd(what))
    foreign = sorted({*more.helper.displays} - {*more.displays})
    if foreign:
        what = (
            f"The helper drives the display with {', '.join(foreign)}, and this session does not:"
            " its screen may stay dark afterwards."
        )
        return warning(name, NoHelperInitrd(what))
    return Finding(name, OK, f"The helper's initrd is kjump {VERSION}'s, made for {facts.release}.")


def grub_default(text: str) -> str | None:
    """GRUB_DEFAULT of /etc/default/grub, a shell fragment."""
    found = re.findall(r"^\s*GRUB_DEFAULT=(.*?)\s*(?:#.*)?$", text, re.MULTILINE)
    return found[-1].strip("\"' ") if found else None


def next_boot(facts: Facts, more: Surroundings) -> Finding:
    """Whether the kernel that boots next can resume.  The newest does, as far as we can see."""
    name = "next-boot"
    if more.grub_default not in (None, "", "0"):
        return Finding(
            name,
            WARNING,
            f"GRUB_DEFAULT={more.grub_default} chooses the kernel that boots next;"
            " it could not be checked.",
            advice="Make sure that its boot initrd contains kjump.",
        )
    if not more.installed:
        return Finding(
            name,
            WARNING,
            "No installed kernel was found.",
            advice="Make sure that the boot initrd of the kernel that boots next contains kjump.",
        )
    release = more.installed[-1]
    config = more.configs.get(release, "")
    if config and "CONFIG_HIBERNATION_SNAPSHOT_DEV=y" not in config:
        what = f"The kernel that boots next, {release}, cannot load an image."
        return failed(name, NoSnapshotDevice(what))
    releases = (facts.boot or {}).get("releases")
    if isinstance(releases, Mapping) and not facts.cmdline_target:
        if release not in releases:
            what = f"The boot initrd of {release}, which boots next, was not made with kjump."
            return failed(name, NoBootResume(what))
        if releases[release] != facts.fingerprint:
            what = f"The boot initrd of {release}, which boots next, has another configuration."
            return failed(name, NoBootResume(what))
    return Finding(name, OK, f"The newest kernel, {release}, which should boot next, can resume.")


def swap(facts: Facts, more: Surroundings) -> Finding:
    """What swap there is.  Informational only."""
    total, free = (sum(getattr(a, k) for a in more.swaps) for k in ("size", "free"))
    words = f"{mib(total)} of swap, {mib(free)} free." if more.swaps else "None; none is needed."
    return Finding("swap", OK, words)


UNCHANGING = ("squashfs", "erofs", "iso9660", "udf", "cramfs")
"""File systems that mounting does not change."""


def has_no_fingerprint(file_system: MountedFileSystem) -> bool:
    """Whether the helper cannot find its device, so that it has nothing to compare at the resume.

    A loop device is in a file of another file system, and memory (zram) does not outlive the power.
    /dev/fuse is no device with data on it: a program that provides files names it if it has no
    other name.
    """
    elsewhere = ("/dev/loop", "/dev/zram", "/dev/fuse")
    if file_system.kind in UNCHANGING or file_system.source.startswith(elsewhere):
        return False
    return bool(file_system.mapped) or not file_system.links


def fingerprints(_facts: Facts, more: Surroundings) -> Finding:
    """Whether a resume would notice that another system has mounted a file system."""
    name = "file-systems"
    without = [x for x in more.file_systems if has_no_fingerprint(x)]
    if not without:
        return Finding(name, OK, "A resume notices if another system has mounted a file system.")
    count = len(without)
    what = ", ".join(f"{x.point} ({x.kind} on {x.source})" for x in without)
    return Finding(
        name,
        WARNING,
        f"{count} mounted file system{'s' * (count > 1)} cannot be checked at the resume: {what}.",
        advice="While a session is saved, mount none of them in another system: the resume would"
        " not notice, and would damage it.",
    )


MORE: tuple[Callable[[Facts, Surroundings], Finding], ...] = (
    room,
    helper_age,
    next_boot,
    fingerprints,
    swap,
)


def examine(facts: Facts, more: Surroundings, reasons: Iterable[KjumpError] = ()) -> list[Finding]:
    """All findings, in the order in which they are shown: those of readiness first.

    ``reasons``: what CanHibernate would answer; one that no check has found is a finding, too.
    """
    found = of_readiness(facts)
    known = {finding.error for finding in found}
    found += [failed("can-hibernate", reason) for reason in reasons if reason.name not in known]
    return [*found, *(check(facts, more) for check in MORE)]


def worst(findings: Iterable[Finding]) -> str:
    """`FAILED`, `WARNING` or `OK`."""
    states = {finding.state for finding in findings}
    return next((state for state in (FAILED, WARNING) if state in states), OK)


# -- reading ---------------------------------------------------------------------------------------


def recorded(initrd: Path) -> HelperRecord:
    """What is recorded of the helper's initrd; empty if nothing is, or if that is damaged."""
    try:
        return helper_record.read(initrd)
    except KjumpError:
        return HelperRecord()  # the check "helper" reports it


def modified_at(path: Path) -> float:
    """When a file was written: seconds since 1970; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def newer_modules(settings: Settings, release: str) -> Finding | None:
    """The warning of `helper_age` alone, for kjumpctl: kjumpd does not see the modules."""
    initrd = modified_at(settings.helper.initrd_of(release))
    found = helper_age(
        Facts(release=release),
        Surroundings(
            helper_made=initrd,
            modules_made=modified_at(kernels.MODULES / release / "modules.dep"),
        ),
    )
    return found if found.state == WARNING else None


def configurations(releases: Sequence[str], boot: Path = kernels.BOOT) -> dict[str, str]:
    """The kernels' configurations, as text."""
    found = {}
    for release in releases:
        places = (boot / f"config-{release}", kernels.MODULES / release / "config")
        found[release] = next((t for t in map(read_text, map(str, places)) if t), "")
    return found


def read_surroundings(settings: Settings, facts: Facts) -> Surroundings:
    """Read what `examine` judges besides the facts.  Never raises."""
    releases = kernels.installed()
    initrd = settings.helper.initrd_of(facts.release)
    return Surroundings(
        largest_image=claim.largest_image_size(),
        helper=recorded(initrd),
        helper_made=modified_at(initrd),
        plymouth=settings.helper.plymouth,
        displays=tuple(displays.drivers()),
        modules_made=modified_at(kernels.MODULES / facts.release / "modules.dep"),
        installed=tuple(releases),
        configs=configurations(releases[-1:]),
        grub_default=grub_default(read_text(str(GRUB))),
        swaps=tuple(read_swaps()),
        file_systems=tuple(mounted_file_systems()),
    )

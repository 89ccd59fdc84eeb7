# SPDX-License-Identifier: GPL-2.0-or-later
"""Every readiness check with its result: what ``kjumpctl doctor`` shows of the machine.

Runs in the session, as root.  It judges what `kjump.session.checks.readiness` judges, with the same
functions, and besides what may go wrong later: a target that may become too small, an initrd that
is behind, another kernel at the next boot.  Nothing here changes the machine.
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
from kjump.session.staging.helper_record import HelperRecord
from kjump.session.target import claim
from kjump.session.target.devices import FILE, SWAP, TargetDevice
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
    would be lost; `SKIPPED`: could not be looked at."""
    sentence: str
    error: str = ""
    """Name of the error, see `kjump.errors`; empty where there is none."""
    advice: str = ""

    def texts(self) -> tuple[str, str, str, str, str]:
        """As the bus has it."""
        return self.name, self.state, self.error, self.sentence, self.advice


def failed(name: str, error: KjumpError) -> Finding:
    """A check that found this."""
    return Finding(name, FAILED, error.what, error.name, error.todo)


def warning(name: str, error: KjumpError) -> Finding:
    """The same where it stops nothing yet."""
    return Finding(name, WARNING, error.what, error.name, error.todo)


@dataclass(frozen=True)
class Surroundings:
    """What was read besides `Facts`."""

    enough: int = 0
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
    """Configuration of each of them, as text; empty where it is not known."""
    grub_default: str | None = None
    """GRUB_DEFAULT; None where it is not set."""
    swaps: tuple[SwapArea, ...] = ()


# -- the checks of readiness -----------------------------------------------------------------------

FINE: dict[str, Callable[[Facts], str]] = {
    "machine": lambda facts: f"The machine is {facts.machine}.",
    "lockdown": lambda facts: "The kernel is not locked down.",
    "kexec_disabled": lambda facts: "Loading kernels with kexec is allowed.",
    "jump": lambda facts: f"The kernel {facts.release} can jump and come back (CONFIG_KEXEC_JUMP).",
    "snapshot_device": lambda facts: "The kernel can load an image (/dev/snapshot).",
    "page_poison": lambda facts: "The kernel does not poison free pages.",
    "foreign_image": lambda facts: (
        "No other kexec image is loaded." if not facts.warm else "A warm helper is loaded."
    ),
    "target_there": lambda facts: f"The target is there: {name_of(facts.target)}.",
    "target_free": lambda facts: "Nobody else uses the target.",
    "target_size": lambda facts: f"The target has {mib(room_of(facts.target))}.",
    "target_empty": lambda facts: "The target holds no data of anyone else's.",
    "target_session": lambda facts: "The target holds no session of another machine.",
    "helper": lambda facts: "The helper's kernel and initrd are there.",
    "boot_resume": lambda facts: "The boot initrd was made with this configuration.",
    "memory": lambda facts: (
        f"{mib(facts.available)} of memory are available,"
        f" {mib(needed(facts))} are needed to stage the helper."
    ),
}
"""What is said where a check of readiness finds nothing, by the check's name."""

NEEDS_TARGET = {"target_free", "target_size", "target_empty", "target_session"}


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
    """Bytes of available memory that staging needs; 0 where that is not known."""
    sizing = facts.sizing
    return 0 if sizing is None or isinstance(sizing, KjumpError) else sizing.available_needed


def not_looked_at(name: str, facts: Facts) -> str:
    """Why a check of readiness could say nothing; empty: it could."""
    if name in NEEDS_TARGET and isinstance(facts.target, KjumpError):
        return "there is no target"
    if name == "jump" and (facts.kexec_disabled or facts.lockdown != "none"):
        return "kexec is not allowed"
    if name == "memory" and isinstance(facts.sizing, KjumpError):
        return "there is no helper to measure"
    return ""


def of_readiness(facts: Facts) -> list[Finding]:
    """Each check of readiness, in its order."""
    out = []
    for check in readiness.CHECKS:
        key = check.__name__
        name = key.replace("_", "-")
        reason = check(facts)
        if reason is not None:
            out.append(failed(name, reason))
        elif missing := not_looked_at(key, facts):
            out.append(Finding(name, SKIPPED, f"Not looked at: {missing}."))
        else:
            say = FINE.get(key)
            words = say(facts) if say else (check.__doc__ or name).split("\n")[0]
            out.append(Finding(name, OK, words))
    return out


# -- more than readiness ---------------------------------------------------------------------------


def room(facts: Facts, more: Surroundings) -> Finding:
    """Whether the target is large enough whatever is in memory."""
    name = "target-room"
    if isinstance(facts.target, KjumpError):
        return Finding(name, SKIPPED, "Not looked at: there is no target.")
    capacity = facts.target.capacity
    if capacity >= more.enough:
        return Finding(name, OK, f"Whatever is in memory fits: {mib(more.enough)} at the most.")
    return warning(
        name,
        TargetTooSmall(
            f"The target has {mib(capacity)}.  Where memory is full of what does not compress,"
            f" {mib(more.enough)} are needed.",
            advice="A larger target is always enough; one that is too small is noticed while"
            " saving, and the session comes back.",
        ),
    )


def helper_age(facts: Facts, more: Surroundings) -> Finding:
    """Whether the helper's initrd is this kjump's, and as new as the kernel's modules."""
    name = "helper-age"
    if isinstance(facts.sizing, KjumpError):
        return Finding(name, SKIPPED, "Not looked at: there is no helper.")
    version = more.helper.version
    if version and version != VERSION:
        what = f"The helper's initrd is of kjump {version}, this is {VERSION}."
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
            f"The helper drives the display with {', '.join(foreign)}, which this session does"
            " not: its screen may stay dark afterwards."
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
            advice="See that it is one with kjump's boot initrd.",
        )
    if not more.installed:
        return Finding(
            name,
            WARNING,
            "No installed kernel was found.",
            advice="See that the kernel that boots next has kjump's initrd.",
        )
    release = more.installed[-1]
    config = more.configs.get(release, "")
    if config and "CONFIG_HIBERNATION_SNAPSHOT_DEV=y" not in config:
        what = f"The kernel that boots next, {release}, cannot load an image."
        return failed(name, NoSnapshotDevice(what))
    releases = (facts.boot or {}).get("releases")
    if isinstance(releases, Mapping) and not facts.told:
        if release not in releases:
            what = f"The boot initrd of {release}, which boots next, was not made with kjump."
            return failed(name, NoBootResume(what))
        if releases[release] != facts.fingerprint:
            what = f"The boot initrd of {release}, which boots next, has another configuration."
            return failed(name, NoBootResume(what))
    return Finding(name, OK, f"The newest kernel, {release}, which should boot next, can resume.")


def swap(facts: Facts, more: Surroundings) -> Finding:
    """What swap there is.  It stops nothing; who looks for it wants to know."""
    total, free = (sum(getattr(a, k) for a in more.swaps) for k in ("size", "free"))
    words = f"{mib(total)} of swap, {mib(free)} free." if more.swaps else "None; none is needed."
    return Finding("swap", OK, words)


MORE: tuple[Callable[[Facts, Surroundings], Finding], ...] = (room, helper_age, next_boot, swap)


def examine(facts: Facts, more: Surroundings, reasons: Iterable[KjumpError] = ()) -> list[Finding]:
    """All findings, in the order in which they are told: those of readiness first.

    ``reasons``: what CanHibernate would say; one that no check has found is a finding, too.
    """
    found = of_readiness(facts)
    told = {finding.error for finding in found}
    found += [failed("can-hibernate", reason) for reason in reasons if reason.name not in told]
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


def made(path: Path) -> float:
    """When a file was written: seconds since 1970; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def newer_modules(settings: Settings, release: str) -> Finding | None:
    """The warning of `helper_age` alone: for who sees the modules, which kjumpd does not."""
    initrd = made(settings.helper.initrd_of(release))
    found = helper_age(
        Facts(release=release),
        Surroundings(
            helper_made=initrd, modules_made=made(kernels.MODULES / release / "modules.dep")
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


def read(settings: Settings, facts: Facts) -> Surroundings:
    """Read what `examine` judges besides the facts.  Never raises."""
    releases = kernels.installed()
    initrd = settings.helper.initrd_of(facts.release)
    return Surroundings(
        enough=claim.largest_image_size(),
        helper=recorded(initrd),
        helper_made=made(initrd),
        plymouth=settings.helper.plymouth,
        displays=tuple(displays.drivers()),
        modules_made=made(kernels.MODULES / facts.release / "modules.dep"),
        installed=tuple(releases),
        configs=configurations(releases[-1:]),
        grub_default=grub_default(read_text(str(GRUB))),
        swaps=tuple(read_swaps()),
    )

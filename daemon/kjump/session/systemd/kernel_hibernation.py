# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own hibernation: may `systemd-sleep` be tried if a jump is not possible?

Runs in the session, in kjumpd and in kjumpctl.  `why_not` decides from what `read_state` has read.
It is stricter than systemd: with kjump's drop-ins logind no longer looks at swap, and kjumpd may
have named a swap area to the kernel that no boot resumes from
(`kjump.session.systemd.resume_device`).  A session is lost if it is written where nobody looks for
it, so everything uncertain is refused.

Nothing here writes to the machine except `offer`, which makes logind offer hibernation or not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kjump import atomic
from kjump.errors import BadRequest, Busy, Inhibited, Interrupted, KjumpError, NotAuthorized
from kjump.machine import cmdline
from kjump.machine.cmdline import CommandLine, kernel_resume_off
from kjump.machine.memory import read_meminfo
from kjump.session.target.swaps import SwapArea, read_swaps
from kjump.settings import KERNEL_HIBERNATION

PROGRAM = Path("/usr/lib/systemd/systemd-sleep")
POWER = Path("/sys/power")
RESUME_DEVICE_RECORD = Path("/run/kjump/resume")
"""What kjumpd wrote to /sys/power/resume: that no boot initrd asked for."""
OFFER = Path("/run/systemd/sleep.conf.d/60-kjump.conf")
"""Read by logind at each question (sleep.conf.d(5)); there while nothing can hibernate here."""
OFFER_TEXT = """\
# Put here by kjumpd while neither kjump nor the kernel's own hibernation is possible: see
# "kjumpctl can-hibernate". Taken away as soon as one is.
[Sleep]
AllowHibernation=no
"""
THRESHOLD = 0.98
"""Of free swap, that anonymous memory in use may take: as systemd has it
(HIBERNATION_SWAP_THRESHOLD of src/shared/hibernate-util.c)."""


@dataclass(frozen=True)
class KernelHibernation:
    """What was read of the machine."""

    program: bool = True
    """Whether systemd-sleep is there."""
    state: str = "freeze mem disk"
    """Text of /sys/power/state."""
    disk: str = "[platform] shutdown reboot"
    """Text of /sys/power/disk."""
    command_line: CommandLine = field(default_factory=CommandLine)
    resume: str = "0:0"
    """Text of /sys/power/resume."""
    recorded: str = ""
    """What kjumpd wrote there, by its own record; empty: nothing."""
    swaps: tuple[SwapArea, ...] = ()
    """Those in use that are not in memory (zram)."""
    anonymous: int = 0
    """Active(anon) of /proc/meminfo, bytes."""


# -- deciding ------------------------------------------------------------------------------------


def resumed_from(facts: KernelHibernation) -> str:
    """Number of the device that boots resume from; empty: none is known.

    A boot whose initrd looks there (initramfs-tools, dracut and systemd alike write the number to
    /sys/power/resume) leaves the number in the kernel.  A ``resume=`` on the command line proves
    less: it may name a device that does not exist, or nothing may read it.
    """
    resume = facts.resume.strip()
    return "" if resume in ("", "0:0", facts.recorded.strip()) else resume


def why_not(facts: KernelHibernation) -> str:
    """Why the kernel's own hibernation must not be tried, as a sentence; empty: it may be."""
    if not facts.program:
        return f"{PROGRAM} does not exist."
    for word in kernel_resume_off(facts.command_line):
        return f"The kernel was booted with {word}."
    if "disk" not in facts.state.split() or facts.disk.split()[:1] == ["[disabled]"]:
        return "The kernel itself offers no hibernation."
    if not facts.swaps:
        return "No swap is in use."
    device = resumed_from(facts)
    if not device:
        return "No boot is known to resume from swap: this one did not look for an image (resume=)."
    there = [swap for swap in facts.swaps if swap.device == device]
    if not there:
        return f"The swap on {device}, which boots resume from, is not in use."
    free = max(swap.free for swap in there)
    if facts.anonymous > free * THRESHOLD:
        return (
            f"Only {free >> 20} MiB of swap are free, and programs use {facts.anonymous >> 20} MiB"
            " of memory."
        )
    return ""


def is_reason(error: KjumpError) -> bool:
    """Whether the kernel's own hibernation could avoid an error from before the jump: one about the
    machine, not about who asked or when."""
    return not isinstance(error, BadRequest | Busy | Inhibited | Interrupted | NotAuthorized)


@dataclass(frozen=True)
class Decision:
    """What is done instead of a jump that is not possible."""

    fall_back: bool
    why_not: str = ""
    """As a sentence; empty if it is done, or was not asked for."""


def decide(error: KjumpError, *, jumped: bool, fallback: str, facts: KernelHibernation) -> Decision:
    """Whether to go on with systemd-sleep after this error.  ``fallback``: [Session] Fallback=."""
    if jumped or not is_reason(error):
        return Decision(False)
    if fallback != KERNEL_HIBERNATION:
        return Decision(False, "The configuration has Fallback=none.")
    reason = why_not(facts)
    return Decision(not reason, reason)


def offered(possible: bool, fallback: str, facts: KernelHibernation) -> bool:
    """Whether anything can hibernate this machine.  ``possible``: kjump can."""
    return possible or (fallback == KERNEL_HIBERNATION and not why_not(facts))


# -- reading and writing -------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_state() -> KernelHibernation:
    """Read the machine.  Never raises."""
    return KernelHibernation(
        program=os.access(PROGRAM, os.X_OK),
        state=_text(POWER / "state"),
        disk=_text(POWER / "disk"),
        command_line=cmdline.read(),
        resume=_text(POWER / "resume"),
        recorded=_text(RESUME_DEVICE_RECORD),
        swaps=tuple(area for area in read_swaps() if not area.in_memory),
        anonymous=read_meminfo().get("Active(anon)", 0),
    )


def offer(yes: bool, path: Path = OFFER) -> bool:
    """Make logind offer hibernation, or not; returns whether that is a change.  Raises OSError."""
    if yes:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, OFFER_TEXT)
    return True


def command() -> Sequence[str]:
    """The command for the kernel's own hibernation, as in systemd-hibernate.service."""
    return (str(PROGRAM), "hibernate")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Letting logind offer hibernation on a machine that has swap and was not booted by EFI.

Runs in the session.  logind refuses to hibernate there unless the kernel knows a device to resume
from (systemd 255 and later, hibernation_is_safe() of hibernate-util.c: "Not running on EFI and
resume= is not set"), although with kjump's drop-ins it is kjump that hibernates and knows where to
resume from.  So kjumpd names a swap area that is in use to the kernel.  The kernel looks for an
image of its own there at once and finds none: swap that holds one cannot be in use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kjump.errors import KjumpError
from kjump.machine.cmdline import SYSTEM_NO_RESUME, CommandLine
from kjump.machine.ranges import PAGE
from kjump.session.systemd import kernel_hibernation
from kjump.session.target import files, swaps
from kjump.session.target.devices import SWAP, TargetDevice
from kjump.session.target.swaps import SwapArea

EFI = Path("/sys/firmware/efi")


def needs_resume_device(
    *, efi: bool, resume: str, command_line: CommandLine, recorded: str = ""
) -> bool:
    """Whether logind waits for a resume device.  ``resume``: text of /sys/power/resume;
    ``recorded``: what we wrote there, which may have changed since."""
    return (
        not efi and resume.strip() in ("0:0", recorded) and not command_line.has(SYSTEM_NO_RESUME)
    )


def resume_device(
    target: TargetDevice | KjumpError, areas: Sequence[SwapArea]
) -> tuple[str, int] | None:
    """(major:minor, first page) of the swap area to name: the target, else the first in use."""
    if isinstance(target, TargetDevice) and target.kind == SWAP:
        return target.number, (target.locator or 0) // PAGE
    for area in areas:
        try:
            if area.is_file:
                blocks = files.blocks_of(area.path, swap=True)
                return _text(blocks.device), blocks.first // PAGE
            number = os.stat(area.path).st_rdev
            files.refuse_mapped(number, str(area.path))
            return _text(number), 0
        except (KjumpError, OSError):
            continue
    return None


def _text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def set_resume_device(
    target: TargetDevice | KjumpError, command_line: CommandLine
) -> tuple[str, int] | None:
    """Name a swap area to the kernel if that is needed; returns which one.  Raises OSError."""
    try:
        resume = (kernel_hibernation.POWER / "resume").read_text()
    except OSError:
        return None  # a kernel without hibernation
    try:
        recorded = kernel_hibernation.RESUME_DEVICE_RECORD.read_text().strip()
    except OSError:
        recorded = "0:0"
    if not needs_resume_device(
        efi=EFI.exists(), resume=resume, command_line=command_line, recorded=recorded
    ):
        return None
    found = resume_device(target, swaps.read_swaps())
    if found is None:
        return None
    number, page = found
    try:
        now = int((kernel_hibernation.POWER / "resume_offset").read_text())
    except (OSError, ValueError):
        now = 0
    if (resume.strip(), now) == (number, page):
        return None
    # Recorded first, so that the number is never taken for one that the boot initrd has named.
    kernel_hibernation.RESUME_DEVICE_RECORD.parent.mkdir(parents=True, exist_ok=True)
    kernel_hibernation.RESUME_DEVICE_RECORD.write_text(number)
    if page != now:
        (kernel_hibernation.POWER / "resume_offset").write_text(str(page))
    try:
        (kernel_hibernation.POWER / "resume").write_text(number)
    except OSError:
        # The kernel keeps the number, and answers that no image of its own is there.
        if (kernel_hibernation.POWER / "resume").read_text().strip() != number:
            raise
    return found

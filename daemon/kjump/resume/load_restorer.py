# SPDX-License-Identifier: GPL-2.0-or-later
"""Restoring in place, the boot kernel's part: hand over to a small kernel in the window.

Runs in the boot kernel, for an image that does not fit beside it.  The restorer's kernel and initrd
lie with the image.  A plain kexec loads them into the window, which the image does not cover; there
`kjump.helper.restore_in_place` writes every page to where it belongs.  The size of memory is the
only limit, and this kernel needs no CONFIG_HIBERNATION.
"""

from __future__ import annotations

from kjump.errors import KjumpError, RestoreFailed
from kjump.handoff import window_layout
from kjump.handoff.cell import JUMP_BACK_OFFSET
from kjump.handoff.report import IN_PLACE, SNAPSHOT
from kjump.image.description import Description
from kjump.image.read import Image
from kjump.image.target import Opened, format_location
from kjump.machine import cmdline, memory, syscalls
from kjump.machine.cmdline import CommandLine
from kjump.machine.ranges import PAGE

PER_PAGE = PAGE + 40
"""Bytes that /dev/snapshot takes for a page: the page, its entry in the lists, and its bits in the
bitmaps."""
MARGIN = 48 << 20
"""Bytes that must stay free beside the loaded image: for the resuming program, and because the
kernel cannot wait for memory there."""


def choose(words: CommandLine, *, pages: int, available: int, restorer: bool) -> str:
    """How to restore: beside the boot kernel if there is room, else in place.

    ``pages``: number of pages to load; ``available``: bytes; ``restorer``: whether the image has
    one.  ``kjump.restore=snapshot|in-place`` on the kernel command line forces the choice.
    """
    forced = words.value(cmdline.RESTORE)
    if forced in (SNAPSHOT, IN_PLACE):
        return forced
    fits = pages * PER_PAGE + MARGIN <= available
    return SNAPSHOT if fits or not restorer else IN_PLACE


def load(image: Image, description: Description, running: str, wait: float) -> None:
    """Load the restorer.  ``running``: this kernel's command line; ``wait``: least number of
    seconds in which it accepts Esc.

    Raises `ImageDamaged`, `RestoreFailed`; nothing has changed then.
    """
    found = image.restorer()
    if found is None:
        raise RestoreFailed("The image has no restorer.")
    kernel, initrd = (bytearray(part) for part in found)
    facts = description.facts
    # The stub stores its jump-back address where nobody looks: nothing returns to this kernel.
    nowhere = facts.window[0] + window_layout.CELL + JUMP_BACK_OFFSET
    text = " ".join(
        [
            *window_layout.words(running, cpus=min(memory.processors(), window_layout.CPUS)),
            f"{cmdline.RESTORE}={image.superblock.cycle}",
            f"{cmdline.TARGET}={place(image)}",
            f"{cmdline.SKIP_WAIT}={wait:g}",
        ]
    )
    try:
        entry, segments = window_layout.place(
            facts.window,
            facts.low,
            kernel,
            initrd,
            text,
            note_slot=nowhere,
            cell_slot=nowhere,
        )
    except window_layout.WindowTooSmall as error:
        raise RestoreFailed(
            f"The restorer cannot be loaded.  {error}",
            advice="Before the next hibernation, raise [Helper] WindowSizeMiB=.",
        ) from error
    except window_layout.CommandLineTooLong as error:
        raise RestoreFailed(
            f"The restorer cannot be loaded.  {error}",
            advice="Before the next hibernation, shorten the boot kernel's command line.",
        ) from error
    except KjumpError as error:
        raise RestoreFailed(
            f"The restorer cannot be loaded.  {error.what}",
            advice="Rebuild it with: kjumpctl update-initrd.",
        ) from error
    try:
        syscalls.kexec_load(entry, segments, preserve_context=False)
    except OSError as error:
        raise RestoreFailed(f"The restorer cannot be loaded: {error.strerror}.") from error


def place(image: Image) -> str:
    """Where the image is, in the form for the restorer's command line."""
    device = image.device
    at = device.locator_at if isinstance(device, Opened) and device.locator else None
    return format_location(device.path, at)


def jump() -> None:
    """Jump into the restorer.  Raises `RestoreFailed` if the kernel did not jump."""
    try:
        syscalls.reboot_kexec()
    except OSError as error:
        raise RestoreFailed(f"The kernel did not jump: {error.strerror}.") from error
    raise RestoreFailed("The kernel did not jump.")

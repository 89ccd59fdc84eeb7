# SPDX-License-Identifier: GPL-2.0-or-later
"""Laying out a kernel in the window: what lies where, and the segments for kexec.

Runs in the session (for the helper that copies) and in the boot kernel (for the one that restores
in place); it loads nothing itself.  Offsets are bytes from the window's start, addresses are
physical.

======== ===========================================================
offset   what
======== ===========================================================
0x0      entry stub
0x800    return cell
0x1000   boot_params
0x2000   command line, ended by a zero byte
0x4000   core header
0x14000  ``KJUMP`` note
2 MiB    kernel, entered at + 0x200; needs ``init_size`` bytes
end      initrd, its first byte at the start of a page
======== ===========================================================
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kjump.machine import bzimage, cmdline, code, memory
from kjump.machine.memory import HEADROOM, Entry
from kjump.machine.ranges import PAGE, Range, align_down
from kjump.machine.syscalls import Segment

STUB = 0x0000
CELL = 0x0800
BOOT_PARAMS = 0x1000
COMMAND_LINE = 0x2000
CORE_HEADER = 0x4000
NOTE = 0x14000
COMMAND_LINE_ROOM = 0x1000
CORE_HEADER_ROOM = NOTE - CORE_HEADER
NOTE_ROOM = (128 << 10) + PAGE
USED = NOTE + NOTE_ROOM

KEPT_WORDS = (
    "no5lvl",
    "nokaslr",
    "no_console_suspend",
    "no_timer_check",
    "noapic",
    "nolapic",
    "nomodeset",
)
"""Words of the running kernel's command line that the next kernel needs as well.  The paging mode
must be the same.  What this machine needs to boot, it needs again.  And the next kernel must not
change the mode of a display that the session leaves in the firmware's mode, because the session
could not restore that."""

CPUS = 4
"""Most processors that a kernel in the window gets, if nothing else is configured."""

Buffer = bytes | bytearray | mmap.mmap


class DoesNotFit(Exception):
    """Something does not fit into the window.  The advice to a person differs between the session
    and the boot kernel, so each turns this into an error of its own."""


class WindowTooSmall(DoesNotFit):
    """There is no room for the kernel and its initrd."""


class CommandLineTooLong(DoesNotFit):
    """There is no room for the kernel's command line."""


def words(running: str, *, consoles: Iterable[str] = (), cpus: int) -> list[str]:
    """The words that every kernel in the window gets on its command line.

    ``running``: the running kernel's command line; ``consoles``: values for ``console=``; none: the
    running kernel's own.
    """
    found = cmdline.parse(running)
    named = list(consoles) or [word.value or "" for word in found.all("console")]
    # A quote would hide the words after it, and with them the way back.
    named = [name for name in named if name and not set(name) & {*cmdline.BLANKS, '"'}]
    # The kernel's decompressor also reads some of these, by its own rules: it does not remove
    # quotes, and does not stop at "--".
    plain = running.split()
    return [
        *(f"console={console}" for console in named),
        *(word for word in KEPT_WORDS if word in plain or found.has(word)),
        "rd.systemd.unit=kjump-helper.target",
        f"nr_cpus={cpus}",
        "reset_devices",
        # An initrd that is unpacked into tmpfs may take only half of the memory; the kernel leaves
        # out what does not fit, and nothing would start (init/do_mounts.c, init_rootfs).
        "rootfstype=ramfs",
        "panic=10",
        "loglevel=4",
        "systemd.show_status=0",
        "systemd.log_level=warning",
        "transparent_hugepage=never",
        "cgroup_disable=memory",
        "numa=off",
        "udev.children-max=4",
    ]


def acpi_rsdp(running: bytes) -> int:
    """Physical address of ACPI's root pointer; 0 if the kernel will find it itself (BIOS)."""
    known = int.from_bytes(running[0x70:0x78], "little")
    if known:
        return known
    try:
        for line in Path("/sys/firmware/efi/systab").read_text().splitlines():
            if line.startswith(("ACPI20=", "ACPI=")):
                return int(line.partition("=")[2], 16)
    except OSError:
        pass
    return 0


def place(
    window: Range,
    low: Iterable[Range],
    image: Buffer,
    initrd: Buffer,
    command_line: str,
    *,
    note_slot: int,
    cell_slot: int,
    contents: Mapping[int, bytes] | None = None,
) -> tuple[int, list[Segment]]:
    """Entry point and segments for a bzImage and its initrd in the window.

    ``low``: RAM below 1 MiB that the kernel may use.  ``contents``: further content of the window's
    first 2 MiB, by offset.  ``note_slot`` and ``cell_slot``: where the stub writes the jump-back
    address.  Raises `WindowTooSmall`, `CommandLineTooLong`, and the errors of
    `kjump.machine.bzimage`.
    """
    start, end = window
    kernel = bzimage.parse(bytes(image[:PAGE]))
    kernel_at = start + HEADROOM
    initrd_at = align_down(end - len(initrd))
    if kernel_at + kernel.init_size > initrd_at:
        raise WindowTooSmall(
            f"A window of {end - start >> 20} MiB has no room for the kernel and the initrd."
        )
    # The bytes that `cmdline.read_text` read.
    text = command_line.encode(errors="surrogateescape") + b"\0"
    room = min(COMMAND_LINE_ROOM, kernel.cmdline_size)
    if len(text) > room:
        raise CommandLineTooLong(
            f"The kernel command line has {len(text)} bytes, but at most {room} are possible."
        )
    running = Path("/sys/kernel/boot_params/data").read_bytes()
    first = bytearray(USED)
    parts = {
        STUB: code.entry_stub(
            note_slot=note_slot,
            cell_slot=cell_slot,
            boot_params=start + BOOT_PARAMS,
            kernel_entry=kernel_at + bzimage.ENTRY_64,
        ),
        BOOT_PARAMS: bzimage.boot_params(
            kernel,
            command_line=start + COMMAND_LINE,
            initrd=initrd_at,
            initrd_size=len(initrd),
            memory_map=_map(window, low),
            running=running,
            acpi_rsdp=acpi_rsdp(running),
        ),
        COMMAND_LINE: text,
        **(contents or {}),
    }
    for at, content in parts.items():
        first[at : at + len(content)] = content
    return start + STUB, [
        Segment(first, start, HEADROOM),
        Segment(memoryview(image)[kernel.body_offset :], kernel_at, initrd_at - kernel_at),
        Segment(initrd, initrd_at, end - initrd_at),
    ]


def _map(window: Range, low: Iterable[Range]) -> Sequence[Entry]:
    return memory.helper_map(memory.firmware_map(), window, low)

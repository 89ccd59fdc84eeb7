# SPDX-License-Identifier: GPL-2.0-or-later
"""bzImage and the 64-bit boot protocol.

Pure.  Offsets from Documentation/arch/x86/boot.rst and zero-page.rst (protocol 2.12 and later):

======= ==== ================= =============================================
offset  size field             use
======= ==== ================= =============================================
0x070   8    acpi_rsdp_addr    where ACPI begins, from the running kernel
0x000   64   screen_info       the text console's state
0x1e8   1    e820_entries
0x1f1   1    setup_sects       0 means 4
0x201   1    jump offset       the header ends at 0x202 + this
0x202   4    "HdrS"
0x206   2    version
0x210   1    type_of_loader    0xff: unassigned
0x211   1    loadflags         bit 5 quiet, bit 7 can use heap
0x218   4    ramdisk_image     low half; high half at 0x0c0
0x21c   4    ramdisk_size      low half; high half at 0x0c4
0x228   4    cmd_line_ptr      low half; high half at 0x0c8
0x236   2    xloadflags        bit 0: 64-bit entry at +0x200
0x238   4    cmdline_size
0x260   4    init_size         bytes of contiguous RAM the kernel needs
0x2d0   ..   e820 table        20 bytes each, 128 at most
======= ==== ================= =============================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kjump.errors import NoHelperKernel, StagingFailed
from kjump.machine.memory import Entry
from kjump.machine.ranges import PAGE

ENTRY_64 = 0x200
E820_MAX = 128
XLF_KERNEL_64 = 1


@dataclass(frozen=True)
class Kernel:
    """The fields of a bzImage header that we use.  Sizes and offsets in bytes."""

    header: bytes
    body_offset: int
    init_size: int
    cmdline_size: int


def parse(image: bytes) -> Kernel:
    """Read a bzImage's header (the first 4 KiB are enough).  Raises `NoHelperKernel`."""
    if len(image) < 0x268 or image[0x202:0x206] != b"HdrS":
        raise NoHelperKernel("The helper kernel is not a bzImage.")
    (version,) = struct.unpack_from("<H", image, 0x206)
    (xloadflags,) = struct.unpack_from("<H", image, 0x236)
    if version < 0x20C or not xloadflags & XLF_KERNEL_64:
        raise NoHelperKernel("The helper kernel has no 64-bit entry point.")
    end = 0x202 + image[0x201]
    return Kernel(
        header=bytes(image[0x1F1:end]),
        body_offset=((image[0x1F1] or 4) + 1) * 512,
        init_size=int(struct.unpack_from("<I", image, 0x260)[0]),
        cmdline_size=int(struct.unpack_from("<I", image, 0x238)[0]),
    )


def boot_params(
    kernel: Kernel,
    *,
    command_line: int,
    initrd: int,
    initrd_size: int,
    memory_map: Sequence[Entry],
    running: bytes = b"",
    acpi_rsdp: int = 0,
) -> bytes:
    """The boot_params page (4,096 bytes).  Addresses are physical.

    ``running``: the running kernel's own boot_params (/sys/kernel/boot_params/data), from which
    the console's state is taken.  Raises `StagingFailed` if the memory map is too long.
    """
    if len(memory_map) > E820_MAX:
        raise StagingFailed(f"The helper's memory map has {len(memory_map)} entries.")
    page = bytearray(PAGE)
    page[0:0x40] = running[0:0x40].ljust(0x40, b"\0")
    page[0x1F1 : 0x1F1 + len(kernel.header)] = kernel.header
    struct.pack_into("<Q", page, 0x70, acpi_rsdp)
    page[0x1E8] = len(memory_map)
    page[0x210] = 0xFF
    for offset, high, value in (
        (0x218, 0x0C0, initrd),
        (0x21C, 0x0C4, initrd_size),
        (0x228, 0x0C8, command_line),
    ):
        struct.pack_into("<I", page, offset, value & 0xFFFFFFFF)
        struct.pack_into("<I", page, high, value >> 32)
    for number, entry in enumerate(memory_map):
        struct.pack_into(
            "<QQI", page, 0x2D0 + 20 * number, entry.start, entry.end - entry.start, entry.kind
        )
    return bytes(page)

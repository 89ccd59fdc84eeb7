# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a disk that is a file bootable with GRUB, by a BIOS.

Runs on the host.  Needs no loop device and no rights.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from .cache import run
from .contents import GRUB_MODULES

GRUB = Path("/usr/lib/grub/i386-pc")


def install_grub(disk: Path, core_offset: int, core_size: int) -> None:
    """Do grub-install's work on a disk that is a file.

    Offsets: boot.h of GRUB 2.06 (include/grub/i386/pc), little endian.
    """
    boot_kernel_sector = 0x5C  # u64 in boot.img: where the core image starts
    boot_code_end = 0x1B8  # behind it: disk signature and partition table
    blocklist = 0x200 - 12  # u64 sector, u16 count, u16 segment: the core's second sector and on
    segment = 0x820
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "core.img"
        run(
            "grub-mkimage",
            "--format=i386-pc",
            "--prefix=(hd0,gpt2)/boot/grub",
            f"--output={path}",
            *GRUB_MODULES.split(),
        )
        core = bytearray(path.read_bytes())
    core += bytes(-len(core) % 512)
    if len(core) > core_size:
        raise SystemExit("GRUB's core image does not fit its partition")
    sector = core_offset // 512
    struct.pack_into("<QHH", core, blocklist, sector + 1, len(core) // 512 - 1, segment)
    boot = bytearray((GRUB / "boot.img").read_bytes())
    struct.pack_into("<Q", boot, boot_kernel_sector, sector)
    with disk.open("r+b") as file:
        file.write(boot[:boot_code_end])
        file.seek(core_offset)
        file.write(core)

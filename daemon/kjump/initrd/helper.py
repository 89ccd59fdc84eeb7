# SPDX-License-Identifier: GPL-2.0-or-later
"""build-helper-initrd [RELEASE]: make the initrd of the helper kernel with dracut.

Runs as root in the session; `kjump.initrd.update` starts it for each kernel.  It writes
/var/lib/kjump/helper-RELEASE.img, helper-RELEASE.vmlinuz if the kernel is not in /boot, and last
helper-RELEASE.json, the record of both (`kjump.session.staging.helper_record`).  Each file is
replaced completely or not at all, and is on the disk before it gets its name.  RELEASE is the
running kernel's by default.  With [Helper] Plymouth=yes, the initrd also gets Plymouth if that is
installed.

It does not touch the boot initrd.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kjump import VERSION, atomic, settings
from kjump.initrd import startup_check
from kjump.machine import displays
from kjump.session import kernels
from kjump.session.staging import helper_record
from kjump.session.staging.helper_record import HelperRecord

MODULES = kernels.MODULES
BOOT = kernels.BOOT

DISK_DRIVERS = """
    nvme vmd ahci ata_piix ata_generic sata_nv sata_sil sata_sil24 sata_via sata_mv sd_mod dm_mod
    megaraid_sas mpt3sas mptspi hpsa virtio_blk virtio_scsi virtio_pci virtio_mmio hv_storvsc
    vmw_pvscsi xen_blkfront mmc_block sdhci_pci sdhci_acpi usb_storage uas xhci_pci ehci_pci
"""
"""Drivers of disks that may hold a target; modules that a kernel does not have are left out."""
WATCHDOGS = "i6300esb iTCO_wdt sp5100_tco softdog"
"""Watchdogs, which catch a helper that hangs."""
WATCHDOG_BUSES = "lpc_ich i2c_i801"
"""Drivers that iTCO_wdt depends on."""
KEYS = "evdev button atkbd i8042 usbhid hid_generic"
"""Drivers of keyboards and buttons, with which a person gets the session back."""
DRIVERS = frozenset(" ".join((DISK_DRIVERS, WATCHDOGS, WATCHDOG_BUSES, KEYS)).split())
LEFTOVER_AGE = 86400
"""Seconds after which an unfinished file is a leftover."""
TRIES = 2
"""How often dracut may make an initrd that does not start."""
PLYMOUTH = ("plymouthd", "plymouth", "plymouth-set-default-theme")
"""The programs of Plymouth that this needs."""
SPLASH = 12 << 20
"""Bytes that plymouthd, its fonts and a graphics driver take, without the pictures."""
PICTURE = 4 * 1920 * 1080
"""Bytes of a picture on an unknown display."""


# -- what goes in ----------------------------------------------------------------------------------


def drivers_of_disks() -> set[str]:
    """Modules that drive the disks of this machine, and everything between them and the root of the
    device tree; empty if /sys does not show them (in a container)."""
    found: set[str] = set()
    for disk in Path("/sys/class/block").glob("*"):
        at = Path(os.path.realpath(disk))
        while at.is_relative_to("/sys/devices") and at != Path("/sys/devices"):
            module = at / "driver" / "module"
            if module.exists():
                found.add(Path(os.path.realpath(module)).name)
            at = at.parent
    return found


def picture(drm: Path = displays.DRM) -> int:
    """Bytes of a picture that covers the largest connected display."""
    largest = 0
    for modes in drm.glob("card*-*/modes"):
        try:
            # The best mode comes first.
            found = re.match(r"(\d+)x(\d+)", modes.read_text())
        except OSError:
            continue
        if found:
            largest = max(largest, 4 * int(found[1]) * int(found[2]))
    return largest or PICTURE


def splash(wanted: bool) -> int:
    """Bytes that a splash screen takes in the running helper; 0: it gets none."""
    if not wanted:
        return 0
    if absent := [name for name in PLYMOUTH if shutil.which(name) is None]:
        print(
            f"build-helper-initrd: Plymouth is not installed ({' and '.join(absent)} missing);"
            " the initrd is made without it"
        )
        return 0
    # It shows one picture while it draws the next, and the driver may keep a copy of its own.
    return SPLASH + 3 * picture()


def existing(names: Set[str], release: str) -> list[str]:
    """Those of the names that are modules of this kernel, according to its modules.dep."""
    known: set[str] = set()
    for line in (MODULES / release / "modules.dep").read_text().splitlines():
        name = Path(line.split(":", 1)[0]).name
        known.add(name.split(".ko", 1)[0].replace("-", "_"))
    return sorted(name for name in names if name.replace("-", "_") in known)


# -- making it -------------------------------------------------------------------------------------


def dracut_command(scratch: Path, image: Path, release: str) -> list[str]:
    """How to call dracut, with empty folders in ``scratch`` instead of the machine's own
    configuration, which is not for this image."""
    return [
        "dracut",
        "--force",
        "--quiet",
        "--conf",
        str(scratch / "empty"),
        "--confdir",
        str(scratch / "conf"),
        "--tmpdir",
        str(scratch / "tmp"),
        "--fwdir",
        str(scratch / "firmware"),
        "--no-hostonly",
        "--no-hostonly-cmdline",
        "--no-early-microcode",
        "--nostrip",
        "--nofscks",
        "--modules",
        "kjump-helper",
        "--compress",
        "zstd -q -T0 -17",
        "--kver",
        release,
        str(image),
    ]


def dracut_environment(drivers: Sequence[str], *, plymouth: bool) -> dict[str, str]:
    """This process's environment, and the variables that our dracut module reads."""
    return {
        **os.environ,
        "LC_ALL": "C",
        "KJUMP_DRIVERS": " ".join(drivers),
        "KJUMP_WATCHDOGS": " ".join(sorted({*WATCHDOGS.split()} & {*drivers})),
        "KJUMP_PLYMOUTH": "yes" if plymouth else "",
    }


def make(release: str, scratch: Path, environment: dict[str, str]) -> tuple[Path, int]:
    """Run dracut until it makes an image that starts.  Returns the image in ``scratch``, and its
    unpacked size.

    Raises SystemExit if dracut fails, or if no image starts.
    """
    for name in ("conf", "tmp", "firmware"):
        (scratch / name).mkdir()
    (scratch / "empty").touch()
    image = scratch / "helper.img"
    faults: list[str] = []
    for number in range(TRIES):
        done = subprocess.run(
            dracut_command(scratch, image, release),
            check=False,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode or not image.exists():
            sys.stderr.write(done.stdout)
            raise SystemExit(f"build-helper-initrd: dracut failed for {release}")
        unpacked = subprocess.run(
            ["zstd", "-dcq", str(image)], check=True, stdout=subprocess.PIPE
        ).stdout
        root = scratch / f"root{number}"
        root.mkdir()
        faults = startup_check.faults(unpacked, root)
        if not faults:
            return image, len(unpacked)
        sys.stderr.write(done.stdout)
        print(
            f"build-helper-initrd: this initrd does not start: {'; '.join(faults)}", file=sys.stderr
        )
    raise SystemExit(
        f"build-helper-initrd: dracut's initrd for {release} does not start; the existing initrd"
        " is kept"
    )


def install(source: Path, destination: Path) -> str:
    """Put a copy in place, complete and on the disk.  Returns its SHA-256, hexadecimal.

    Raises OSError.
    """
    digest = hashlib.sha256()
    with source.open("rb") as file, atomic.replacing(destination, mode=0o600) as out:
        while data := file.read(1 << 20):
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def remove_leftovers(output: Path) -> None:
    """Remove files that interrupted calls left unfinished, if they are older than a day."""
    for file in output.parent.glob(f".{output.stem}.*"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > LEFTOVER_AGE:
                file.unlink()


def keep_kernel(release: str, beside: Path) -> str:
    """Keep a copy of the kernel beside the initrd, but only if it is not in /boot.

    Returns the copy's SHA-256, hexadecimal; empty if there is no copy.
    """
    copy = beside.with_suffix(".vmlinuz")
    own = MODULES / release / "vmlinuz"
    if (BOOT / f"vmlinuz-{release}").exists() or not own.exists():
        copy.unlink(missing_ok=True)
        return ""
    return install(own, copy)


def build(release: str, output: Path, *, plymouth: bool) -> HelperRecord:
    """Make the initrd, put it in place, and return what is in it.

    ``plymouth``: whether to put Plymouth in.  Raises SystemExit if the initrd cannot be made; then
    the existing one stays.
    """
    screen = splash(plymouth)
    screens = existing(displays.drivers(), release) if screen else []
    drivers = existing(DRIVERS | drivers_of_disks() | {*screens}, release)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kjump-helper-", dir="/var/tmp") as folder:
        environment = dracut_environment(drivers, plymouth=bool(screen))
        image, unpacked = make(release, Path(folder), environment)
        digest = install(image, output)
        return HelperRecord(
            release=release,
            version=VERSION,
            size=image.stat().st_size,
            unpacked=unpacked,
            sha256=digest,
            drivers=tuple(drivers),
            plymouth=plymouth,
            splash=screen,
            displays=tuple(screens),
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="build-helper-initrd", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("release", nargs="?", default=os.uname().release, metavar="RELEASE")
    parser.add_argument("--output", type=Path, help="default: /var/lib/kjump/helper-RELEASE.img")
    options = parser.parse_args()
    if not (MODULES / options.release / "modules.dep").exists():
        print(f"build-helper-initrd: kernel {options.release} has no modules here", file=sys.stderr)
        return 1
    output = options.output or kernels.STATE / f"helper-{options.release}.img"
    remove_leftovers(output)
    record = build(options.release, output, plymouth=settings.load().helper.plymouth)
    record = replace(record, kernel_sha256=keep_kernel(options.release, output))
    helper_record.write(output, record)
    print(
        f"{output}: {record.size} bytes, {record.unpacked} unpacked, {len(record.drivers)} drivers"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""update-initrds [--release RELEASE] [--helper-only | --boot-only]: bring the initrds up to date.

Runs as root in the session; the packages, the kernel hooks and ``kjumpctl update-initrd`` start it.

For every installed kernel, or for one, it makes the helper initrd (with build-helper-initrd) and
the boot initrd (with initramfs-tools, mkinitcpio or dracut, depending on the system).  If the
target is a file, it first writes /var/lib/kjump/target.json for the boot initrd: the device of the
file, and the place of its first block.  At the end it records the configuration of the boot initrds
in /var/lib/kjump/boot.json, so that kjumpd notices when they are outdated.

It never removes a boot initrd.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from kjump import VERSION, atomic, settings
from kjump.errors import KjumpError
from kjump.initrd.files import LIBEXEC
from kjump.session import kernels
from kjump.session.kernels import BOOT, MODULES, STATE
from kjump.session.target import devices

INITRAMFS_TOOLS = Path("/usr/sbin/update-initramfs")
MKINITCPIO = Path("/usr/bin/mkinitcpio")
PRESETS = Path("/etc/mkinitcpio.d")


def preset(release: str) -> str | None:
    """The name of mkinitcpio's preset for a kernel: the name of its package."""
    try:
        name = (MODULES / release / "pkgbase").read_text().strip()
    except OSError:
        return None
    return name if (PRESETS / f"{name}.preset").exists() else None


def update_boot_initrd(release: str) -> bool:
    """Make the boot initrd of one kernel again.  Returns whether that succeeded."""
    environment = {**os.environ}
    # If this is set, update-initramfs only defers the work.
    environment.pop("DPKG_MAINTSCRIPT_PACKAGE", None)
    if INITRAMFS_TOOLS.exists():
        # -c makes a new one, but replaces an existing one only with force.
        exists = (BOOT / f"initrd.img-{release}").exists()
        command = [str(INITRAMFS_TOOLS), "-u" if exists else "-c", "-k", release]
    elif MKINITCPIO.exists():
        # dracut may be installed only for the helper's initrd.
        name = preset(release)
        image = BOOT / f"initrd.img-{release}"
        command = [str(MKINITCPIO)]
        command += ["-p", name] if name else ["-k", release, "-g", str(image)]
    elif Path("/usr/bin/dracut").exists():
        # The file names of Debian and of Fedora.
        names = (f"initrd.img-{release}", f"initramfs-{release}.img")
        there = [BOOT / name for name in names if (BOOT / name).exists()]
        image = there[0] if there else BOOT / names[0]
        command = ["dracut", "--force", "--quiet", "--add", "kjump-resume", str(image), release]
    else:
        print("update-initrds: neither initramfs-tools nor mkinitcpio nor dracut is installed")
        return False
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        print(f"update-initrds: cannot make the boot initrd of {release}", file=sys.stderr)
    return not done.returncode


def can_be_put_in() -> bool:
    """Whether the boot initrd's hook finds all files; if not, it leaves kjump out."""
    command = [str(LIBEXEC / "initrd-files"), "resume"]
    return not subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode


def locate() -> None:
    """Record where the target lies, if it is a file."""
    file = STATE / "target.json"
    target = settings.load().target
    spec = target.path
    if not target.names_a_file:
        file.unlink(missing_ok=True)
        return
    try:
        found = devices.resolve(spec)
    except KjumpError as error:
        print(f"update-initrds: {error.sentence}", file=sys.stderr)
        file.unlink(missing_ok=True)
        return
    STATE.mkdir(parents=True, exist_ok=True)
    document = {
        "spec": spec,
        "links": [*found.links] or [str(found.path)],
        "locator": found.locator,
        "place": found.place,
    }
    atomic.write(file, json.dumps(document, indent=1) + "\n")


def recorded_place() -> str:
    """The place of a target that is a file, as the boot initrds made now contain it."""
    try:
        return str(json.loads((STATE / "target.json").read_text())["place"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def record(releases: list[str], gone: str = "") -> None:
    """Record in boot.json the configuration of these boot initrds.

    ``gone``: the release of a kernel that was removed.
    """
    file = STATE / "boot.json"
    try:
        known = dict(json.loads(file.read_text())["releases"])
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    present = set(kernels.installed()) - {gone}
    config = settings.fingerprint(settings.load(), recorded_place())
    known = {release: of for release, of in known.items() if release in present}
    known |= dict.fromkeys(releases, config)
    newest = max(known, key=kernels.by_number, default="")
    STATE.mkdir(parents=True, exist_ok=True)
    document = {
        "version": VERSION,
        "release": newest,
        "config": known.get(newest, ""),
        "releases": known,
    }
    atomic.write(file, json.dumps(document, indent=1) + "\n")


def forget(release: str) -> None:
    """Remove the helper files of a kernel that was removed, and its line in boot.json."""
    for suffix in ("img", "json", "vmlinuz"):
        (STATE / f"helper-{release}.{suffix}").unlink(missing_ok=True)
    for unfinished in STATE.glob(f".helper-{release}.*"):
        unfinished.unlink(missing_ok=True)
    if (STATE / "boot.json").exists():
        record([], gone=release)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="update-initrds", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--release", metavar="RELEASE", help="only for this kernel")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--helper-only", action="store_true", help="leave the boot initrd alone")
    which.add_argument("--boot-only", action="store_true", help="leave the helper initrd alone")
    which.add_argument(
        "--made",
        action="store_true",
        help="the boot initrd of RELEASE was just made (kernel hook); make the helper's",
    )
    which.add_argument("--forget", action="store_true", help="RELEASE was removed")
    options = parser.parse_args()
    if (options.made or options.forget) and not options.release:
        parser.error("name the kernel with --release")
    if options.forget:
        forget(options.release)
        return 0
    releases = [options.release] if options.release else kernels.installed()
    if not releases:
        print("update-initrds: no kernel with modules is installed; nothing to do")
        return 0
    failed = 0
    made = []
    if not options.made and not options.helper_only:
        locate()
    for release in releases:
        if not options.boot_only:
            print(f"kjump: helper initrd of {release}", flush=True)
            command = [str(LIBEXEC / "build-helper-initrd"), release]
            failed |= subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
        if options.made:
            made.append(release)
        elif not options.helper_only:
            print(f"kjump: boot initrd of {release}", flush=True)
            if update_boot_initrd(release):
                made.append(release)
            else:
                failed = 1
    if made and can_be_put_in():
        record(made)
    elif made:
        failed = 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

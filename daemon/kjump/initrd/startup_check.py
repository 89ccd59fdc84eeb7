# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks whether systemd, udev and our Python start in a helper initrd.

Runs as root in the session.  A helper in which they do not start never comes back, and the session
is lost with it; so this must be noticed here, not after the jump.  It writes only to the folder
that the caller passes.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

PROGRAMS = ("/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor", "/usr/bin/udevadm")
"""Programs that must start in the helper."""
STARTS = (
    *((program, "--version") for program in PROGRAMS),
    ("/usr/bin/python3", "-I", "-c", "import kjump.helper.copy, kjump.helper.leave"),
)
"""Commands that prove it; programs that this machine does not have are left out."""
CHROOT_FAILED = 125
"""Exit status of chroot(1) if it is not permitted here."""


def required(program: bytes) -> list[list[str]]:
    """Libraries that an ELF file opens by name and cannot do without.  Pure.

    Each is a list of names; one of them is enough.  Source: the section .note.dlopen (systemd's
    ELF_DLOPEN_METADATA): JSON, ended by a zero byte.
    """
    found: list[list[str]] = []
    for match in re.finditer(rb'\[\{"feature":[^\0]*', program):
        try:
            notes = json.loads(match[0])
        except ValueError:
            continue
        found += [note["soname"] for note in notes if note.get("priority") == "required"]
    return found


def missing(unpacked: bytes) -> list[str]:
    """Libraries without which systemd would not come up in this initrd (a cpio archive)."""
    wanted: list[list[str]] = []
    for program in PROGRAMS:
        path = Path(program)
        if path.exists():
            wanted += required(path.read_bytes())
    return sorted(
        {
            names[0]
            for names in wanted
            if not any(b"/" + name.encode() + b"\0" in unpacked for name in names)
        }
    )


def unpack(archive: bytes, root: Path) -> None:
    """Unpack files, folders and links of a cpio archive into an empty folder.

    The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).  The program
    cpio need not be installed: dracut has its own.  Raises SystemExit if the archive is damaged.
    """
    at = 0
    twins: dict[bytes, list[Path]] = {}
    while archive[at : at + 6] == b"070701":
        ino = archive[at + 6 : at + 14]
        mode, size, length = (
            int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in (1, 6, 11)
        )
        name = archive[at + 110 : at + 110 + length - 1].decode()
        begin = (at + 110 + length + 3) & ~3
        data = archive[begin : begin + size]
        at = (begin + size + 3) & ~3
        if name == "TRAILER!!!":
            return
        path = root / name.lstrip("/")
        if stat.S_ISDIR(mode):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(mode):
            path.symlink_to(data.decode())
        elif stat.S_ISREG(mode):
            # If a file has several names, its content comes with the last one.
            same = twins.setdefault(ino, [])
            same.append(path)
            for twin in same if data else (path,):
                twin.write_bytes(data)
                twin.chmod(stat.S_IMODE(mode))
    raise SystemExit("build-helper-initrd: dracut's initrd is not a cpio archive")


def unable(unpacked: bytes, root: Path) -> list[str]:
    """Programs that do not start in this initrd (a cpio archive), each with its error output.

    This starts them because dracut has been seen to succeed without libraries that they need.
    ``root``: an empty folder to unpack into.
    """
    unpack(unpacked, root)
    found = []
    for command in STARTS:
        if not Path(command[0]).exists():
            continue
        done = subprocess.run(
            ["chroot", str(root), *command],
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode not in (0, CHROOT_FAILED):
            found.append(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return found


def faults(unpacked: bytes, root: Path) -> list[str]:
    """Reasons why this initrd (a cpio archive) cannot be used; empty if it can.

    ``root``: an empty folder to unpack into.
    """
    return [f"systemd needs {name}" for name in missing(unpacked)] or unable(unpacked, root)

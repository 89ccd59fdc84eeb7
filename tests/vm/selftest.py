# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that guest image and harness work, with the times that each step takes.

usage: python3 -m tests.vm.selftest --kernel linux-image.deb [--deb kjump.deb] [--all]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import image
from .contents import USER
from .emulator import choose_acceleration, kernel_image
from .guest import DiskErrors, Guest, GuestError, Shape


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"  {time.monotonic() - start:6.1f} s  {what}", flush=True)


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise GuestError(f"{what}: {found!r}, expected {wanted!r}")


def boots(disk: image.Image, shape: Shape) -> None:
    """Boot, work as a user, lose the power, boot again, power off."""
    print(shape, flush=True)
    with Guest(disk, shape) as guest:
        with timed("power-on to root's agent"):
            guest.wait_ready()
        with timed("from there to the user's agent"):
            guest.wait_ready(user=True)
        expect("uname", guest.check("uname -r").strip(), disk.kernels[shape.kernel])
        expect("cpus", guest.check("nproc").strip(), str(shape.cpus))
        show = "loginctl show-session self -p Active -p Seat -p Name -p VTNr"
        session = guest.check(show, user=True)
        wanted = {"Active=yes", "Seat=seat0", f"Name={USER}", "VTNr=1"}
        expect("the user's session", wanted - set(session.split()), set())
        with timed("start the user's work"):
            guest.start_work(100)
        with timed("check it"):
            work = guest.work()
        expect("the user's work", {name: a for name, a in work.items() if not a["ok"]}, {})
        data = bytes(range(256)) * 1000
        with timed("256 kB in and out"):
            guest.put(data, "/root/file")
            expect("a file's way in and out", guest.get("/root/file") == data, True)
        guest.check("sync; echo kept >/root/kept; sync")
        guest.kill()
        expect("exit", guest.exit_reason, "killed")
        with guest.again(words="kjtest.word=1,2") as second:
            with timed("power-on after a power loss to root's agent"):
                second.wait_ready()
            expect("disk", second.check("cat /root/kept"), "kept\n")
            expect("words", "kjtest.word=1,2" in second.check("cat /proc/cmdline"), True)
            expect("work after a boot", second.work()["work"]["ok"], False)
            second.spawn("systemctl poweroff")
            with timed("power-off"):
                expect("exit", second.wait_exit(), "poweroff")


def fails(disk: image.Image, shape: Shape) -> None:
    """Disk errors, a slow disk, a reset."""
    print("failures", shape, flush=True)
    with Guest(disk, shape) as guest:
        target = guest.check("readlink -f /dev/disk/by-partlabel/kjump").strip()
        write = f"dd if=/dev/zero of={target} bs=1M seek=8 count=1 oflag=direct"
        guest.check(write)
        guest.fail_disk(DiskErrors(disk.target_offset + (8 << 20), 1 << 20, once=True))
        expect("write to a failing range", guest.run(write).rc, 1)
        guest.check(write.replace("seek=8", "seek=64"))
        guest.heal_disk()
        guest.check(write)
        guest.slow_disk(1 << 20)
        start = time.monotonic()
        guest.check(write.replace("count=1", "count=4"))
        expect("a slow disk", time.monotonic() - start > 2, True)
        guest.slow_disk(0)
        guest.spawn("systemctl reboot")
        expect("exit", guest.wait_exit(), "reset")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--deb", type=Path)
    parser.add_argument("--all", action="store_true", help="every machine, bus and kernel")
    arguments = parser.parse_args()
    accel = choose_acceleration(lambda: kernel_image(arguments.kernel))
    print(f"acceleration: {accel}")
    with timed("guest image"):
        disk = image.build(arguments.kernel, arguments.deb)
    boots(disk, Shape())
    fails(disk, Shape())
    boots(disk, Shape(machine="pc"))
    if arguments.all:
        boots(disk, Shape(kernel="stock"))
        boots(disk, Shape(memory=6144, la57=True, kaslr=False, cpus=1))
        for machine, bus in (("q35", "nvme"), ("q35", "ahci"), ("pc", "ide"), ("q35", "scsi")):
            boots(disk, Shape(machine=machine, bus=bus))
            fails(disk, Shape(machine=machine, bus=bus))
    print("all as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper that was started ahead: used once, replaced, unloaded, never in the way."""

from __future__ import annotations

import json
import time

from .guest import DiskErrors, Guest, Message, Shape
from .image import MIB, Image
from .steps import (
    Scenario,
    at_work,
    configure,
    ctl,
    ctl_json,
    cycle,
    expect,
    hibernate_fails,
    last_cycle,
    nothing_staged,
    ready,
    require,
    went_well,
    work_holds,
)


def staged(guest: Guest) -> str:
    """The Staged property."""
    return str(ctl_json(guest, "status")["Staged"])


def stage(guest: Guest) -> Message:
    """``kjumpctl stage --warm``; its report."""
    result = ctl(guest, "stage --warm --json")
    require("a helper gets warm", result.rc == 0, result)
    expect("staged", staged(guest), "warm")
    expect("a second one", ctl_json(guest, "stage --warm"), {})
    report: Message = json.loads(result.out)
    return report


def until_staged(guest: Guest, wanted: str, deadline: float = 240) -> None:
    """Wait for the Staged property; the daemon's journal is in the error."""
    end = time.monotonic() + deadline
    while staged(guest) != wanted:
        if time.monotonic() > end:
            journal = guest.run("journalctl -b -n 40 --no-pager -u kjumpd", timeout=120).out
            raise guest.error(f"Staged is {staged(guest)}, not {wanted}:\n{journal}")
        time.sleep(1)


def was_warm(last: Message) -> None:
    """The cycle was served by a helper that ran already."""
    phases = last["phases"]
    require("the helper was warm", "helper resume" in phases and "helper boot" not in phases, last)


def warm(image: Image) -> None:
    """A warm helper: a disk that fails comes back with its cause; then one saves, it resumes."""
    with at_work(image, Shape(), 100) as guest:
        stage(guest)
        work_holds(guest)
        guest.fail_disk(DiskErrors(image.target_offset + 24 * MIB, 4 * MIB))
        last = hibernate_fails(guest, "TargetWriteFailed")
        expect("where", last["where"], "helper")
        was_warm(last)
        guest.heal_disk()
        expect("staged after a failure", staged(guest), "no")
        work_holds(guest)

        stage(guest)
        with cycle(guest) as again:
            last = went_well(again)
            nothing_staged(again)
            was_warm(last)
            require("free pages were not saved", last["pages"]["free"] > 1000, last)


def warm_kept(image: Image) -> None:
    """[Helper] Warm=yes, two processors in both kernels: warm again after each cycle."""
    with at_work(image, Shape(cpus=2, la57=True), 100) as guest:
        configure(guest, "[Helper]", "Warm=yes", "CpuCount=2")
        until_staged(guest, "warm")
        with cycle(guest) as again:
            work_holds(again)
            was_warm(last_cycle(again))
            until_staged(again, "warm")
            work_holds(again)
            with cycle(again) as third:
                last = went_well(third)
                was_warm(last)
                configure(third, "[Helper]", "Warm=no")
                until_staged(third, "no")
                nothing_staged(third)


def warm_fails_often(image: Image) -> None:
    """Three rounds that fail in a warm helper, each in its way; memory holds, the fourth works."""
    with at_work(image, Shape(cpus=1), 100) as guest:
        # A request that was damaged on the way.
        drop_in = "/run/systemd/system/kjumpd.service.d/test.conf"
        guest.check(f"mkdir -p {drop_in.rpartition('/')[0]}")
        guest.put(b"[Service]\nEnvironment=KJUMP_INJECT=damaged-request\n", drop_in)
        guest.check("systemctl daemon-reload; systemctl restart kjumpd", timeout=120)
        stage(guest)
        was_warm(hibernate_fails(guest, "DamagedHandoff"))
        guest.check(f"rm {drop_in}; systemctl daemon-reload; systemctl restart kjumpd", timeout=120)
        work_holds(guest)

        # A disk that cannot be written at all.
        stage(guest)
        guest.fail_disk(DiskErrors(image.target_offset + 24 * MIB, 4 * MIB))
        was_warm(hibernate_fails(guest, "TargetWriteFailed"))
        guest.heal_disk()
        work_holds(guest)

        # A helper that is too slow for its deadline, which counts from when it was asked.
        configure(guest, "[Helper]", "DeadlineSec=20")
        stage(guest)
        guest.slow_disk(1 * MIB)
        last = hibernate_fails(guest, "HelperDeadline")
        was_warm(last)
        guest.slow_disk(0)
        configure(guest)
        work_holds(guest)

        # A file system on a disk where the helper has seen none: it is replaced during the cycle.
        spare = "/dev/disk/by-partlabel/spare"
        stage(guest)
        guest.check(f"mkfs.ext4 -q {spare}; udevadm trigger --settle --subsystem-match=block")
        guest.check(f"udevadm settle; test -e /dev/disk/by-uuid/$(blkid -s UUID -o value {spare})")
        guest.check(f"mount {spare} /mnt")
        with cycle(guest) as again:
            last = went_well(again)
            require("another helper was started", "helper boot" in last["phases"], last)


def warm_leaves_nothing(image: Image) -> None:
    """A killed daemon, another's image, an unfit kernel: nothing stays."""
    # Nor would it with a processor more, but none can be plugged in here: a kernel since v6.9 takes
    # it for a mistake of the firmware where it knows no hypervisor (f0551af02130).
    with at_work(image, Shape(cpus=1), 20) as guest:
        stage(guest)
        guest.check("systemctl kill --signal=KILL kjumpd")
        time.sleep(2)
        guest.check("systemctl start kjumpd", timeout=120)
        nothing_staged(guest)
        expect("staged", staged(guest), "no")

        # An image that somebody loads over ours is not ours to jump into, nor to unload.
        stage(guest)
        guest.check('kexec --load "/boot/vmlinuz-$(uname -r)" --reuse-cmdline', timeout=120)
        can = ctl_json(guest, "can-hibernate")
        require("a foreign image is named", "ForeignKexecImage" in str(can), can)
        until_staged(guest, "no")
        expect("the other's image", guest.check("cat /sys/kernel/kexec_loaded").strip(), "1")
        guest.check("kexec -u")

        stock = image.kernels["stock"]
        configure(
            guest,
            "[Helper]",
            f"Kernel=/boot/vmlinuz-{stock}",
            f"Initrd=/var/lib/kjump/helper-{stock}.img",
        )
        result = ctl(guest, "stage --warm --json")
        require("NoWarmHelper", "NoWarmHelper" in result.err + result.out, result)
        nothing_staged(guest)
        work_holds(guest)


def warm_is_not_in_the_way(image: Image) -> None:
    """With a warm helper there, a reboot is a reboot and a power-off a power-off."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        stage(guest)
        guest.seen = len(guest.console())
        guest.spawn("systemctl reboot")
        expect("reboot", guest.wait_exit(180), "reset")
        require("no helper was entered", "kjump:" not in guest.console()[guest.seen :])
        with guest.again() as second:
            ready(second)
            nothing_staged(second)
            stage(second)
            second.seen = len(second.console())
            second.spawn("systemctl poweroff")
            expect("power-off", second.wait_exit(180), "poweroff")
            require("no helper was entered", "kjump:" not in second.console()[second.seen :])


def warm_suspend(image: Image) -> None:
    """Suspended to RAM and woken with a warm helper in memory: the helper still saves."""
    # What was woken on QEMU's q35 neither suspends a second time nor switches off, helper or not.
    with at_work(image, Shape(machine="pc"), 100) as guest:
        stage(guest)
        guest.spawn("systemctl suspend")
        guest.wait_event("SUSPEND", 120)
        time.sleep(2)
        guest.ready.clear()
        guest.qmp("system_wakeup")
        guest.wait_ready()
        work_holds(guest)
        expect("staged after waking", staged(guest), "warm")
        with cycle(guest) as again:
            last = went_well(again)
            was_warm(last)


ALWAYS: dict[str, Scenario] = {"warm": warm}
MORE: dict[str, Scenario] = {
    "warm-kept": warm_kept,
    "warm-fails-often": warm_fails_often,
    "warm-leaves-nothing": warm_leaves_nothing,
    "warm-is-not-in-the-way": warm_is_not_in_the_way,
    "warm-suspend": warm_suspend,
}

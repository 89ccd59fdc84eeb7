# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks, memory and processors that come and go: the answer of CanHibernate follows at once.

The events are real: QEMU unplugs and plugs, the guest's kernel and udev notify the daemon, and
nobody calls it meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from .guest import Guest, Shape
from .image import MIB, Image
from .steps import CONFIGURATION, Scenario, ctl_json, expect, ready, require

SERIAL = "kjump-hotplug"
ROOT = "/usr/local/lib/kjtest/watch.py"
AT_ONCE = 4.0
"""Seconds from the kernel's event until the bus has signalled the change.  For a quarter of a
second the daemon waits for further events; nearly all the rest is Python in emulation."""

# Writes one JSON line for each event of the kernel and each change of the daemon's properties,
# with the monotonic clock.
WATCH = r"""
import json, os, time
import pyudev
from gi.repository import Gio, GLib
from pyudev.glib import MonitorObserver

def emit(**what):
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)

def event(_observer, device):
    emit(event=f"{device.subsystem} {device.action}", name=device.sys_name)

def changed(_c, _s, _p, _i, _n, parameters):
    emit(changed=parameters.unpack()[1])

bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
bus.signal_subscribe("org.kjump1", "org.freedesktop.DBus.Properties", "PropertiesChanged",
                     "/org/kjump1", None, Gio.DBusSignalFlags.NONE, changed)
monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
for subsystem in ("block", "memory", "cpu"):
    monitor.filter_by(subsystem)
observer = MonitorObserver(monitor)
observer.connect("device-event", event)
monitor.start()
emit(event="ready")
GLib.MainLoop().run()
"""


class Watch:
    """The events of the kernel and of the daemon in the guest, by its own clock."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.seen = 0
        guest.put(WATCH.encode(), ROOT)
        guest.spawn(f"exec python3 {ROOT} >/run/watch.log 2>&1")
        self.until(lambda line: line.get("event") == "ready")

    def lines(self) -> list[dict[str, Any]]:
        text = self.guest.check("cat /run/watch.log 2>/dev/null || true")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def until(self, true: Callable[[dict[str, Any]], bool], deadline: float = 90) -> dict[str, Any]:
        """The first line from here on for which it is true; the next call goes on behind it."""
        end = time.monotonic() + deadline
        while True:
            lines = self.lines()
            for number, line in enumerate(lines[self.seen :], self.seen + 1):
                if true(line):
                    self.seen = number
                    return line
            if time.monotonic() > end:
                journal = self.guest.run("journalctl -b -n 20 --no-pager -u kjumpd").out
                raise self.guest.error(f"never signalled: {lines[self.seen :]}\n{journal}")
            time.sleep(0.5)

    def signalled(self, what: str, event: str, true: Callable[[dict[str, Any]], bool]) -> None:
        """The kernel has this event and then the daemon, at once, a change that is so."""
        first = self.until(lambda line: line.get("event") == event)
        then = self.until(lambda line: "changed" in line and true(line["changed"]))
        took = then["at"] - first["at"]
        print(f"{what}: signalled {took:.2f} s after the kernel's event", flush=True)
        require(f"{what} is signalled at once", took < AT_ONCE, (first, then))


def names(changed: dict[str, Any]) -> set[str] | None:
    """Names of the Reasons, if those have changed."""
    return {name for name, _ in changed["Reasons"]} if "Reasons" in changed else None


def reasons(guest: Guest) -> set[str]:
    return {reason["code"] for reason in ctl_json(guest, "can-hibernate")["reasons"]}


def target_is(guest: Guest, path: str) -> None:
    """Configure a target, and say that the boot initrd knows of it: nothing is resumed here."""
    guest.put(f"[Target]\nPath={path}\n".encode(), CONFIGURATION)
    guest.check(
        "python3 -c 'import json; from kjump import settings as s;"
        ' p = "/var/lib/kjump/boot.json"; d = json.load(open(p));'
        ' d["config"] = c = s.fingerprint(s.load());'
        ' d["releases"] = dict.fromkeys(d["releases"], c); json.dump(d, open(p, "w"))\''
    )
    guest.check("kjumpctl reload")


def plug_disk(guest: Guest, driver: str) -> None:
    guest.qmp("blockdev-add", driver="null-co", node_name="more", size=4096 * MIB, read_zeroes=True)
    guest.qmp("device_add", driver=driver, id="more", drive="more", serial=SERIAL)


def unplug_disk(guest: Guest) -> None:
    guest.qmp("device_del", id="more")
    guest.wait_event("DEVICE_DELETED")
    guest.qmp("blockdev-del", node_name="more")


def hotplug(image: Image) -> None:
    """The target unplugged and back, a processor off and on, more memory: CanHibernate follows."""
    with Guest(image, Shape(bus="scsi")) as guest:
        ready(guest)
        plug_disk(guest, "scsi-hd")
        target_is(guest, f"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{SERIAL}")
        expect("reasons with the disk", reasons(guest), set())
        watch = Watch(guest)

        unplug_disk(guest)
        watch.signalled("target unplugged", "block remove", lambda c: names(c) == {"TargetMissing"})
        expect("can-hibernate", ctl_json(guest, "can-hibernate")["answer"], "no")
        plug_disk(guest, "scsi-hd")
        watch.signalled("target back", "block add", lambda c: names(c) == set())
        expect("can-hibernate", ctl_json(guest, "can-hibernate")["answer"], "yes")

        # The helper gets as many processors as the session has, and memory for each.  QEMU can plug
        # one in, but a kernel since v6.9 takes it for a mistake of the firmware where it knows no
        # hypervisor (f0551af02130), so here one is switched off and on.
        size = ctl_json(guest, "status")["Window"]["size"]
        online = "/sys/devices/system/cpu/cpu1/online"
        guest.check(f"echo 0 >{online}")
        watch.signalled(
            "processor off", "cpu offline", lambda c: 0 < c.get("Window", {}).get("size", 0) < size
        )
        guest.check(f"echo 1 >{online}")
        watch.signalled(
            "processor on", "cpu online", lambda c: c.get("Window", {}).get("size", 0) == size
        )
        guest.spawn("systemctl poweroff")
        guest.wait_exit(120)

    # The test kernel has no hotplug of memory nor of PCI.  Debian's own has, but no kexec jump: the
    # answer is "na" throughout, and its further reasons come and go.
    with Guest(image, Shape(machine="pc", memory=768, slots=1, kernel="stock")) as guest:
        ready(guest)
        guest.check("modprobe acpiphp 2>/dev/null || true")
        plug_disk(guest, "virtio-blk-pci")
        target_is(guest, f"/dev/disk/by-id/virtio-{SERIAL}")
        guest.check(
            f"for n in $(seq 100); do test -e /dev/disk/by-id/virtio-{SERIAL} && exit; sleep .2;"
            " done; exit 1"
        )
        require("the disk is taken", "TargetMissing" not in reasons(guest), reasons(guest))
        watch = Watch(guest)
        unplug_disk(guest)
        watch.signalled(
            "target unplugged", "block remove", lambda c: "TargetMissing" in (names(c) or ())
        )

        available = int(guest.check("awk '/MemAvailable/ {print $2}' /proc/meminfo")) // 1024
        guest.check(
            "mkdir /fill; mount -t tmpfs -o size=95% fill /fill;"
            f" dd if=/dev/zero of=/fill/x bs=1M count={available - 60} status=none",
            timeout=200,
        )
        require("memory is scarce", "TooLittleMemory" in reasons(guest), reasons(guest))
        guest.qmp("object-add", qom_type="memory-backend-ram", id="memory", size=512 * MIB)
        guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="memory")
        watch.until(lambda line: line.get("event") == "memory add")
        guest.check(
            "for block in /sys/devices/system/memory/memory*/state; do"
            " grep -q online $block || echo online >$block; done"
        )
        scarce = {"TooLittleMemory"}
        watch.signalled(
            "memory online", "memory online", lambda c: scarce.isdisjoint(names(c) or scarce)
        )


ALWAYS: dict[str, Scenario] = {}
MORE: dict[str, Scenario] = {"hotplug": hotplug}

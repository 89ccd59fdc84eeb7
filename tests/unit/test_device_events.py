# SPDX-License-Identifier: GPL-2.0-or-later
"""Device events: they are heard, also after more have come than the kernel keeps for us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# libudev listens only if it finds udevd's socket.
SETTING = """
set -e
mount -t tmpfs none /run
mkdir /run/udev
touch /run/udev/control
exec "$1" -c "$2"
"""

# In a network namespace of its own, where no udevd talks: plays one that talks too fast.
SCRIPT = r"""
import os, socket, struct
import pyudev
from gi.repository import GLib
from kjump.session.target import watch

start = pyudev.Monitor.start
def small(monitor):
    "libudev asks for 128 MiB, and gets them with CAP_NET_ADMIN only."
    start(monitor)
    with socket.socket(fileno=os.dup(monitor.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
pyudev.Monitor.start = small

NETLINK_KOBJECT_UEVENT, UDEV = 15, 2
heard = []
stop = watch.watch_devices(lambda: heard.append(1))
udevd = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
context = GLib.MainContext.default()

def all_heard():
    "What was sent lies in our socket already (netlink(7)): nobody has to wait for it."
    while context.iteration(False):
        pass

all_heard()
assert not heard, "nothing has happened yet"
for time in range(3):
    heard.clear()
    for _ in range(5000):
        udevd.sendto(b"x" * 400, (0, UDEV))
    for _ in range(1000):
        context.iteration(False)
    assert heard, f"lost events are reported, time {time}"
    count = len(heard)
    all_heard()
    assert len(heard) == count, "and then it is quiet"

# One that is whole, as systemd's device-monitor.c sends it (struct monitor_netlink_header).
def murmur2(data):
    "MurmurHash2 with seed 0: the filter for subsystems goes by it."
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = len(data)
    at = 0
    while len(data) - at >= 4:
        k = int.from_bytes(data[at:at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
        at += 4
    if at < len(data):
        h = (h ^ int.from_bytes(data[at:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15

def event(subsystem):
    words = ["ACTION=change", f"DEVPATH=/devices/virtual/{subsystem}/x", f"SUBSYSTEM={subsystem}",
             "SEQNUM=1", ""]
    properties = "\0".join(words).encode()
    numbers = struct.pack("=III", 40, 40, len(properties))
    filters = struct.pack(">IIII", murmur2(subsystem.encode()), 0, 0, 0)
    magic = struct.pack(">I", 0xFEEDCAFE)
    return b"libudev\0" + magic + numbers + filters + properties

heard.clear()
udevd.sendto(event("net"), (0, UDEV))
all_heard()
assert not heard, "of no concern"
for subsystem in ("block", "memory", "cpu"):
    heard.clear()
    udevd.sendto(event(subsystem), (0, UDEV))
    all_heard()
    assert len(heard) == 1, (subsystem, heard)
stop()
udevd.sendto(event("block"), (0, UDEV))
all_heard()
assert len(heard) == 1, "stopped"
print("good")
"""


def test_more_events_than_are_kept() -> None:
    pytest.importorskip("pyudev")
    if os.getuid():
        pytest.skip("plays udevd, which takes root")
    try:
        done = subprocess.run(
            ["unshare", "--net", "--mount", "sh", "-c", SETTING, "-", sys.executable, SCRIPT],
            check=False,
            text=True,
            timeout=60,
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "daemon")},
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare failed" in done.stderr:
        pytest.skip("no network namespace can be made here")
    assert done.stdout == "good\n", done.stderr


def test_swap_that_is_switched_on_and_off_is_noticed_once_each(tmp_path: Path) -> None:
    """The kernel counts the event as delivered when we poll; nothing has to be read."""
    from gi.repository import GLib

    from kjump.session.target import watch

    area = tmp_path / "swap"
    area.write_bytes(bytes(1 << 20))
    area.chmod(0o600)
    if os.getuid() or not shutil.which("mkswap"):
        pytest.skip("switching swap on takes root and mkswap")
    subprocess.run(["mkswap", str(area)], check=True, capture_output=True)

    heard: list[int] = []
    stop = watch.watch_swaps(lambda: heard.append(1))

    def run(seconds: float) -> None:
        loop = GLib.MainLoop()
        GLib.timeout_add(int(seconds * 1000), loop.quit)
        loop.run()

    try:
        run(0.1)
        heard.clear()
        if subprocess.run(["swapon", str(area)], check=False, capture_output=True).returncode:
            pytest.skip("no swap can be switched on here")
        try:
            run(0.3)
            assert len(heard) == 1
        finally:
            subprocess.run(["swapoff", str(area)], check=True)
        run(0.3)
        assert len(heard) == 2
    finally:
        stop()

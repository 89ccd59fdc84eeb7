"""Device events: they are heard, also after more have come than the kernel keeps for us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# libudev listens only where it finds udevd's socket.
SETTING = """
set -e
mount -t tmpfs none /run
mkdir /run/udev
touch /run/udev/control
exec "$1" -c "$2"
"""

# In a network namespace of its own, where no udevd talks: plays one that talks too fast.
SCRIPT = """
import os, socket
import pyudev
from gi.repository import GLib
from kjump.session import devices

start = pyudev.Monitor.start
def small(monitor):
    "libudev asks for 128 MiB, and gets them with CAP_NET_ADMIN only."
    start(monitor)
    with socket.socket(fileno=os.dup(monitor.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
pyudev.Monitor.start = small

NETLINK_KOBJECT_UEVENT, UDEV = 15, 2
heard = []
stop = devices.watch(lambda: heard.append(1))
udevd = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
context = GLib.MainContext.default()

def run(seconds):
    loop = GLib.MainLoop()
    GLib.timeout_add(int(seconds * 1000), loop.quit)
    loop.run()

run(0.1)
assert not heard, "nothing has happened yet"
for time in range(3):
    heard.clear()
    for _ in range(5000):
        udevd.sendto(b"x" * 400, (0, UDEV))
    run(0.5)
    assert heard, f"lost events are told of, time {time}"
    count = len(heard)
    run(0.5)
    assert len(heard) == count, "and then it is quiet"
stop()
print("good")
"""


def test_more_events_than_are_kept() -> None:
    pytest.importorskip("pyudev")
    if os.getuid():
        pytest.skip("plays udevd, which takes root")
    try:
        done = subprocess.run(
            ["unshare", "--net", "--mount", "sh", "-c", SETTING, "-", sys.executable, SCRIPT],
            check=False, text=True, timeout=60, capture_output=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "daemon")},
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare failed" in done.stderr:
        pytest.skip("no network namespace can be made here")
    assert done.stdout == "good\n", done.stderr

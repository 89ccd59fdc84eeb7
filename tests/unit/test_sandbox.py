# SPDX-License-Identifier: GPL-2.0-or-later
"""units/kjumpd.service takes from kjumpd what it does not need, and leaves what it does.

Each capability is in a table with the code that needs it; the guest scenario "sandbox" takes each
away and sees what fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "units/kjumpd.service"
HOOKS_UNIT = ROOT / "units/kjump-hooks@.service"
LEVEL = 2.5
"""Of ``systemd-analyze security``, at the most."""

CAPABILITIES = {
    # kexec_load(2) and reboot(2): kernel/kexec.c and kernel/reboot.c ask for it.
    "CAP_SYS_BOOT": ("machine/syscalls.py", "SYS_KEXEC_LOAD"),
    # Addresses in /proc/iomem and frame numbers in /proc/self/pagemap; the ioctls of /dev/snapshot;
    # maps of BPF; trees of btrfs.
    "CAP_SYS_ADMIN": ("session/staging/pinned_pages.py", "/proc/self/pagemap"),
    # /proc/kcore (fs/proc/kcore.c, open_kcore): where the direct map begins, for debuggers.
    "CAP_SYS_RAWIO": ("session/staging/describe.py", "/proc/kcore"),
}
"""What each is for: a file of daemon/kjump, and what in it needs the capability."""

DIRECTIVES = {
    "SystemCallFilter": ("kexec_load", "machine/syscalls.py", "kexec_load"),
    "DeviceAllow": ("/dev/snapshot", "machine/swap.py", "/dev/snapshot"),
    "ReadWritePaths": ("/sys/power", "session/systemd/resume_device.py", "/sys/power"),
    "ReadOnlyPaths": ("/sys", "session/staging/describe.py", "/proc/kcore"),
    "RuntimeDirectory": (
        "systemd/sleep.conf.d",
        "session/systemd/kernel_hibernation.py",
        "/run/systemd/sleep.conf.d",
    ),
    "RestrictAddressFamilies": ("AF_NETLINK", "session/target/watch.py", "Monitor"),
    "LimitMEMLOCK": ("8M", "session/staging/pinned_pages.py", "mlock"),
}
"""Directives that open something: a word of the value, and the code that needs it."""


def values(path: Path, name: str) -> list[str]:
    """All values of a directive of a unit, in order, as words."""
    lines = re.findall(rf"^{name}=(.*)$", path.read_text(), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def test_each_capability_is_there_for_a_reason() -> None:
    assert set(values(UNIT, "CapabilityBoundingSet")) == set(CAPABILITIES)
    for file, text in CAPABILITIES.values():
        assert text in (ROOT / "daemon/kjump" / file).read_text()


@pytest.mark.parametrize("name", DIRECTIVES)
def test_what_is_opened_is_needed(name: str) -> None:
    word, file, text = DIRECTIVES[name]
    assert word in [value.removeprefix("-") for value in values(UNIT, name)]
    assert text in (ROOT / "daemon/kjump" / file).read_text()


def test_hooks_of_others_are_not_in_the_sandbox() -> None:
    text = HOOKS_UNIT.read_text()
    assert not re.search(
        r"^(Protect|Private|Restrict|Capability|SystemCall|NoNew)", text, re.MULTILINE
    )
    source = (ROOT / "daemon/kjump/session/systemd/sleep.py").read_text()
    assert "kjump-hooks@{when}.service" in source


def test_how_much_is_exposed() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--no-pager",
            f"--threshold={int(LEVEL * 10)}",
            str(UNIT),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file (systemd 250)")
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, summary
    assert float(re.findall(r"\d+\.\d", summary)[0]) <= LEVEL


CYCLES = """
import threading

def filled():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def work():
    kept = []
    for kib in (243, 512, 980, 1900):
        buffer = bytes(kib << 10)
        number = int.from_bytes(b"1" + buffer, "little")
        kept.append(str(kib) * 20)
        del buffer, number

def cycle():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

cycle()
before = filled()
for _ in range(40):
    cycle()
print(filled() - before)
"""
"""Large buffers in a thread for each cycle, as for the window's choice; by how many KiB it grew."""


def test_what_a_cycle_needed_is_given_back() -> None:
    environment = dict(word.split("=") for word in values(UNIT, "Environment"))
    done = subprocess.run(
        [sys.executable, "-c", CYCLES], env=environment, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 512, done.stdout

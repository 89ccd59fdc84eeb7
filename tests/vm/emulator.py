# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU runs the guests, with which accelerator, and what follows if it breaks one of them.

Runs on the host.  KVM is used only if it really runs a Linux kernel here.  If it breaks a guest all
the same, the rest of the run uses TCG, QEMU's software emulation.  Nothing of this is kept for the
next run: another machine may have the same cache.
"""

from __future__ import annotations

import functools
import io
import os
import re
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from . import suites
from .cache import KEPT_IMAGES, cache_dir, digest, prune
from .channel import Monitor
from .errors import EmulatorFailed
from .shape import Shape

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
MENDED = (8, 1)
"""QEMU's version from which on one emulated processor does not run into what another has just
patched: see `Machine.emulator_failed`."""
QEMU_SUITE = "trixie"
"""If this machine's QEMU is older, the one of this release of Debian is taken."""
KVM = Path("/dev/kvm")

PROBE_WORDS = "console=ttyS0,115200 panic=-1 no_timer_check"
PROBE_SIGN = re.compile(r"VFS: (Unable to mount root|Cannot open root)")
"""What a kernel without a disk says last.  By then it has started all its processors, and run each
driver's and each subsystem's first lines."""
PROBE_DEADLINE = 30.0
"""Seconds that the kernel gets to come there: it takes two, even in software emulation."""

AGAIN = 2
"""How often something is run once more because the emulator broke a guest."""
RUN_AGAIN = "guest again:"
EMULATOR_FAILED = "The emulator broke this guest."
KVM_FAILED = re.compile(
    r"^KVM broke this guest \((.+)\); using TCG for the rest of this run\n", re.MULTILINE
)

_kvm_failed = threading.Event()


def acceleration() -> str:
    """kvm or tcg, the same for the whole run, child processes included: KJUMP_ACCEL.

    If it is not set, KVM is tried with the test kernel, which is never built for this.
    """
    return os.environ.get("KJUMP_ACCEL") or choose_acceleration(test_kernel)


def choose_acceleration(kernel: Callable[[], Path | None]) -> str:
    """kvm if the kernel that this finds runs with it, else tcg; KJUMP_ACCEL decides without asking.

    `kernel` is called only if KVM may work, and returns the path of a bzImage.
    """
    if chosen := os.environ.get("KJUMP_ACCEL"):
        return chosen
    reason = why_not_kvm(kernel)
    if reason:
        print(f"guest: not using KVM: {reason}", flush=True)
    os.environ["KJUMP_ACCEL"] = "tcg" if reason else "kvm"
    return os.environ["KJUMP_ACCEL"]


def why_not_kvm(kernel: Callable[[], Path | None]) -> str:
    """Why KVM cannot be used here; empty if it can."""
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"cannot open {KVM}"
    image = kernel()
    if image is None:
        return "no kernel to try it with (run `make kernel`, or set KJUMP_ACCEL=kvm)"
    return why_not_linux(image, "kvm")


def why_not_linux(kernel: Path, accel: str) -> str:
    """Why this kernel (a bzImage) does not run with this accelerator; empty if it does.

    A firmware alone proves little: there are machines whose KVM runs one, but does not know how to
    emulate an instruction that every Linux kernel has.
    """
    broken = threading.Event()
    monitor = Monitor(lambda _: None, broken.set)
    with tempfile.TemporaryDirectory(prefix="kjump-probe-") as name:
        console, said = Path(name, "console"), Path(name, "stderr")
        console.touch()
        command = [
            *("setpriv", "--pdeathsig", "KILL", *own_qemu()),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
            *("-machine", "q35", "-smp", "2", "-m", "256"),
            *("-accel", accel, "-cpu", Shape().cpu(accel)),
            *("-kernel", str(kernel), "-append", PROBE_WORDS),
            *("-chardev", f"file,id=console,path={console}"),
            *("-device", "isa-serial,chardev=console"),
            *("-chardev", f"socket,id=monitor,fd={monitor.far_end.fileno()}"),
            *("-mon", "chardev=monitor,mode=control"),
        ]
        fds = [monitor.far_end.fileno()]
        try:
            with said.open("wb") as file:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=fds
                )
        except OSError as error:
            return str(error)
        end = time.monotonic() + PROBE_DEADLINE
        try:
            monitor.begin()
            monitor.ask({"execute": "qmp_capabilities"}, PROBE_DEADLINE)
            monitor.look()
            while True:
                ended = process.poll() is not None
                if PROBE_SIGN.search(console.read_text(errors="replace")):
                    return ""
                if broken.is_set():
                    return "QEMU stopped a Linux kernel with an internal error"
                if ended:
                    words = said.read_text(errors="replace").strip() or "it said nothing"
                    return f"QEMU ended before a Linux kernel had booted: {words[-300:]}"
                if time.monotonic() > end:
                    return f"a Linux kernel did not boot within {PROBE_DEADLINE:.0f} s"
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
            monitor.close()


def test_kernel() -> Path | None:
    """The test kernel's bzImage, if the package is in the cache; it is not built here."""
    command = [str(ROOT / "packaging/kernel/build"), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return kernel_image(Path(done.stdout.strip())) if done.returncode == 0 else None


def kernel_image(package: Path) -> Path:
    """The bzImage of a Debian package, unpacked in the cache under a hash of the package."""
    path = cache_dir() / f"probe-{digest(package)}.vmlinuz"
    if path.exists():
        path.touch()
        return path
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    tar = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            file = archive.extractfile(member) if "boot/vmlinuz-" in member.name else None
            if file:
                part = path.with_suffix(f".{os.getpid()}.part")
                part.write_bytes(file.read())
                part.rename(path)
                prune(path.parent, "probe-*.vmlinuz", KEPT_IMAGES)
                return path
    raise SystemExit(f"{package} has no /boot/vmlinuz-*")


def give_up_kvm(reason: str) -> None:
    """Use TCG from now on, in this process and its children; print so once, as `KVM_FAILED`."""
    if not _kvm_failed.is_set():
        _kvm_failed.set()
        os.environ["KJUMP_ACCEL"] = "tcg"
        print(f"KVM broke this guest ({reason}); using TCG for the rest of this run", flush=True)


def retried(run: Callable[[], T]) -> T:
    """What `run` returns.  It runs again if the emulator broke a guest of its."""
    for left in range(AGAIN, -1, -1):
        gave_up = _kvm_failed.is_set()
        try:
            return run()
        except Exception as error:
            # A test that lost its guest may fail by anything.
            broken = isinstance(error, EmulatorFailed) or _kvm_failed.is_set() != gave_up
            if not broken or not left:
                raise
            print(f"{RUN_AGAIN} {error}", flush=True)
    raise AssertionError("not reached")


def version_of(words: Sequence[str]) -> tuple[int, int]:
    """Major and minor of a QEMU."""
    found = re.search(r"version (\d+)\.(\d+)", version_text(words))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def version_text(words: Sequence[str]) -> str:
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
    return done.stdout


def own_qemu() -> tuple[str, ...]:
    """This machine's QEMU, or the one that KJUMP_QEMU names."""
    return (os.environ.get("KJUMP_QEMU", QEMU),)


def emulator() -> tuple[str, ...]:
    """The words that start QEMU: this machine's, if it is good enough; else a newer one that is
    unpacked in the cache, and installed nowhere.  KJUMP_QEMU decides without asking."""
    if "KJUMP_QEMU" in os.environ or acceleration() == "kvm":
        return own_qemu()
    return _emulator_for_tcg()


@functools.cache
def _emulator_for_tcg() -> tuple[str, ...]:
    own = own_qemu()
    if version_of(own) >= MENDED:
        return own
    try:
        words = suites.program(QEMU_SUITE, "qemu-system-x86", f"/usr/bin/{QEMU}")
        version_of(words)
    except (OSError, SystemExit, subprocess.SubprocessError) as error:
        print(f"guest: cannot get a newer QEMU ({error}); using this machine's", flush=True)
        return own
    share = Path(words[-1]).parents[1] / "share"
    return (*words, "-L", f"{share}/qemu", "-L", f"{share}/seabios")

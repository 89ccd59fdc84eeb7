# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the guest scenarios, two at a time, with progress; exits non-zero if one failed.

usage: python3 -m tests.vm.run [--all] [--jobs N] [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from . import image, scenarios
from .cache import cache_dir
from .contents import DESKTOPS, PLYMOUTH, SUITE
from .emulator import (
    KVM_FAILED,
    RUN_AGAIN,
    acceleration,
    emulator,
    give_up_kvm,
    retried,
    version_of,
)
from .errors import GuestError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kind:
    """A guest image by what is in it, and the variable that names one to take as it is."""

    variable: str
    kjump: bool = True  # this tree's package; without it the guest hibernates to swap
    more: str = ""  # see contents.MORE


KINDS = {
    "guest": Kind("KJUMP_GUEST_IMAGE"),
    "swap": Kind("KJUMP_SWAP_IMAGE", kjump=False),
    PLYMOUTH: Kind("KJUMP_PLYMOUTH_IMAGE", more=PLYMOUTH),
    DESKTOPS: Kind("KJUMP_DESKTOPS_IMAGE", more=DESKTOPS),
}


def said(*command: str | Path) -> str:
    """The last line a command prints; what it writes to stderr meanwhile is shown."""
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.strip().splitlines()[-1]


def kernel_package() -> Path:
    """The test kernel: cached, or built by the project's recipe (20 to 30 minutes)."""
    return Path(said(ROOT / "packaging/kernel/build"))


def our_package() -> Path:
    """The Debian package of this tree."""
    return Path(said("make", "--no-print-directory", "-C", ROOT, "deb"))


def guest_image(
    kind: str = "guest", *, kernel: Path | None = None, suite: str = SUITE
) -> image.Image:
    """A guest image of one of `KINDS`, from the cache or built; or the one that its variable names.

    ``kernel``: with another kernel's package; ``suite``: of another release of Debian.
    """
    wanted = KINDS[kind]
    if kernel is None and suite == SUITE and wanted.variable in os.environ:
        return image.Image.load(Path(os.environ[wanted.variable]))
    package = our_package() if wanted.kjump else None
    return built(kernel or kernel_package(), package, suite, more=wanted.more)


def built(kernel: Path, package: Path | None, suite: str = SUITE, *, more: str = "") -> image.Image:
    """From the cache, or built; without a package the one that hibernates to swap."""
    if os.geteuid() == 0:
        return image.build(kernel, package, swap=package is None, more=more, suite=suite)
    # Building mounts file systems and makes device nodes; running the guests needs no rights.
    cache = cache_dir().parent
    what: list[str | Path] = ["--deb", package] if package else ["--swap"]
    what += [*(["--more", more] if more else []), "--suite", suite]
    path = said(
        "sudo",
        "env",
        f"KJUMP_CACHE={cache}",
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-m",
        "tests.vm.image",
        "--kernel",
        kernel,
        *what,
    )
    return image.Image.load(Path(path))


def run_one(name: str) -> int:
    """Run a scenario in this process; once more if the emulator broke its guest."""
    every = scenarios.ALWAYS | scenarios.MORE
    try:
        retried(lambda: every[name](guest_image()))
    except GuestError as error:
        print(error)
        return 1
    except Exception:  # noqa: BLE001 (the other scenarios still run)
        traceback.print_exc()
        return 1
    return 0


def child(name: str) -> list[str]:
    """The command that runs a scenario in a process of its own."""
    return [sys.executable, "-m", "tests.vm.run", "--here", name]


def run_all(names: list[str], jobs: int, disk: image.Image) -> int:
    """Run scenarios, each in a process of its own; how many failed."""
    every = scenarios.ALWAYS | scenarios.MORE
    waiting = deque(names)
    running: dict[subprocess.Popen[bytes], tuple[str, float]] = {}
    failed: list[str] = []
    begin = time.monotonic()
    logs = Path(tempfile.mkdtemp(prefix="kjump-guests-"))
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.popleft()
            log = (logs / f"{name}.log").open("w")
            process = subprocess.Popen(
                child(name),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {"PYTHONPATH": f"{ROOT}/daemon:{ROOT}", "KJUMP_GUEST_IMAGE": str(disk.path)},
                cwd=ROOT,
            )
            running[process] = (name, time.monotonic())
        time.sleep(0.5)
        ended = [process for process in running if process.poll() is not None]
        for name, _ in running.values():
            if found := KVM_FAILED.search((logs / f"{name}.log").read_text()):
                give_up_kvm(found[1])  # for all that start from now on
        for process in ended:
            name, since = running.pop(process)
            good = process.returncode == 0
            took = time.monotonic() - since
            text = KVM_FAILED.sub("", (logs / f"{name}.log").read_text())
            word = "passed" if good else "FAILED"
            print(f"guest {word} {took:5.0f} s  {name}: {every[name].__doc__}", flush=True)
            if not good:
                failed.append(name)
            if not good or RUN_AGAIN in text:
                print(text, flush=True)
    minutes = (time.monotonic() - begin) / 60
    print(f"guest tests took {minutes:.1f} min" + (f"; failed: {failed}" if failed else ""))
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed", flush=True)
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="every shape, half an hour more")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.here:
        return max(run_one(name) for name in options.names)
    names = options.names or [*scenarios.ALWAYS, *(scenarios.MORE if options.all else ())]
    print(
        f"guest tests: {len(names)} scenarios, {options.jobs} at a time; caches in {cache_dir()}",
        flush=True,
    )
    begin = time.monotonic()
    found = guest_image()
    print(
        f"guest image ready after {time.monotonic() - begin:.0f} s: {found.path.name}", flush=True
    )
    # Now the test kernel is there to try KVM with.
    accel, version = acceleration(), ".".join(map(str, version_of(emulator())))
    print(f"guests run with {accel}, QEMU {version}", flush=True)
    return 1 if run_all(names, options.jobs, found) else 0


if __name__ == "__main__":
    sys.exit(main())

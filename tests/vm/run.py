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
from collections import Counter, deque
from pathlib import Path

from . import image, scenarios
from .guest import EMULATOR_FAILED, GuestError, acceleration, emulator, version_of

ROOT = Path(__file__).resolve().parents[2]
AGAIN = 2
"""How often a scenario is run once more whose guest the emulator broke."""


def said(*command: str | Path) -> str:
    """The last line a command prints; what it tells meanwhile on stderr is shown."""
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.strip().splitlines()[-1]


def kernel_package() -> Path:
    """The test kernel: cached, or built by the project's recipe (20 to 30 minutes)."""
    return Path(said(ROOT / "packaging/kernel/build"))


def our_package() -> Path:
    """The Debian package of this tree."""
    return Path(said("make", "--no-print-directory", "-C", ROOT, "deb"))


def guest_image(kernel: Path | None = None, suite: str = image.SUITE) -> image.Image:
    """The guest with this tree's package installed, from the cache or built; one that
    KJUMP_GUEST_IMAGE names is taken as it is.  ``kernel``: with another kernel's package;
    ``suite``: of another release of Debian."""
    if kernel is None and suite == image.SUITE and "KJUMP_GUEST_IMAGE" in os.environ:
        return image.Image.load(Path(os.environ["KJUMP_GUEST_IMAGE"]))
    return built(kernel or kernel_package(), our_package(), suite)


def swap_image() -> image.Image:
    """The guest without kjump, ready for the kernel's own hibernation; one that KJUMP_SWAP_IMAGE
    names is taken as it is."""
    if "KJUMP_SWAP_IMAGE" in os.environ:
        return image.Image.load(Path(os.environ["KJUMP_SWAP_IMAGE"]))
    return built(kernel_package(), None)


def plymouth_image() -> image.Image:
    """The guest with Plymouth; one that KJUMP_PLYMOUTH_IMAGE names is taken as it is."""
    if "KJUMP_PLYMOUTH_IMAGE" in os.environ:
        return image.Image.load(Path(os.environ["KJUMP_PLYMOUTH_IMAGE"]))
    return built(kernel_package(), our_package(), more=image.PLYMOUTH)


def desktops_image() -> image.Image:
    """The guest with UPower, XFCE's session and Plasma's; one that KJUMP_DESKTOPS_IMAGE names is
    taken as it is."""
    if "KJUMP_DESKTOPS_IMAGE" in os.environ:
        return image.Image.load(Path(os.environ["KJUMP_DESKTOPS_IMAGE"]))
    return built(kernel_package(), our_package(), more=image.DESKTOPS)


def built(
    kernel: Path, package: Path | None, suite: str = image.SUITE, *, more: str = ""
) -> image.Image:
    """From the cache, or built; without a package the one that hibernates to swap."""
    if os.geteuid() == 0:
        return image.build(kernel, package, swap=package is None, more=more, suite=suite)
    # Building mounts file systems and makes device nodes; running the guests needs no rights.
    cache = image.cache_dir().parent
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
    """Run a scenario in this process."""
    every = scenarios.ALWAYS | scenarios.MORE
    try:
        every[name](guest_image())
    except GuestError as error:
        print(error)
        return 1
    except Exception:  # noqa: BLE001 (the other scenarios still run)
        traceback.print_exc()
        return 1
    return 0


def run_all(names: list[str], jobs: int, disk: image.Image) -> int:
    """Run scenarios, each in a process of its own; how many failed."""
    every = scenarios.ALWAYS | scenarios.MORE
    waiting = deque(names)
    running: dict[subprocess.Popen[bytes], tuple[str, float]] = {}
    failed: list[str] = []
    again: Counter[str] = Counter()
    begin = time.monotonic()
    logs = Path(tempfile.mkdtemp(prefix="kjump-guests-"))
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.popleft()
            log = (logs / f"{name}.log").open("w")
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.vm.run", "--here", name],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {"PYTHONPATH": f"{ROOT}/daemon:{ROOT}", "KJUMP_GUEST_IMAGE": str(disk.path)},
                cwd=ROOT,
            )
            running[process] = (name, time.monotonic())
        time.sleep(0.5)
        for process in [p for p in running if p.poll() is not None]:
            name, since = running.pop(process)
            good = process.returncode == 0
            took = time.monotonic() - since
            text = (logs / f"{name}.log").read_text()
            if not good and EMULATOR_FAILED in text and again[name] < AGAIN:
                print(f"guest again  {took:5.0f} s  {name}: {EMULATOR_FAILED}\n{text}", flush=True)
                again[name] += 1
                waiting.append(name)
                continue
            word = "passed" if good else "FAILED"
            print(f"guest {word} {took:5.0f} s  {name}: {every[name].__doc__}", flush=True)
            if not good:
                failed.append(name)
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
    version = ".".join(map(str, version_of(emulator())))
    print(
        f"guest tests: {len(names)} scenarios, {options.jobs} at a time, {acceleration()},"
        f" QEMU {version}; caches in {image.cache_dir()}",
        flush=True,
    )
    begin = time.monotonic()
    found = guest_image()
    print(
        f"guest image ready after {time.monotonic() - begin:.0f} s: {found.path.name}", flush=True
    )
    return 1 if run_all(names, options.jobs, found) else 0


if __name__ == "__main__":
    sys.exit(main())

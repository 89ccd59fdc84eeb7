# SPDX-License-Identifier: GPL-2.0-or-later
"""``make demo``: hibernate and resume a real guest, and show it.

An ordinary user of a Debian 13 guest, with work open, types ``systemctl hibernate``.  The machine
saves and goes off, is switched on again by an ordinary boot of the same disk, and her work is
checked.  Exits 0 only if every check held.

usage: python3 -m tests.vm.demo [--memory MIB] [--cpus N] [--machine q35|pc] [--la57]
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .cache import cache_dir
from .emulator import acceleration, retried
from .guest import Guest, GuestError, Message, Shape
from .image import Image
from .run import guest_image
from .steps import SAVE, ctl, last_cycle, nothing_staged, power_off, ready, request

SHOWN = re.compile(r"kjump:|Power down|Freezing user space|Restarting tasks|CPU\d+ is up|GRUB")
EXPLAINED = {
    "boot_id": "same boot: the session went on, nothing was started anew",
    "memory": "100 MiB of random memory, hash equal",
    "deleted_file": "deleted but open file, readable and writable",
    "tmpfs_file": "file on tmpfs, equal",
    "tcp": "TCP connection on loopback, counting on",
    "timer": "timer, ticking on",
    "editor": "unsaved text in nano, in tmux",
    "cpus": "all CPUs online",
    "disk": "disk readable and writable",
    "clock": "clock right",
}


def say(text: str = "") -> None:
    print(text, flush=True)


@contextmanager
def watched(guest: Guest) -> Iterator[None]:
    """Show the guest's console as it goes."""
    done = threading.Event()

    def watch() -> None:
        at = len(guest.console())
        last = False
        while not last:
            last = done.wait(0.3)
            text = guest.console()
            end = text.rfind("\n") + 1
            for line in text[at:end].splitlines():
                if SHOWN.search(line):
                    say(f"    | {line[max(line.find('kjump:'), 0) :].strip()[:110]}")
            at = max(at, end)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def verdicts(work: Message) -> bool:
    """A line for each check; whether all hold."""
    for name, entry in work.items():
        mark = "ok  " if entry["ok"] else "LOST"
        say(f"    {mark} {EXPLAINED.get(name, name)}  ({str(entry['detail'])[:70]})")
    return all(entry["ok"] for entry in work.values()) and set(EXPLAINED) <= set(work)


def figures(last: Mapping[str, object]) -> list[tuple[str, str]]:
    """The short table: phases, pages, image."""
    phases, pages, disk = last["phases"], last["pages"], last["image"]
    assert isinstance(phases, dict) and isinstance(pages, dict) and isinstance(disk, dict)
    rows = [(f"{name}", f"{seconds:8.2f} s") for name, seconds in phases.items()]
    rows += [(f"pages {kind}", f"{pages[kind]:8d}") for kind in ("data", "zero", "free")]
    rows += [
        ("image", f"{disk['size'] / (1 << 20):8.1f} MiB"),
        ("ratio", f"{disk['data'] / max(disk['size'], 1):8.2f} : 1"),
    ]
    return rows


def demonstrate(disk: Image, shape: Shape) -> bool:
    """The whole story; whether every check held."""
    begin = time.monotonic()
    with Guest(disk, shape) as guest:
        say("1. A Debian 13 guest boots, and alice logs in.")
        ready(guest)
        say(f"    | {guest.check('loginctl list-sessions --no-legend').splitlines()[0].strip()}")
        say("2. She has work open.")
        guest.start_work(100)
        if not verdicts(guest.work()):
            return False
        say("3. She types: systemctl hibernate")
        with watched(guest):
            request(guest)
            power_off(guest)
        say("4. The machine is off. It is switched on again: an ordinary boot of the same disk.")
        with guest.again() as second:
            with watched(second):
                second.wait_ready(SAVE)
            say("5. Her work:")
            good = verdicts(second.work())
            nothing_staged(second)
            say("6. kjumpctl status")
            for line in ctl(second, "status").out.splitlines():
                say(f"    {line}")
            last = last_cycle(second)
            say("7. In figures:")
            for name, value in figures(last):
                say(f"    {name:16} {value}")
            good = good and last["result"] == "ok"
            second.spawn("systemctl poweroff")
            second.wait_exit(120)
    say(
        f"{'Every check held' if good else 'SOMETHING WAS LOST'};"
        f" it took {time.monotonic() - begin:.0f} s."
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--machine", choices=("q35", "pc"), default="q35")
    parser.add_argument("--la57", action="store_true", help="5-level paging")
    options = parser.parse_args()
    shape = Shape(
        memory=options.memory, cpus=options.cpus, machine=options.machine, la57=options.la57
    )
    say(
        f"kjump demo: {shape.memory} MiB, {shape.cpus} CPUs, {shape.machine};"
        f" caches in {cache_dir()}"
    )
    disk = guest_image()
    say(f"The guest runs with {acceleration()}.")
    try:
        return 0 if retried(lambda: demonstrate(disk, shape)) else 1
    except GuestError as error:
        say(f"failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory full of what nothing compresses, and no swap: it hibernates and comes back.

Full is: all but what the helper's window takes and 5 % of memory is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kjump.machine.memory import parse_meminfo

from .guest import Guest, Shape
from .image import MIB, Image
from .steps import (
    SAVE,
    at_work,
    ctl_json,
    cycle,
    expect,
    last_cycle,
    nothing_staged,
    require,
    work_holds,
)

HOLD = Path(__file__).parents[1] / "hold.py"
PAGE = 4096
WORK = 20  # MiB of the user's work; the rest is the fill's
ZEROS = 0.8
"""The share of a fill that is zeros."""
PER_GIB = 180
"""Seconds that a GiB may take to save, or to put back, in emulation."""


def filled(guest: Guest, memory: int) -> float:
    """Fill the guest's memory up to what it must spare; the share of RAM that is in use then."""
    window = ctl_json(guest, "status")["Window"]
    # The window and 5 %; where that is not more than staging asks for, no request could be served.
    spare = max(window["size"] + memory * MIB * 50 // 1000, window["available_needed"] + 8 * MIB)
    blocks = guest.fill(f"start --until-available {spare // MIB}")["blocks"]
    facts = parse_meminfo(guest.check("cat /proc/meminfo"))
    used = 1 - facts["MemAvailable"] / facts["MemTotal"]
    print(
        f"filled: {blocks} MiB; {facts['MemAvailable'] // MIB} of {facts['MemTotal'] // MIB} MiB"
        f" available, {used:.1%} in use; window {window['size'] // MIB} MiB,"
        f" needed {window['available_needed'] // MIB} MiB",
        flush=True,
    )
    expect("swap", facts["SwapTotal"], 0)
    left = facts["MemAvailable"] - window["size"]
    require(
        "memory is full but for the window and 5 %", left < 0.05 * memory * MIB + 8 * MIB, facts
    )
    return used


def holds(guest: Guest) -> None:
    """Fill and work are unharmed."""
    found = guest.fill("check")
    require("every page of the fill is as it was", found["ok"], found)
    work_holds(guest)


def full_memory(shape: Shape, *, least: float, in_place: bool = False) -> Callable[[Image], None]:
    """A cycle with full memory.  ``least``: the share of RAM that must be in use; ``in_place``:
    it must come back in place.  (A large machine that is full has still more free
    than a boot kernel takes: there the image fits beside it.)"""

    deadline = SAVE + PER_GIB * shape.memory / 1024

    def run(image: Image) -> None:
        with at_work(image, shape, WORK) as guest:
            nodes = guest.check("ls -d /sys/devices/system/node/node*").split()
            expect("NUMA nodes", len(nodes), shape.numa)
            used = filled(guest, shape.memory)
            require(f"{least:.0%} of memory are in use", used > least, used)
            expect("can-hibernate", ctl_json(guest, "can-hibernate")["answer"], "yes")
            with cycle(guest, deadline=deadline) as again:
                holds(again)
                nothing_staged(again)
                last = last_cycle(again)
                print(last, flush=True)
                expect("result", last["result"], "ok")
                way = last["more"]["way"]
                if in_place:
                    expect("way back", way, "in-place")
                told = " in place: 100 %" if way == "in-place" else ": 100 %"
                require("saving reported its end", "saving 100 %" in guest.console(), told)
                require("and resuming", told in again.console(), told)
                saved = last["pages"]["data"] * PAGE
                require("so much was saved", saved > (least - 0.05) * shape.memory * MIB, saved)

    run.__doc__ = (
        f"full memory, {shape.memory} MiB on {shape.numa} NUMA node{'s' * (shape.numa > 1)}:"
        f" over {least:.0%} in use, incompressible, no swap"
    )
    return run


def barely_enough(guest: Guest) -> None:
    """Where only just so much is available as staging needs, all but what an allocation would
    reclaim from programs that have it mapped is not enough: the daemon has it reclaimed."""
    window = ctl_json(guest, "status")["Window"]
    left = window["available_needed"] // MIB + 5
    guest.put(HOLD.read_bytes(), "/tmp/hold.py")
    guest.spawn(f"exec python3 /tmp/hold.py {left} >/tmp/held")
    guest.check("until grep -q held /tmp/held; do sleep 0.2; done", timeout=120)
    call = "busctl --timeout=200 call org.kjump1 /org/kjump1 org.kjump1.Manager"
    # Where the kernel takes memory from is found out, by this kernel without huge pages too.
    sample = (
        "import kjump.session.staging.window as w; assert sum(w.sample_allocations(1 << 20)) == 256"
    )
    guest.check(f"python3 -c '{sample}'")
    # Staging where memory is full has it compacted, and then a locked page may be moved.
    mapped = "grep -q bpf-map /proc/$(systemctl show -P MainPID kjumpd)/maps"
    look = f"until {mapped}; do sleep 0.02; done"
    looking = guest.spawn(f"exec timeout 240 bash -c '{look}'")
    guest.check(f"{call} DryRun", timeout=240)
    found = guest.job(looking)
    require("the report page is the kernel's", found is not None and found.rc == 0, found)
    guest.check("pkill -f hold.py")
    nothing_staged(guest)


def zeros(image: Image) -> None:
    """Memory full of zeros: the boot kernel need not hold them, and lay where many of them go."""
    with at_work(image, Shape(), WORK) as guest:
        # Besides, what the request itself takes, and polkit, which is started for it.
        spare = ctl_json(guest, "status")["Window"]["available_needed"] // MIB + 40
        blocks = guest.fill(f"start --until-available {spare} --zeros {ZEROS}")["blocks"]
        barely_enough(guest)
        with cycle(guest) as again:
            holds(again)
            nothing_staged(again)
            last = last_cycle(again)
            expect("result", last["result"], "ok")
            # With those of zeros it would not fit.
            expect("way back", last["more"]["way"], "snapshot")
            found = last["pages"]["zero"] * PAGE
            require("they are pages of zeros", found > 0.9 * ZEROS * blocks * MIB, last)


ALWAYS = {
    "full-1g": full_memory(Shape(la57=True, machine="pc"), least=0.75, in_place=True),
    "zeros": zeros,
}

MORE = {
    "full-2g": full_memory(Shape(memory=2048), least=0.85),
    "full-4g": full_memory(Shape(memory=4096), least=0.90),
    "full-8g": full_memory(Shape(memory=8192, numa=2), least=0.93),
}

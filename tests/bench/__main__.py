# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench``: measures kjump and the kernel's own hibernation, in alternating pairs.

usage: python3 -m tests.bench [--quick | --full] [--memory MIB,...] [--fill PERCENT,...]
           [--mix random,text] [--throttle MB/S,...] [--systems ours,warm,lzo,lz4] [--pairs N]
           [--most N] [--out DIR] [--fresh] [--show]

Results accumulate in DIR: what was measured with the same guest image is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from tests.vm import run as guests_run
from tests.vm.emulator import acceleration, retried
from tests.vm.guest import Guest, GuestError
from tests.vm.image import Image

from . import figures, guests, picture
from .figures import LZ4, LZO, OURS, STOCK, SYSTEMS, WARM, Cell, Record

Plan = list[tuple[Cell, str, int]]
SCALING_FILL = 75
SAME_DISK = 200
"""MB/s: unthrottled, a disk takes less the more is written, as the host's page cache fills."""
MEMORY = 2048
"""MiB: with 1 GiB, 85 % in use leaves less than the window takes."""


def cells(
    memory: Sequence[int], fill: Sequence[int], mix: Sequence[str], throttle: Sequence[int]
) -> list[Cell]:
    return [Cell(m, f, x, t) for m in memory for f in fill for x in mix for t in throttle]


def alternating(found: Sequence[Cell], systems: Sequence[str], pairs: int) -> Plan:
    """Every pair of every cell, one system after the other; pairs begin with different systems."""
    out: Plan = []
    for cell in found:
        for pair in range(1, pairs + 1):
            turn = (pair - 1) % len(systems)
            out += [(cell, system, pair) for system in (*systems[turn:], *systems[:turn])]
    return out


def default_plan(pairs: int) -> Plan:
    """What says something about each goal, in about half an hour of emulation."""
    full = Cell(MEMORY, 85, "text", 0)
    plan = alternating([full], SYSTEMS, pairs)
    less = cells([MEMORY], [25, 50], ["text"], [0])
    plan += alternating(less, (OURS, WARM, LZO), pairs)
    plan += alternating([Cell(MEMORY, 85, "random", 200)], (OURS, WARM, LZO), pairs)
    plan += alternating(cells([1024, 8192], [SCALING_FILL], ["random"], [SAME_DISK]), (OURS,), 1)
    return plan


def quick_plan() -> Plan:
    return alternating([Cell(1024, SCALING_FILL, "text", 0)], (OURS, LZO), 1)


def full_plan(pairs: int) -> Plan:
    """The whole matrix."""
    every = cells([MEMORY], [25, 50, 85], ["text", "random"], [0, 200])
    plan = alternating(every, SYSTEMS, pairs)
    return plan + alternating(
        cells([1024, 2048, 4096, 8192], [SCALING_FILL], ["random"], [SAME_DISK]), (OURS,), pairs
    )


def guess(cell: Cell, system: str, known: Sequence[Record]) -> float:
    """Seconds that a cycle may take: as before, else as in emulation on two cores."""
    before = [r.took for r in known if r.cell == cell and r.system == system]
    if before:
        return median(before)
    used = cell.memory * cell.fill / 100 / 1024
    return 20 + used * (20 if cell.throttle or system in STOCK else 12)


def minutes(plan: Plan, known: Sequence[Record]) -> float:
    return sum(guess(cell, system, known) for cell, system, _ in plan) / 60


def say(text: str) -> None:
    print(f"bench: {text}", flush=True)


class Results:
    """results.json and what is made of it, in a folder."""

    def __init__(self, folder: Path, about: dict[str, str], *, fresh: bool) -> None:
        self.folder = folder
        self.about = about
        self.records: list[Record] = []
        path = folder / "results.json"
        if fresh or not path.exists():
            return
        try:
            records, before = figures.load(path.read_text())
        except (ValueError, KeyError, TypeError):
            say(f"{path} cannot be read: starting again from nothing")
            return
        if before.get("image") == about["image"]:
            self.records = records
        else:
            path.rename(folder / f"results-{before.get('image', 'old')}.json")
            say("the results in this folder are of another build: set aside")

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.save()

    def move(self, about: dict[str, str]) -> bool:
        """Set aside old results if the accelerator of the guests has changed; whether it has.

        Times of KVM and of TCG say nothing about each other.
        """
        if about["runs on"] == self.about["runs on"]:
            return False
        if self.records:
            path = self.folder / "results.json"
            path.rename(self.folder / "results-other-accelerator.json")
            say("the accelerator of the guests has changed: setting earlier results aside")
        self.about, self.records = about, []
        return True

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "results.part"
        part.write_text(figures.dump(self.records, self.about))
        part.rename(self.folder / "results.json")
        (self.folder / "results.md").write_text(figures.report(self.records, self.about))
        (self.folder / "timeline.svg").write_text(picture.timeline(self.records))

    def has(self, item: tuple[Cell, str, int]) -> bool:
        return any((r.cell, r.system, r.pair) == item for r in self.records)


def about(image: Image) -> dict[str, str]:
    """What these figures are of."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "image": image.path.stem,
        "commit": commit,
        "kernel": image.kernels["kjump"],
        "processors of the guest": str(guests.CPUS),
        "runs on": f"{Guest.version().splitlines()[0]}, {acceleration()}",
    }


def measure_one(image: Image, cell: Cell, system: str, pair: int, scratch: Path) -> Record:
    """One cycle, in a folder of its own below `scratch`.  Raises `NotThere`, `GuestError`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
    try:
        return guests.measure(image, cell, system, pair, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_all(plan: Plan, image: Image, results: Results, most: int) -> int:
    """Measure what is not yet measured, ``most`` cycles of it; how many failed."""
    failed = 0
    missing: set[str] = set()
    scratch = results.folder / "guests"
    scratch.mkdir(parents=True, exist_ok=True)
    for number, (cell, system, pair) in enumerate(plan, 1):
        if system in missing or results.has((cell, system, pair)):
            continue
        if most == 0:
            break
        most -= 1
        begin = time.monotonic()
        title = f"{number}/{len(plan)} {figures.TITLES[system]}, pair {pair}: {cell.name()}"
        try:
            disk = guests_run.guest_image("swap") if system in STOCK else image
            record = retried(partial(measure_one, disk, cell, system, pair, scratch))
        except guests.NotThere as reason:
            missing.add(system)
            say(f"{title}: left out, {reason}")
            continue
        except GuestError as error:
            failed += 1
            log = results.folder / f"failed-{system}-{pair}-{int(begin)}.log"
            log.write_text(f"{title}\n{error}\n")
            say(f"{title}: FAILED, see {log}\n{str(error).splitlines()[0]}")
            continue
        moved = results.move(about(image))
        results.add(record)
        say(
            f"{title}: off {record.off:.1f} s, on {record.running:.1f} s,"
            f" {record.written >> 20} MiB written ({time.monotonic() - begin:.0f} s)"
        )
        if moved:
            return failed + measure_all(plan, image, results, most)
    return failed


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def plan_of(options: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    systems = options.systems.split(",") if options.systems else None
    unknown = set(systems or ()) - set(SYSTEMS)
    if unknown:
        raise SystemExit(f"no such system: {', '.join(sorted(unknown))}")
    if options.memory or options.fill or options.mix or options.throttle:
        wanted = cells(
            numbers(options.memory or str(MEMORY)),
            numbers(options.fill or "85"),
            (options.mix or "text").split(","),
            numbers(options.throttle or "0"),
        )
        return alternating(wanted, systems or (OURS, WARM, LZO, LZ4), options.pairs)
    plan = (
        quick_plan()
        if options.quick
        else full_plan(options.pairs)
        if options.full
        else default_plan(options.pairs)
    )
    return [item for item in plan if systems is None or item[1] in systems]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python3 -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="one cell, one pair: some minutes")
    parser.add_argument("--full", action="store_true", help="the whole matrix: some hours")
    parser.add_argument("--memory", help="of the guest, MiB")
    parser.add_argument("--fill", help="percent of RAM in use")
    parser.add_argument("--mix", help="random,text")
    parser.add_argument("--throttle", help="of the disk, MB/s; 0: none")
    parser.add_argument("--systems", help=",".join(SYSTEMS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000, help="cycles to measure this time")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--show", action="store_true", help="only make table and picture again")
    options = parser.parse_args()
    if options.show:
        path = options.out / "results.json"
        records, facts = figures.load(path.read_text())
        (options.out / "results.md").write_text(figures.report(records, facts))
        (options.out / "timeline.svg").write_text(picture.timeline(records))
        print((options.out / "results.md").read_text())
        return 0
    plan = plan_of(options)
    image = guests_run.guest_image()
    results = Results(options.out, about(image), fresh=options.fresh)
    left = [item for item in plan if not results.has(item)]
    say(
        f"{len(plan)} cycles, {len(plan) - len(left)} of them measured before; the rest takes about"
        f" {minutes(left, results.records):.0f} minutes; {acceleration()}; results in {options.out}"
    )
    failed = measure_all(plan, image, results, options.most)
    results.save()
    print((options.out / "results.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The page set and what was saved, against QEMU's view of memory and makedumpfile's opinion.

A guest with work open hibernates.  While the helper copies, the guest is paused, and QEMU gives its
physical memory: the session's stands still, only the window is the helper's.  That memory, as a
core, is what makedumpfile judges; then every page of it is compared with the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from . import oracle
from .guest import Guest, GuestError, Message, Shape
from .image import MIB, Image
from .oracle import STORED, ZEROS, Saved
from .steps import (
    SAVE,
    at_work,
    ctl_json,
    expect,
    hibernate,
    power_off,
    request,
    require,
    went_well,
)

PAGE = 4096
ZERO_PAGES, FREE_PAGES = 1, 16
"""Of makedumpfile's dump levels."""
SLOW = 16 * MIB
"""Bytes a second of the disk while the helper saves, so that there is time to look."""
SCAN_SHARE = 0.05
"""What finding the pages to save may take of a save."""


def freeze(guest: Guest, ram: list[tuple[int, int]], path: Path) -> Path:
    """Physical memory while the helper copies; the guest goes on afterwards."""
    try:
        guest.wait_console(r"kjump: saving ", SAVE)
    except GuestError as error:
        journal = guest.run("journalctl -b -n 40 --no-pager", timeout=120).out
        raise GuestError(f"{error}\n--- journal ---\n{journal}") from error
    guest.qmp("stop")
    oracle.physical_memory(guest, ram, path)
    require("the helper still copied", "kjump: saved:" not in guest.console()[guest.seen :])
    guest.slow_disk(0)
    guest.qmp("cont")
    return path


def compare(saved: Saved, kept: bytes, present: bytes, zeros_are_free: bool) -> Message:
    """The image's page set against makedumpfile's: ``kept`` at level 17 (neither zero nor free),
    ``present`` at level 16 (not free).  Counts by class; raises GuestError for any page that
    differs without a reason that is named here.

    ``zeros_are_free``: the session's kernel trusts free pages to be zero, so they are recorded as
    such.
    """
    count = max(len(saved.kinds), len(kept), len(present))
    kept, present = (flags.ljust(count, b"\0") for flags in (kept, present))
    covered = bytes(oracle.in_ranges(saved.ranges, count))
    hidden = bytes(
        oracle.in_ranges(
            oracle.whole([saved.description.facts.window, *saved.description.facts.low]),
            count,
        )
    )
    ram = bytes(oracle.in_ranges(oracle.whole(saved.description.facts.ram), count))
    stored = oracle.select(saved.kinds, [STORED], count)
    ours = oracle.select(saved.kinds, [STORED, ZEROS], count)

    unexplained: dict[str, list[int]] = {}

    def same(what: str, one: bytes, other: bytes) -> None:
        if found := oracle.where(one, other):
            unexplained[what] = found

    # The window and the low pages are the helper's meanwhile: in no core, and in no image.
    same("RAM that is neither the image's nor hidden", ram, oracle.union(covered, hidden))
    same("saved pages of the window", oracle.both(ours, hidden), bytes(count))
    # makedumpfile leaves out broken and offline pages at each level, and so do we.
    same("pages stored, and those that makedumpfile keeps", stored, kept)
    if zeros_are_free:
        # Pages that are free are recorded as zeros: nothing is left out at all.
        same("pages recorded, and all there are", ours, covered)
    else:
        same("pages recorded, and those that makedumpfile finds in use", ours, present)
    if unexplained:
        raise GuestError(
            "; ".join(
                f"{what}: {len(pfns)} differ, {[hex(pfn) for pfn in pfns[:20]]}"
                for what, pfns in unexplained.items()
            )
        )
    return {
        "RAM": sum(ram),
        "window and low pages": sum(hidden),
        "stored, kept by makedumpfile": sum(stored),
        "zero, in use": sum(present) - sum(kept),
        "free, broken or offline": sum(covered) - sum(present),
    }


def same_content(saved: Saved, memory: Path) -> Counter[str]:
    """Each stored page is what lies in memory, each zero page is zero; counts.

    Raises GuestError with the pages that differ, the report page excepted.
    """
    report = saved.description.facts.report_page // PAGE
    counts: Counter[str] = Counter()
    wrong: list[int] = []
    with memory.open("rb") as file:

        def compare_run(pfn: int, data: bytes) -> None:
            file.seek(pfn * PAGE)
            found = file.read(len(data))
            if found == data:
                counts["equal"] += len(data) // PAGE
                return
            for at in range(0, len(data), PAGE):
                if found[at : at + PAGE] == data[at : at + PAGE]:
                    counts["equal"] += 1
                elif pfn + at // PAGE == report:
                    counts["report page"] += 1
                else:
                    wrong.append(pfn + at // PAGE)

        for pfn, data in saved.content():
            compare_run(pfn, data)
    if wrong:
        raise GuestError(f"{len(wrong)} pages differ: {[hex(pfn) for pfn in wrong[:20]]}")
    return counts


def scan_cost(memory: int, phases: Message) -> float:
    """Seconds that the scan took, of a machine with ``memory`` MiB; GuestError where that was too
    much of the save."""
    saving = sum(phases[name] for name in ("scan", "find target", "copy", "commit"))
    scan = float(phases["scan"])
    print(
        f"{memory:6} MiB: scan {scan:.3f} s of {saving:.2f} s saving, {scan / saving:.2%};"
        f" {scan / memory * 1024 * 1000:.1f} ms per GiB",
        flush=True,
    )
    require("the scan is a small part", scan <= SCAN_SHARE * saving, phases)
    return scan


def oracle_agrees(
    shape: Shape, *, work: int = 100, prepare: Callable[[Guest], None] | None = None
) -> Callable[[Image], None]:
    """A whole cycle whose page set is makedumpfile's, and whose content is memory's."""
    zeros_are_free = "init_on_free=1" in shape.words

    def run(image: Image) -> None:
        with at_work(image, shape, work) as guest:
            if prepare:
                prepare(guest)
            folder = guest.folder
            ram = oracle.system_ram(guest)
            can = ctl_json(guest, "can-hibernate")
            expect(f"can-hibernate, {can}", can["answer"], "yes")
            guest.slow_disk(SLOW)
            request(guest)
            memory = freeze(guest, ram, folder / "memory")
            power_off(guest)
            saved = Saved.of(oracle.target_of(guest, folder / "target"))
            core = oracle.core(
                memory,
                saved.ranges,
                saved.vmcoreinfo,
                saved.description.facts.page_offset,
                folder / "core",
            )
            kept = oracle.dumped(core, ZERO_PAGES + FREE_PAGES)
            present = oracle.dumped(core, FREE_PAGES)
            core.unlink()
            counts = compare(saved, kept, present, zeros_are_free)
            counts |= {f"content: {name}": n for name, n in same_content(saved, memory).items()}
            pages = saved.report.pages
            for name, number in counts.items():
                print(f"{number:10}  {name}", flush=True)
            print(f"the helper: {pages}", flush=True)
            expect(
                "stored pages by the report", pages["data"], sum(c == STORED for c in saved.kinds)
            )
            require("free pages were found", counts["free, broken or offline"] > 1000, counts)
            if not zeros_are_free:
                left_out = sum(pages[name] for name in ("free", "offline", "hwpoison"))
                expect("pages left out", counts["free, broken or offline"], left_out)
            memory.unlink()
            (folder / "target").unlink()
            with guest.again() as second:
                second.wait_ready(SAVE)
                went_well(second)

    run.__doc__ = f"The page set is makedumpfile's, {shape.memory} MiB {shape.words}".strip() + "."
    return run


def break_pages(guest: Guest) -> None:
    """Pages that the kernel takes for broken: they must not be read, so they are not saved.
    A kernel without CONFIG_MEMORY_FAILURE cannot have any."""
    program = (
        "import mmap, signal, time\n"
        "signal.signal(signal.SIGBUS, lambda *_: None)\n"
        "area = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "area[:] = bytes([7]) * len(area)\n"
        "try:\n"
        "    for n in (3, 4, 20, 21, 40): area.madvise(100, n * 4096, 4096)\n"
        "    print('broken', flush=True)\n"
        "except OSError as error: print(error, flush=True)\n"
        "time.sleep(100000)\n"
    )
    guest.put(program.encode(), "/root/break.py")
    guest.check("setsid python3 /root/break.py >/root/broken 2>&1 </dev/null & sleep 3")
    print(f"broken pages: {guest.check('cat /root/broken').strip()}", flush=True)


def scan_is_linear(image: Image) -> None:
    """Finding the pages takes at most 5 % of a save, and as long per GiB at 1, 2 and 4 GiB."""
    took = {}
    for memory in (1024, 2048, 4096):
        with at_work(image, Shape(memory=memory), memory // 4, deadline=400) as guest:
            hibernate(guest)
            saved = Saved.of(oracle.target_of(guest, guest.folder / "target"))
            took[memory] = scan_cost(memory, dict(saved.report.phases))
    # Beside what grows with memory there is a little that does not.
    for memory in (2048, 4096):
        require("linear", took[memory] <= 1.5 * memory / 1024 * took[1024] + 0.05, took)


ALWAYS: dict[str, Callable[[Image], None]] = {}

MORE: dict[str, Callable[[Image], None]] = {
    "oracle": oracle_agrees(Shape(memory=1024, la57=True), prepare=break_pages),
    "oracle-large": oracle_agrees(Shape(memory=5120), work=400, prepare=break_pages),
    "oracle-scan": scan_is_linear,
    "oracle-init-on-free": oracle_agrees(Shape(memory=768, cpus=1, words="init_on_free=1")),
}

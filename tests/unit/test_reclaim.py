# SPDX-License-Identifier: GPL-2.0-or-later
"""Making room: no more than is missing, gently first, and an end if there is no more."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.machine.memory import parse_meminfo
from kjump.machine.ranges import MIB
from kjump.session.staging import memory_pressure, reclaim
from kjump.session.staging.reclaim import ReclaimActions
from tests.cached import cached

PEAK = """
import re, runpy, sys
sys.argv = ["press", str(64 << 20)]
runpy.run_module("kjump.session.staging.memory_pressure", run_name="__main__")
print(re.search(r"VmHWM: *(\\d+)", open("/proc/self/status").read().replace("\\t", "")).group(1))
"""
"""Runs `press` for 64 MiB and says how much it held at the most, in KiB."""

ZONEINFO = """\
Node 0, zone    DMA32
  pages free     24064
        high     1461
      nr_free_pages 24064
      nr_free_cma  0
  pagesets
    cpu: 0
              count: {}
              high:  6418
              batch: 63
    cpu: 1
              count: 0
              high:  1239
Node 0, zone   Normal
  pages free     0
"""
"""What the kernel says of a machine with two processors, in short."""


@dataclass
class Machine:
    """Caches in control groups and beside them, in MiB."""

    free: int
    in_groups: dict[str, int]
    cache: int = 0
    slab: int = 0
    mapped: int = 0
    swap: int = 0
    in_lists: int = 0
    """Given up, and in the processors' lists still."""
    done: list[str] = field(default_factory=list)

    def means(self) -> ReclaimActions:
        return ReclaimActions(
            meminfo=lambda: parse_meminfo(
                f"MemTotal: 1 kB\nMemFree:  {self.free << 10} kB\n"
                f"SwapFree: {self.swap << 10} kB\nHugePages_Total:       0\n"
            ),
            zoneinfo=lambda: ZONEINFO.format(self.in_lists << 8),
            groups=lambda: [Path(name) for name in self.in_groups],
            ask=self.ask,
            drop=self.drop,
            press=self.press,
            sync=lambda: self.done.append("sync"),
        )

    def ask(self, group: Path, size: int) -> bool:
        got = min(self.in_groups[str(group)], size // MIB)
        self.done.append(f"{group} {got}")
        self.in_groups[str(group)] -= got
        self.free += got
        return got == size // MIB

    def drop(self, what: str) -> None:
        self.done.append(f"drop {what}")
        if what == reclaim.PAGE_CACHE:
            self.free += self.cache + sum(self.in_groups.values())
            self.cache, self.in_groups = 0, dict.fromkeys(self.in_groups, 0)
        else:
            self.free, self.slab = self.free + self.slab, 0

    def press(self, need: int) -> None:
        self.done.append(f"press {need // MIB}")
        self.free, self.mapped = self.free + self.mapped, 0


def test_nothing_is_done_if_enough_is_free() -> None:
    machine = Machine(200, {"a": 100}, cache=100)
    found = reclaim.free_up(150 * MIB, machine.means())
    assert (found.got, machine.done) == (0, [])


def test_groups_give_what_is_missing_and_no_more() -> None:
    machine = Machine(50, {"a": 500, "b": 30}, cache=100)
    found = reclaim.free_up(180 * MIB, machine.means())
    assert found.free >= 180 * MIB and machine.cache == 100
    assert found.got <= (130 + 64) * MIB  # a step more at the most
    assert machine.done[0] == "sync"


def test_all_caches_are_dropped_only_if_the_groups_have_too_little() -> None:
    machine = Machine(50, {"a": 20}, cache=100, slab=40)
    assert reclaim.free_up(160 * MIB, machine.means()).free == 170 * MIB
    assert machine.done[-1] == "drop 1" and machine.slab == 40
    machine = Machine(50, {}, cache=10, slab=40, swap=1)
    assert reclaim.free_up(160 * MIB, machine.means()).got == 50 * MIB
    assert machine.done == ["sync", "drop 1", "drop 2"]


def test_what_is_mapped_goes_last_and_nothing_is_swapped_for_it() -> None:
    machine = Machine(50, {}, cache=10, slab=10, mapped=30)
    assert reclaim.free_up(90 * MIB, machine.means()).free == 100 * MIB
    assert machine.done == ["sync", "drop 1", "drop 2", "press 90"]
    machine = Machine(50, {}, cache=10, slab=10, mapped=30, swap=1)
    assert reclaim.free_up(90 * MIB, machine.means()).free == 70 * MIB


@pytest.mark.parametrize(
    ("free", "cache", "held", "ends"),
    [(10, 50, 80, False), (20, 50, 80, True), (10, 7, 0, True), (0, 8, 0, False)],
)
def test_pressing_ends_when_there_is_enough_or_no_more(
    free: int, cache: int, held: int, ends: bool
) -> None:
    now = {"MemFree": free * MIB, "Active(file)": MIB, "Inactive(file)": (cache - 1) * MIB}
    assert memory_pressure.is_enough(now, held * MIB, 100 * MIB) is ends


def test_pressing_holds_no_memory_that_is_free_anyway() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10


def test_what_lies_in_the_processors_lists_is_free() -> None:
    """The kernel counts it in no other figure.  With it nothing is missing here."""
    machine = Machine(94, {}, cache=100, in_lists=42)
    assert reclaim.free_up(134 * MIB, machine.means()).free == 136 * MIB
    assert machine.done == []
    assert reclaim.in_lists(ZONEINFO.format(3)) == 3 * 4096


def test_the_running_kernel_tells_its_lists() -> None:
    if not reclaim.read_zoneinfo():
        pytest.skip("/proc/zoneinfo is root's")
    assert "pagesets" in reclaim.read_zoneinfo()
    assert 0 <= reclaim.in_lists(reclaim.read_zoneinfo()) < 1 << 40
    assert reclaim.free_now() > 0


@given(
    st.integers(0, 300),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 300)),
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 1200),
)
def test_it_always_ends_and_finds_what_there_is(
    free: int, groups: dict[str, int], cache: int, slab: int, need: int
) -> None:
    everything = free + sum(groups.values()) + cache + slab
    machine = Machine(free, groups, cache, slab)
    found = reclaim.free_up(need * MIB, machine.means())
    assert found.free >= min(need, everything) * MIB
    assert len(machine.done) < 60


def test_a_kernel_that_does_not_know_swappiness_is_not_asked_without_it(tmp_path: Path) -> None:
    assert not reclaim.reclaim_from(tmp_path / "absent" / "memory.reclaim", MIB)
    group = tmp_path / "memory.reclaim"
    assert reclaim.reclaim_from(group, 5 * MIB)
    assert group.read_text() == f"{5 * MIB} swappiness=0"


@pytest.mark.parametrize(("need", "free", "wanted"), [(10, 3, MIB), (MIB, MIB, 0), (5, 9, 0)])
def test_missing_is_in_whole_mebibytes(need: int, free: int, wanted: int) -> None:
    assert reclaim.shortfall(need, free) == wanted


def test_a_file_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if cached(path) == 0:
        pytest.skip("this file system has no page cache to give up")
    reclaim.drop_file_cache(path)
    assert cached(path) == 0


def test_a_file_that_is_gone_need_not_be_forgotten(tmp_path: Path) -> None:
    """The helper is staged by then: an error would leave it loaded."""
    reclaim.drop_file_cache(tmp_path / "absent")

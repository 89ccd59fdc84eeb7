"""Making room: no more than is missing, gently first, and an end where there is no more."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.session import reclaim
from kjump.session.reclaim import MIB, Means
from tests.cached import cached


@dataclass
class Machine:
    """Caches in control groups and beside them, in MiB."""

    free: int
    in_groups: dict[str, int]
    cache: int = 0
    slab: int = 0
    done: list[str] = field(default_factory=list)

    def means(self) -> Means:
        return Means(
            meminfo=lambda: f"MemTotal: 1 kB\nMemFree:  {self.free << 10} kB\n",
            groups=lambda: [Path(name) for name in self.in_groups],
            ask=self.ask,
            drop=self.drop,
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


def test_nothing_is_done_where_enough_is_free() -> None:
    machine = Machine(200, {"a": 100}, cache=100)
    found = reclaim.make_room(150 * MIB, machine.means())
    assert (found.got, machine.done) == (0, [])


def test_groups_give_what_is_missing_and_no_more() -> None:
    machine = Machine(50, {"a": 500, "b": 30}, cache=100)
    found = reclaim.make_room(180 * MIB, machine.means())
    assert found.free >= 180 * MIB and machine.cache == 100
    assert found.got <= (130 + 64) * MIB  # a step more at the most
    assert machine.done[0] == "sync"


def test_all_caches_are_dropped_only_where_the_groups_have_not_enough() -> None:
    machine = Machine(50, {"a": 20}, cache=100, slab=40)
    assert reclaim.make_room(160 * MIB, machine.means()).free == 170 * MIB
    assert machine.done[-1] == "drop 1" and machine.slab == 40
    machine = Machine(50, {}, cache=10, slab=40)
    assert reclaim.make_room(160 * MIB, machine.means()).got == 50 * MIB
    assert machine.done == ["sync", "drop 1", "drop 2"]


@given(
    st.integers(0, 300), st.dictionaries(st.sampled_from("abc"), st.integers(0, 300)),
    st.integers(0, 300), st.integers(0, 300), st.integers(0, 1200),
)  # fmt: skip
def test_it_always_ends_and_finds_what_there_is(
    free: int, groups: dict[str, int], cache: int, slab: int, need: int
) -> None:
    everything = free + sum(groups.values()) + cache + slab
    machine = Machine(free, groups, cache, slab)
    found = reclaim.make_room(need * MIB, machine.means())
    assert found.free >= min(need, everything) * MIB
    assert len(machine.done) < 60


def test_a_kernel_that_does_not_know_swappiness_is_not_asked_without_it(tmp_path: Path) -> None:
    assert not reclaim.ask(tmp_path / "absent" / "memory.reclaim", MIB)
    group = tmp_path / "memory.reclaim"
    assert reclaim.ask(group, 5 * MIB)
    assert group.read_text() == f"{5 * MIB} swappiness=0"


@pytest.mark.parametrize(("need", "free", "wanted"), [(10, 3, MIB), (MIB, MIB, 0), (5, 9, 0)])
def test_missing_is_in_whole_mebibytes(need: int, free: int, wanted: int) -> None:
    assert reclaim.missing(need, free) == wanted


def test_a_file_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if cached(path) == 0:
        pytest.skip("this file system has no page cache to give up")
    reclaim.forget(path)
    assert cached(path) == 0


def test_a_file_that_is_gone_need_not_be_forgotten(tmp_path: Path) -> None:
    """The helper is staged by then: an error would leave it loaded."""
    reclaim.forget(tmp_path / "absent")

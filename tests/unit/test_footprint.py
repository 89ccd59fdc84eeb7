# SPDX-License-Identifier: GPL-2.0-or-later
"""The staged helper is known again, or missed, by the pages that the kernel keeps it in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import StagingFailed
from kjump.machine import syscalls
from kjump.machine.ranges import PAGE, Range
from kjump.session.staging import footprint, load, pinned_pages
from kjump.session.staging.footprint import BLOCK, Footprint
from kjump.session.staging.pinned_pages import ReportPage
from kjump.session.staging.window import Window

RAM: list[Range] = [(PAGE, 640 << 10), (1 << 20, 1 << 30)]


class Kernel:
    """Memory of which some pages are reserved, and an image that is kept in others."""

    def __init__(self) -> None:
        self.reserved = {n for n in range(1 << 18) if n % 7 == 0}
        self.image: set[int] = set()
        self.fails = False

    def load(self, pfns: Iterable[int]) -> None:
        """Another image takes the place of the one that was there."""
        self.image = set(pfns) - self.reserved

    def read(self, pfns: Sequence[int]) -> list[int]:
        if self.fails:
            raise OSError("no /proc/kpageflags")
        return [pfn for pfn in pfns if pfn in self.reserved or pfn in self.image]


OURS = range(40 * BLOCK, 120 * BLOCK)
OTHERS = range(200 * BLOCK, 240 * BLOCK)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def loaded(kernel: Kernel) -> Footprint:
    found = Footprint(RAM, kernel.read)
    kernel.load(OURS)
    found.settle()
    return found


def test_an_image_that_took_the_place_of_ours_is_found_out(kernel: Kernel) -> None:
    found = loaded(kernel)
    assert found.is_there()
    kernel.load(OTHERS)
    assert not found.is_there()


def test_a_driver_that_gives_back_a_page_in_the_same_moment_is_no_reason(kernel: Kernel) -> None:
    found = Footprint(RAM, kernel.read)
    kernel.load(OURS)
    drivers = set(range(BLOCK))
    kernel.reserved |= drivers
    found.settle()
    kernel.reserved -= drivers
    assert found.is_there()


@pytest.mark.parametrize("when", ["before", "after", "later"])
def test_what_cannot_be_read_stops_nothing(kernel: Kernel, when: str) -> None:
    kernel.fails = when == "before"
    found = Footprint(RAM, kernel.read)
    kernel.load(OURS)
    kernel.fails = when == "after"
    found.settle()
    kernel.fails = when == "later"
    assert found.is_there()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 2000)), max_size=6), st.integers(1, 20)
)
def test_the_sample_is_of_ram_and_bounded(parts: list[tuple[int, int]], most: int) -> None:
    ram, at = [], 0
    for gap, pages in parts:
        ram.append(((at + gap) * PAGE, (at + gap + pages) * PAGE))
        at += gap + pages
    found = footprint.sample(ram, most)
    assert found == sorted(set(found)) and len(found) <= most
    assert all(any(a <= pfn * PAGE < b for a, b in ram) for pfn in found)
    assert bool(found) == bool(ram)


def stage(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> load.Staged:
    monkeypatch.setattr(pinned_pages, "physical_address", lambda at: at // PAGE * PAGE)
    monkeypatch.setattr(syscalls, "kexec_loaded", lambda: bool(kernel.image))
    monkeypatch.setattr(syscalls, "kexec_unload", lambda: kernel.load(()))
    return load.Staged(Window(1 << 28, 1 << 27, ()), ReportPage(), loaded(kernel))


def test_it_does_not_jump_into_an_image_of_another_program(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that runs kexec -l between staging and the jump."""
    staged = stage(kernel, monkeypatch)
    staged.check()
    kernel.load(OTHERS)
    with pytest.raises(StagingFailed, match="loaded something else"):
        staged.check()
    staged.close()
    assert kernel.image  # it is not ours to unload


def test_what_is_ours_is_unloaded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = stage(kernel, monkeypatch)
    kernel.load(())
    with pytest.raises(StagingFailed):
        staged.check()
    staged.close()
    staged = stage(kernel, monkeypatch)
    staged.close()
    assert not kernel.image

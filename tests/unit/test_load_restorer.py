# SPDX-License-Identifier: GPL-2.0-or-later
"""Restoring in place: which way is taken, and where pages are written."""

from __future__ import annotations

import mmap
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.console import prompt
from kjump.console.keys import ESC
from kjump.errors import ImageDamaged, RestoreFailed, ResumeSkipped, TargetTooSmall
from kjump.handoff import window_layout
from kjump.handoff.report import IN_PLACE, SNAPSHOT, Report
from kjump.helper import restore_in_place
from kjump.helper.screen import Screen
from kjump.image import prepare, superblocks, target
from kjump.image.device import DirectDevice
from kjump.image.extents import Extents
from kjump.image.layout import COMPLETE, RESTORING, ZERO, Extent
from kjump.image.read import Image
from kjump.machine import memory, pages, syscalls
from kjump.machine.cmdline import parse
from kjump.machine.ranges import PAGE
from kjump.resume import load_restorer

from . import imaging, samples
from .test_machine import fake_bzimage

MIB = 1 << 20


@pytest.mark.parametrize(
    ("words", "pages", "available", "restorer", "way"),
    [
        ("", 1000, 200 * MIB, True, SNAPSHOT),
        ("", 100_000, 200 * MIB, True, IN_PLACE),
        ("", 100_000, 200 * MIB, False, SNAPSHOT),
        ("", 40_000, 200 * MIB, True, IN_PLACE),  # the margin counts
        ("kjump.restore=in-place", 1, 200 * MIB, True, IN_PLACE),
        (
            'kjump.restore=snapshot "kjump.restore=in-place"',
            1,
            200 * MIB,
            True,
            IN_PLACE,
        ),
        ("kjump.restore=1234", 1, 200 * MIB, True, SNAPSHOT),
        ("kjump.restore=snapshot", 100_000, 200 * MIB, True, SNAPSHOT),
    ],
)
def test_the_way_is_chosen_by_what_fits(
    words: str, pages: int, available: int, restorer: bool, way: str
) -> None:
    found = load_restorer.choose(parse(words), pages=pages, available=available, restorer=restorer)
    assert found == way


class Physical:
    """Memory of so many pages: a file."""

    def __init__(self, path: Path, pages: int) -> None:
        path.write_bytes(bytes(pages * PAGE))
        self._file = path.open("r+b")
        self.memory = mmap.mmap(self._file.fileno(), 0)

    def map(self, start: int, size: int) -> tuple[mmap.mmap, int]:
        return mmap.mmap(self._file.fileno(), size, offset=start), 0


def test_pages_are_written_where_they_belong_and_nowhere_else(tmp_path: Path) -> None:
    rng = random.Random(1)
    physical = Physical(tmp_path / "memory", 64)
    places = restore_in_place.PageWriter(physical, [(1, 9), (20, 40)])  # type: ignore[arg-type]
    data = {pfn: rng.randbytes(PAGE) for pfn in (1, 2, 3, 8, 20, 21, 39)}
    for part in ((1, 2, 3, 8, 20), (21, 39)):
        extents = Extents.of(Extent(pfn, 1) for pfn in part)
        places.write(extents, b"".join(data[pfn] for pfn in part))
    places.close()
    for pfn in range(64):
        assert physical.memory[pfn * PAGE : (pfn + 1) * PAGE] == data.get(pfn, bytes(PAGE))
    places.write(Extents.of([Extent(2, 1, ZERO), Extent(8, 1, ZERO)]), None)
    places.close()
    for pfn in (1, 2, 8, 20):
        wanted = bytes(PAGE) if pfn in (2, 8) else data[pfn]
        assert physical.memory[pfn * PAGE : (pfn + 1) * PAGE] == wanted
    for pfn in (0, 9, 19, 40):
        with pytest.raises(RestoreFailed):
            places.write(Extents.of([Extent(pfn, 1)]), bytes(PAGE))
    with pytest.raises(RestoreFailed):  # begins inside, ends outside
        places.write(Extents.of([Extent(39, 2)]), bytes(2 * PAGE))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(1, 64),
)
def test_scatter_in_windows_of_any_size(spans: list[tuple[int, int]], window: int) -> None:
    extents, content, at = [], b"", 0
    for gap, count in spans:
        extents.append(Extent(at + gap, count))
        at += gap + count
        content += b"".join(bytes([(at + n) % 251 + 1]) * PAGE for n in range(count))
    memory = bytearray((at + window) * PAGE)
    scatter = pages.Scatter(Extents.of(extents).table, len(extents), content)
    for first in range(0, at, window):
        view = bytearray(memory[first * PAGE : (first + window) * PAGE])
        done = scatter.into(view, 0, first, first + window)
        memory[first * PAGE : (first + window) * PAGE] = view
    assert done
    used = b"".join(memory[e.pfn * PAGE : (e.pfn + e.pages) * PAGE] for e in extents)
    assert used == content
    assert sum(1 for n in range(at) if any(memory[n * PAGE : n * PAGE + 8])) == sum(
        e.pages for e in extents
    )


def test_the_restorer_lies_with_the_image(tmp_path: Path) -> None:
    disk, kernel, initrd = (tmp_path / name for name in ("disk", "kernel", "initrd"))
    with disk.open("wb") as file:
        file.truncate(32 * MIB)
    kernel.write_bytes(random.Random(2).randbytes(70_001))
    initrd.write_bytes(random.Random(3).randbytes(50_000))
    prepare.prepare_target(disk, cycle_id=uuid.UUID(int=1), hostname="h", restorer=(kernel, initrd))
    with DirectDevice(disk) as device:
        image = Image(device)
        assert image.restorer() == (kernel.read_bytes(), initrd.read_bytes())
        where = image.superblock.initrd_offset
    with disk.open("r+b") as file:
        file.seek(where + 7)
        file.write(b"?")
    with DirectDevice(disk) as device, pytest.raises(ImageDamaged):
        Image(device).restorer()
    prepare.prepare_target(disk, cycle_id=uuid.UUID(int=2), hostname="h")
    with DirectDevice(disk) as device:
        assert Image(device).restorer() is None


def test_a_target_without_room_for_the_restorer_is_too_small(tmp_path: Path) -> None:
    disk, big = tmp_path / "disk", tmp_path / "big"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    with big.open("wb") as file:
        file.truncate(20 * MIB)
    with pytest.raises(TargetTooSmall):
        prepare.prepare_target(disk, cycle_id=uuid.UUID(int=1), hostname="h", restorer=(big, big))


def test_the_command_line_of_the_restorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, part = tmp_path / "disk", tmp_path / "part"
    with disk.open("wb") as file:
        file.truncate(32 * MIB)
    part.write_bytes(b"x" * 5000)
    cycle = uuid.UUID(int=7)
    prepare.prepare_target(disk, cycle_id=cycle, hostname="h", restorer=(part, part))
    passed: list[str] = []

    def place(*given: object, **_: object) -> tuple[int, list[object]]:
        passed.extend(str(given[4]).split())
        return 0, []

    monkeypatch.setattr(window_layout, "place", place)
    monkeypatch.setattr(syscalls, "kexec_load", lambda *_, **__: None)
    with DirectDevice(disk) as device:
        about = samples.description(window=(64 * MIB, 192 * MIB))
        load_restorer.load(Image(device), about, "console=ttyS0 kjump.noresume", 2.5)
    words = parse(" ".join(passed))
    assert {w.name: w.value for w in words.words if w.name.startswith("kjump.")} == {
        "kjump.restore": str(cycle),
        "kjump.target": str(disk),
        "kjump.skip-wait": "2.5",
    }
    assert restore_in_place._seconds(words) == 2.5 and "console=ttyS0" in passed


# -- Esc while pages are put back


class Keyboard:
    """Each look at it hears what is next."""

    def __init__(self, *presses: str) -> None:
        self.presses = list(presses)
        self.states: list[tuple[int, int]] = []
        self.image: Image

    def read(self, seconds: float) -> list[str]:
        if seconds > 10:  # the question stands
            found = superblocks.load(self.image.device)
            assert found is not None
            self.states.append((found.state, found.outcome.tries))
        key = self.presses.pop(0) if self.presses else ""
        return [key] if key else []


RAM = 4096
"""Pages."""


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Image]:
    """An image whose restore has begun."""
    rng = random.Random(4)
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    description = samples.description(
        ram=((0, RAM * PAGE),),
        window=(3584 * PAGE, 4096 * PAGE),
        report_page=3000 * PAGE,
        jump_back=0x1000,
    )
    parts = [(at, rng.randbytes(256 * PAGE)) for at in range(256, 2560, 256)]
    with DirectDevice(path, writable=True) as device:
        done = imaging.fill(device, parts, [Extent(2600, 7)], description=description)
        superblocks.store(device, done, outcome=Report("helper", tries=1))
        yield Image(device)


def restored(
    image: Image, keyboard: Keyboard, physical: Physical, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        def __init__(self, *, writable: bool) -> None:
            assert writable

        def __enter__(self) -> Physical:
            return physical

        def __exit__(self, *_: object) -> None:
            pass

    keyboard.image = image
    monkeypatch.setattr(memory, "PhysicalMemory", Memory)
    restore_in_place.put_back(image, 1.0, prompt.SkipPrompt(keyboard, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "presses", [[], ["", "", ESC, "r"], [ESC, "r", "", ESC, "r"], [""] * 9 + [ESC, "r"]]
)
def test_who_asks_and_resumes_gets_every_page(
    saved: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presses: list[str]
) -> None:
    physical, keyboard = Physical(tmp_path / "memory", RAM), Keyboard(*presses)
    physical.memory[2603 * PAGE] = 1
    restored(saved, keyboard, physical, monkeypatch)
    assert not keyboard.presses
    # While the question stands a power cut loses nothing, and the try does not count.
    assert keyboard.states == [(COMPLETE, 0)] * presses.count("r")
    # Before the jump, nothing may use it again.
    after = superblocks.load(saved.device)
    assert after is not None and (after.state, after.outcome.tries) == (RESTORING, 1)
    count = 0
    for pfn, page in imaging.content(saved, saved.index()):
        assert physical.memory[pfn * PAGE : (pfn + 1) * PAGE] == page
        count += 1
    assert count == 2304 and not physical.memory[2603 * PAGE]


def test_who_gives_it_up_in_the_restorer_gets_another_boot(
    saved: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    physical, keyboard = Physical(tmp_path / "memory", RAM), Keyboard("", ESC, "y")
    with pytest.raises(ResumeSkipped):
        restored(saved, keyboard, physical, monkeypatch)
    assert keyboard.states == [(COMPLETE, 0)]
    assert not any(physical.memory[3000 * PAGE : 3001 * PAGE])  # no report


def test_the_time_for_the_key_comes_from_the_boot_kernel() -> None:
    assert restore_in_place._seconds(parse("kjump.skip-wait=2.5")) == 2.5
    assert (
        restore_in_place._seconds(parse(""))
        == restore_in_place._seconds(parse("kjump.skip-wait=x"))
        == 0
    )


def test_a_target_that_cannot_be_used_restarts_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(restore_in_place, "say", said.append)
    monkeypatch.setattr(restore_in_place, "Screen", lambda: Screen([]))
    monkeypatch.setattr(syscalls, "restart", lambda: said.append("restarted"))
    restore_in_place.main(f"kjump.restore={uuid.UUID(int=1)} kjump.target=/dev/{'x' * 300}")
    assert said[0].startswith("not resumed: the target cannot be used: File name too long")
    assert said[1:] == ["restarting", "restarted"]


def test_in_the_restorer_a_target_that_fails_hides_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = imaging.prepared(tmp_path / "target", 16 * MIB), list[str]()
    cycle = uuid.UUID(int=1)
    prepare.prepare_target(path, cycle_id=cycle, hostname="h")
    with DirectDevice(path, writable=True) as device:
        imaging.fill(device, [])

    nothing = os.open("/dev/null", os.O_RDONLY)

    def fail(image: Image, *_: object) -> None:
        os.dup2(nothing, image.device.fd)  # it is gone
        raise RestoreFailed("It broke.")

    monkeypatch.setattr(target, "parse_location", lambda _: ([path], None))
    monkeypatch.setattr(restore_in_place, "put_back", fail)
    monkeypatch.setattr(restore_in_place, "say", said.append)
    monkeypatch.setattr(restore_in_place, "Screen", lambda: Screen([]))
    monkeypatch.setattr(syscalls, "restart", lambda: said.append("restarted"))
    restore_in_place.main(f"kjump.restore={cycle}")
    os.close(nothing)
    (line,) = (text for text in said if text.startswith("not resumed"))
    assert "It broke." in line and "could not be marked" in line
    assert said[-1] == "restarted"


# -- a restorer that does not fit


@pytest.mark.parametrize(
    ("window", "running", "kernel", "advice"),
    [
        ((64 * MIB, 68 * MIB), "console=ttyS0", fake_bzimage(), "WindowSizeMiB="),
        (
            (64 * MIB, 192 * MIB),
            "console=" + "x" * 5000,
            fake_bzimage(),
            "boot kernel's command line",
        ),
        ((64 * MIB, 192 * MIB), "console=ttyS0", b"no kernel" * 700, "kjumpctl update-initrd"),
    ],
)
def test_what_does_not_fit_in_the_boot_kernel_is_a_failed_restore(
    tmp_path: Path, window: tuple[int, int], running: str, kernel: bytes, advice: str
) -> None:
    """The session that would take other advice is gone; nothing is staged here."""
    disk, kernel_file, initrd = (tmp_path / name for name in ("disk", "kernel", "initrd"))
    imaging.prepared(disk, 32 * MIB)
    kernel_file.write_bytes(kernel)
    initrd.write_bytes(bytes(MIB))
    prepare.prepare_target(
        disk, cycle_id=uuid.UUID(int=1), hostname="h", restorer=(kernel_file, initrd)
    )
    with DirectDevice(disk) as device, pytest.raises(RestoreFailed) as raised:
        load_restorer.load(Image(device), samples.description(window=window), running, 0)
    assert advice in raised.value.todo

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the boot side does with what it finds, up to the jump."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import settings
from kjump.errors import (
    FileSystemChanged,
    ImageDamaged,
    ImageIncomplete,
    ImageSpent,
    KjumpError,
    MemoryMapChanged,
    NoTarget,
    OtherMachine,
    RestoreFailed,
    RestoreNoMemory,
    ResumeSkipped,
)
from kjump.handoff.documents import FileSystem, TargetPlace
from kjump.handoff.report import SNAPSHOT
from kjump.image import fingerprint, locator, prepare, superblocks, target
from kjump.image.description import Description, SavedFileSystem
from kjump.image.device import DirectDevice
from kjump.image.layout import COMPLETE, EMPTY, RESTORING, SPENT, WRITING
from kjump.image.read import Image
from kjump.machine.cmdline import parse
from kjump.machine.memory import Entry
from kjump.machine.ranges import PAGE
from kjump.resume import load_restorer, main, restore, snapshot

from . import imaging
from .samples import description

MACHINE = restore.Machine("me", [Entry(0x100000, 0x8000000, 1)], 32000, 4)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(main, "machine", lambda: MACHINE)
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    return path


def write(path: Path, about: Description, *, state: int = COMPLETE) -> None:
    with DirectDevice(path, writable=True) as device:
        done = imaging.fill(device, [(0x200, b"page" * PAGE)], description=about)
        if state != COMPLETE:
            superblocks.store(device, done, state=state)


def resume(path: Path, *, skip: bool = False) -> None:
    with DirectDevice(path, writable=True) as device:
        main.resume(device, started=0.0, skip=skip)


def found(path: Path) -> tuple[str, str]:
    examined = target.examine(path)
    assert examined is not None
    return examined.state, examined.reason.error


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ({"page_count": 1}, MemoryMapChanged),
        ({"firmware_map": ()}, MemoryMapChanged),
        (
            {"file_systems": (SavedFileSystem("ext4", (), "f" * 64),)},
            FileSystemChanged,
        ),
    ],
)
def test_what_does_not_match_is_spent_with_the_reason(
    disk: Path, about: dict[str, Any], error: type[KjumpError]
) -> None:
    write(disk, description(**about))
    with pytest.raises(error):
        resume(disk)
    assert found(disk) == ("spent", error.__name__)
    resume(disk)  # and the next boot says nothing more


@pytest.mark.parametrize(
    ("state", "error"),
    [(EMPTY, ImageIncomplete), (WRITING, ImageIncomplete), (RESTORING, ImageSpent)],
)
def test_an_image_that_is_not_complete_is_never_used(
    disk: Path, state: int, error: type[KjumpError]
) -> None:
    write(disk, description(), state=state)
    with pytest.raises(error):
        resume(disk)
    assert found(disk) == ("spent", error.__name__)


def test_a_spent_image_and_no_image_are_passed_over_in_silence(disk: Path, tmp_path: Path) -> None:
    write(disk, description(), state=SPENT)
    resume(disk)
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(1 << 20))
    resume(blank)
    assert blank.read_bytes() == bytes(1 << 20)


def test_noresume_spends_the_image(disk: Path) -> None:
    write(disk, description())
    with pytest.raises(ResumeSkipped):
        resume(disk, skip=True)
    assert found(disk) == ("spent", "ResumeSkipped")


def test_another_machines_image_is_left_alone(disk: Path) -> None:
    write(disk, description(machine="another"))
    before = disk.read_bytes()
    with pytest.raises(OtherMachine):
        resume(disk)
    assert disk.read_bytes() == before


def test_another_machines_image_is_left_alone_also_if_only_that_machine_understands_it(
    disk: Path,
) -> None:
    write(disk, description(machine="another", levels=6))
    before = disk.read_bytes()
    with pytest.raises(OtherMachine):
        resume(disk)
    assert disk.read_bytes() == before


class PowerCut(BaseException):
    pass


def test_while_it_loads_the_image_is_complete_and_after_a_power_cut_it_is_tried_again(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to some tries: a machine that hangs in it is to boot in the end."""
    seen = []

    def load(image: Image, *_: object, **__: object) -> None:
        found = target.examine(disk)
        assert found is not None
        seen.append((found.state, found.reason.tries))
        raise PowerCut

    monkeypatch.setattr(restore, "_load", load)
    write(disk, description())
    for _ in range(restore.TRIES):
        with pytest.raises(PowerCut):
            resume(disk)
    assert seen == [("complete", 1), ("complete", 2), ("complete", 3)]
    with pytest.raises(RestoreFailed, match="begun 3 times"):
        resume(disk)
    assert found(disk) == ("spent", "RestoreFailed")


def test_a_refusal_of_the_kernel_is_not_tried_again(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise RestoreFailed("the kernel refused")

    monkeypatch.setattr(restore, "_load", load)
    write(disk, description())
    with pytest.raises(RestoreFailed):
        resume(disk)
    assert found(disk) == ("spent", "RestoreFailed")


def test_it_is_restoring_on_disk_before_the_kernel_may_jump(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there on the session may have run, and its file systems changed."""
    states = []

    def state() -> str:
        found = target.examine(disk)
        assert found is not None
        return found.state

    class Kernel:
        def __enter__(self) -> Kernel:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_page(self, _page: object) -> None:
            states.append(state())

        def write_pages(self, *_: object) -> None:
            states.append(state())

        def restore(self) -> None:
            states.append(state())
            raise PowerCut

    monkeypatch.setattr(snapshot, "Snapshot", Kernel)
    write(disk, description())
    with pytest.raises(PowerCut):
        resume(disk)
    assert states[-1] == "restoring" and set(states[:-1]) == {"complete"}
    with pytest.raises(ImageSpent):
        resume(disk)


def test_it_listens_before_it_tells_of_the_key(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed to a terminal before `Keys` has it is thrown away."""
    done: list[str] = []

    class Heard:
        def __init__(self, *, earlier: bool) -> None:
            done.append("listens" if earlier else "flushes")

        def read(self, _seconds: float) -> list[str]:
            return []

        def close(self) -> None:
            pass

    def load(*_: object, **__: object) -> None:
        raise RestoreFailed("the kernel refused")

    monkeypatch.setattr(main, "Keys", Heard)
    monkeypatch.setattr(main, "say", lambda text: done.append("prints" if "Esc" in text else text))
    monkeypatch.setattr(restore, "_load", load)
    write(disk, description())
    with pytest.raises(RestoreFailed):
        resume(disk)
    assert done[:2] == ["listens", "prints"]


def test_anything_unforeseen_lets_the_boot_go_on_and_is_kept(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(restore, "_load", broken)
    write(disk, description())
    with pytest.raises(KjumpError):
        resume(disk)
    assert found(disk) == ("spent", "Internal")


def test_fingerprints_change_with_the_superblock(tmp_path: Path) -> None:
    device = tmp_path / "fs"
    device.write_bytes(bytes(1 << 20))
    saved = fingerprint.take_all([FileSystem("ext4", (str(device),))])
    assert fingerprint.changed(saved) == []
    with device.open("r+b") as file:
        file.seek(1024 + 0x34)  # ext4's mount count
        file.write(b"\1")
    assert fingerprint.changed(saved) == [f"{device} (ext4)"]


def test_a_device_only_the_session_opens_has_no_fingerprint(tmp_path: Path) -> None:
    saved = fingerprint.take_all([FileSystem("ext4", (str(tmp_path / "mapped"),))])
    assert saved[0].fingerprint is None
    assert fingerprint.changed(saved) == []


@pytest.mark.parametrize("restorer", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_no_memory_beside_the_boot_kernel_is_no_end_if_a_restorer_lies_with_the_image(
    disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, restorer: bool, late: bool
) -> None:
    """``late``: the kernel says so only when it should jump."""
    part = tmp_path / "part"
    part.write_bytes(b"x" * 5000)
    prepare.prepare_target(
        disk,
        cycle_id=uuid.UUID(int=1),
        hostname="h",
        restorer=(part, part) if restorer else None,
    )
    done = []

    def load(image: Image, *_: object, **__: object) -> None:
        if late:
            image.superblock = superblocks.store(image.device, image.superblock, state=RESTORING)
        raise RestoreNoMemory("full")

    def jump() -> None:
        done.append("jump")
        # The restorer enters no session in another state.
        assert superblocks.load(DirectDevice(disk)).state == COMPLETE  # type: ignore[union-attr]
        raise RestoreFailed("as the test wants it")

    monkeypatch.setattr(restore, "_load", load)
    monkeypatch.setattr(load_restorer, "load", lambda *_: done.append("load"))
    monkeypatch.setattr(load_restorer, "jump", jump)
    monkeypatch.setattr(load_restorer, "choose", lambda *_, **__: SNAPSHOT)
    write(disk, description())
    with pytest.raises(RestoreFailed if restorer else RestoreNoMemory):
        resume(disk)
    assert done == (["load", "jump"] if restorer else [])


# -- targets that a locator leads to ---------------------------------------------------------------

SWAP_HEADER = bytes(4086) + b"SWAPSPACE2"
AREA = target.Area(locator.SWAP, 0, ((8192, 17 << 20),))


@pytest.fixture
def swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(main, "machine", lambda: MACHINE)
    path = tmp_path / "swap"
    path.write_bytes(SWAP_HEADER + bytes(18 << 20))
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h", area=AREA)
    return path


def look(path: Path, at: int | None = None) -> None:
    main.look(path, at, started=0.0, skip=False)


def test_the_reason_is_put_into_the_locator_too(swap: Path) -> None:
    with pytest.raises(ImageIncomplete):
        look(swap)
    assert found(swap) == ("spent", "ImageIncomplete")
    with DirectDevice(swap) as device:
        block, located = locator.read(device, 0)
    assert located is not None and located.outcome.error == "ImageIncomplete"
    assert block[1024:] == SWAP_HEADER[1024:]
    look(swap)  # and the next boot says nothing more


def test_an_image_that_cannot_be_reached_leaves_its_reason_in_the_locator(swap: Path) -> None:
    with swap.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(16 << 20))
    with pytest.raises(ImageDamaged):
        look(swap)
    assert found(swap) == ("spent", "ImageDamaged")


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """The blocks of a file that is gone are somebody's by now."""
    disk = tmp_path / "disk"
    before = bytes(range(256)) * 4096
    disk.write_bytes(before)
    for at in (0, 4096, 1 << 40):
        try:
            look(disk, at)
        except ImageDamaged:
            assert at == 1 << 40
    disk.write_bytes(SWAP_HEADER + before)
    look(disk)
    assert disk.read_bytes() == SWAP_HEADER + before


def test_where_to_look() -> None:
    recorded = TargetPlace("/img", ("/dev/disk/by-partuuid/ab",), 0, 8192)
    there = [Path("/dev/disk/by-partuuid/ab")]
    assert main.place_to_look(parse(""), "/img", recorded) == (there, 8192)
    assert main.place_to_look(parse(""), "PARTUUID=ab", recorded) == (there, None)
    words = parse("quiet kjump.target=/dev/sda1:4096")
    assert main.place_to_look(words, "/img", recorded) == ([Path("/dev/sda1")], 4096)
    assert main.place_to_look(words, "", None) == ([Path("/dev/sda1")], 4096)
    for spec, known in (
        ("/other", recorded),
        ("/img", None),
        ("/img", replace(recorded, locator=None)),
    ):
        with pytest.raises(NoTarget):
            main.place_to_look(parse(""), spec, known)


def test_started_early_it_waits_for_the_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word, asked = tmp_path / "go", threading.Event()

    def place(*_: object) -> tuple[list[Path], None]:
        asked.set()
        raise NoTarget("Nowhere.")

    configured = replace(settings.Settings(), target=replace(settings.Settings().target, path="x"))
    monkeypatch.setattr(settings, "load", lambda: configured)
    monkeypatch.setattr(main, "place_to_look", place)
    thread = threading.Thread(target=main.main, args=(["--after", str(word)],))
    thread.start()
    assert not asked.wait(0.3)
    word.touch()
    assert asked.wait(10)
    thread.join()


# -- a target that fails ---------------------------------------------------------------------------


def boot(monkeypatch: pytest.MonkeyPatch, path: Path) -> tuple[int, list[str]]:
    """The exit code, and the lines on the console."""
    configured = replace(settings.Settings(), target=replace(settings.Settings().target, path="x"))
    said: list[str] = []
    monkeypatch.setattr(settings, "load", lambda: configured)
    monkeypatch.setattr(main, "place_to_look", lambda *_: ([path], None))
    monkeypatch.setattr(main, "say", said.append)
    return main.main(), said


@pytest.mark.parametrize("kind", ["disk", "swap"])
def test_a_target_that_fails_as_it_is_marked_hides_no_reason(
    kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The boot goes on, with one line on the console."""
    path: Path = request.getfixturevalue(kind)
    if kind == "disk":
        write(path, description())
    else:
        with target.open_image(path, writable=True) as device:
            imaging.fill(device, [(0x200, b"page" * PAGE)], description=description())
    failing = False
    read = DirectDevice.read

    def reading(device: DirectDevice, offset: int, length: int) -> bytes:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(device, offset, length)

    def check(*_: object) -> None:
        nonlocal failing
        failing = True
        raise MemoryMapChanged("It changed.")

    monkeypatch.setattr(DirectDevice, "read", reading)
    monkeypatch.setattr(restore, "check", check)
    code, said = boot(monkeypatch, path)
    failing = False
    assert code == MemoryMapChanged.exit_code
    (line,) = said
    assert line.startswith("not resumed: It changed.")
    assert ("could not be marked" in line) == (kind == "swap")  # its locator has to be read
    assert found(path) == ("spent", "MemoryMapChanged")


def test_a_target_that_cannot_even_be_looked_for_lets_the_boot_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, said = boot(monkeypatch, Path("/dev", "x" * 300))
    assert code != 0
    (line,) = said
    assert line.startswith("not resumed: The target cannot be used: File name too long.")

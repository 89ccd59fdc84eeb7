# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding a target by its name, waiting for it, and leaving there why an image was passed over."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from kjump.errors import FileSystemChanged, KjumpError, NoTarget, TargetMissing
from kjump.handoff.report import Report
from kjump.image import locator as locators
from kjump.image import superblocks, target
from kjump.image.layout import BLOCK
from kjump.image.prepare import prepare_target
from kjump.image.target import Area, examine, open_image, pass_over

from . import imaging

MIB = 1 << 20
CYCLE = uuid.UUID(int=21)
AREA = Area(locators.FILE, 4 * MIB, ((4 * MIB + BLOCK, 12 * MIB), (24 * MIB, 8 * MIB)))
BY = Path("/dev/disk")


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("PARTUUID=AB-CD", BY / "by-partuuid/ab-cd"),
        ("UUID=AB-CD", BY / "by-uuid/ab-cd"),
        ("PARTLABEL=Kjump", BY / "by-partlabel/Kjump"),
        ("LABEL=a=b", BY / "by-label/a=b"),
        ("/dev/disk/by-path/pci-1:0", BY / "by-path/pci-1:0"),
    ],
)
def test_a_name_is_the_link_that_udev_makes(spec: str, path: Path) -> None:
    assert target.link(spec) == path


@pytest.mark.parametrize(
    "spec", ["", "PARTUUID", "PARTUUID=", "PARTUUID=..", "SERIAL=1", "vda3", "/home/x"]
)
def test_what_names_no_device_is_refused(spec: str) -> None:
    with pytest.raises(NoTarget):
        target.link(spec)


# -- waiting ---------------------------------------------------------------------------------------


class Clock:
    """Passes only while somebody pauses.  ``comes``: what appears, and when."""

    def __init__(self, comes: Path | None = None, at: float = 0) -> None:
        self.now = 50.0
        self.comes = comes
        self.at = self.now + at

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.comes is not None and self.now >= self.at:
            self.comes.touch()


def test_what_is_there_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    time = Clock()
    paths = [tmp_path / "a", tmp_path / "b"]
    assert target.wait_for(paths, 0, time.clock, time.pause) == tmp_path / "b"
    assert time.now == 50


def test_what_appears_in_time_is_found_at_once(tmp_path: Path) -> None:
    time = Clock(tmp_path / "b", at=29)
    found = target.wait_for([tmp_path / "a", tmp_path / "b"], 30, time.clock, time.pause)
    assert found == tmp_path / "b" and 79 <= time.now < 79.1


def test_what_does_not_appear_is_named(tmp_path: Path) -> None:
    time = Clock()
    with pytest.raises(TargetMissing, match=rf"within 30 s: {tmp_path}/a, {tmp_path}/b\."):
        target.wait_for([tmp_path / "a", tmp_path / "b"], 30, time.clock, time.pause)
    assert 80 <= time.now < 80.1


# -- why an image was passed over ------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = imaging.prepared(tmp_path / "disk", 48 * MIB)
    prepare_target(path, cycle_id=CYCLE, hostname="h", area=AREA)
    return path


def wreck(disk: Path) -> None:
    """Somebody else writes to the blocks of the image."""
    with disk.open("r+b") as file:
        for start, length in AREA.spans:
            file.seek(start)
            file.write(b"x" * length)


def test_the_reason_outlives_the_blocks_of_the_image(disk: Path) -> None:
    reason = Report("resume", "failed", "FileSystemChanged")
    with open_image(disk, AREA.locator, writable=True) as device:
        superblock = superblocks.load(device)
        assert superblock is not None
        pass_over(device, superblock, reason)
    for damage in (lambda _: None, wreck):
        damage(disk)
        found = examine(disk, AREA.locator)
        assert found is not None and found.state == "spent"
        assert found.cycle_id == CYCLE and found.reason.error == "FileSystemChanged"


def test_an_image_that_cannot_be_reached_says_so_once(disk: Path) -> None:
    wreck(disk)
    found = examine(disk, AREA.locator)
    assert found is not None and (found.state, found.cycle_id) == ("complete", CYCLE)
    error: KjumpError = FileSystemChanged("The root file system was mounted.")
    target.leave_reason(disk, AREA.locator, error)
    found = examine(disk, AREA.locator)
    assert found is not None and (found.state, found.reason.error) == (
        "spent",
        "FileSystemChanged",
    )
    # The first reason is the one that counts.
    target.leave_reason(disk, AREA.locator, TargetMissing("It is gone."))
    found = examine(disk, AREA.locator)
    assert found is not None and found.reason.error == "FileSystemChanged"


def test_without_a_locator_nothing_is_written(tmp_path: Path) -> None:
    path = imaging.prepared(tmp_path / "disk", 4 * MIB)
    path.write_bytes(b"data" * MIB)
    target.leave_reason(path, MIB, TargetMissing("It is gone."))
    assert path.read_bytes() == b"data" * MIB
    assert examine(path) is None
    assert examine(imaging.prepared(tmp_path / "tiny", 512)) is None

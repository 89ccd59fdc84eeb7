# SPDX-License-Identifier: GPL-2.0-or-later
"""What udev says about a device, and which device a target's name means."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import TargetMissing
from kjump.session.target import devices, files, swaps


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        # A blank partition of a GPT disk, as udev 257 describes it.
        ({"DEVTYPE": "partition", "ID_PART_TABLE_TYPE": "gpt", "ID_PART_ENTRY_NUMBER": "3"}, ""),
        ({"DEVTYPE": "partition", "ID_PART_TABLE_TYPE": "gpt", "ID_FS_TYPE": "ext4"}, "ext4"),
        ({"DEVTYPE": "disk", "ID_PART_TABLE_TYPE": "gpt"}, "gpt"),
        ({"DEVTYPE": "disk"}, ""),
    ],
)
def test_a_partition_does_not_hold_its_disks_table(properties: dict[str, str], found: str) -> None:
    assert devices.signature(properties) == found


# -- what a spec names -----------------------------------------------------------------------------

NULL = devices.TargetDevice(
    Path("/dev/null"),
    1 << 30,
    number="1:3",
    partuuid="AB-1",
    label="kjump",
    links=("/dev/disk/by-partlabel/kjump", "/dev/disk/by-partuuid/ab-1"),
    signature="ext4",
)
"""A device with a node that is everywhere."""
ZERO = devices.TargetDevice(
    Path("/dev/zero"),
    2 << 30,
    number="1:5",
    partuuid="ab-2",
    links=("/dev/disk/by-partuuid/ab-2",),
)


class Machine:
    """``swaps``: the areas in use; ``blocks``: where a file lies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.swaps: list[swaps.SwapArea] = []
        self.blocks = files.Blocks(os.makedev(1, 3), ((8 << 20, 1 << 20),), written=False)
        self.asked: list[tuple[Path, bool]] = []
        self.mapped: list[int] = []
        monkeypatch.setattr(devices, "list_devices", lambda: [ZERO, NULL])
        monkeypatch.setattr(devices, "read_swaps", lambda: self.swaps)
        monkeypatch.setattr(files, "blocks_of", self.blocks_of)
        monkeypatch.setattr(
            files, "refuse_mapped", lambda number, _what: self.mapped.append(number)
        )

    def blocks_of(self, path: Path, *, swap: bool = False) -> files.Blocks:
        self.asked.append((path, swap))
        return self.blocks


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("spec", ["PARTUUID=ab-1", "PARTLABEL=kjump", "/dev/null"])
def test_a_partition_is_found_by_each_of_its_names(machine: Machine, spec: str) -> None:
    found = devices.resolve(spec)
    assert found == NULL and found.capacity == 1 << 30 and found.place == ""
    assert machine.mapped == [os.makedev(1, 3)]
    assert devices.resolve_or_error(spec) == NULL


@pytest.mark.usefixtures("machine")
def test_a_name_that_nobody_has_is_missing() -> None:
    with pytest.raises(TargetMissing):
        devices.resolve("PARTLABEL=other")
    found = devices.resolve_or_error("PARTLABEL=other")
    assert isinstance(found, TargetMissing)


def test_a_partition_that_is_swapped_to_gives_free_slots(machine: Machine) -> None:
    gone = swaps.SwapArea(Path("/dev/nonesuch"), False, 1 << 30, 0)
    machine.swaps = [gone, swaps.SwapArea(Path("/dev/null"), False, 1 << 30, 1 << 20)]
    found = devices.resolve("PARTLABEL=kjump")
    assert (found.kind, found.locator, found.file) == (devices.SWAP, 0, "")
    assert found.capacity == (1 << 30) - (1 << 20)
    assert devices.resolve("PARTUUID=ab-2").kind == devices.PARTITION


def test_a_file_is_the_device_that_it_lies_on(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    link = tmp_path / "link"
    link.symlink_to("image")
    found = devices.resolve(str(link))
    assert machine.asked == [(path, False)]
    assert (found.kind, found.path, found.file) == (devices.FILE, NULL.path, str(path))
    assert (found.locator, found.capacity, found.blocks) == (8 << 20, 1 << 20, machine.blocks)
    assert found.signature == ""  # that is the file system's, and not the file's
    assert found.place == f"AB-1:{8 << 20}"
    assert found.target("x").locator == 8 << 20
    machine.blocks = replace(machine.blocks, written=True)
    assert devices.resolve(str(path)).signature


def test_a_file_that_is_swapped_to_gives_free_slots(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "swapfile"
    path.touch()
    machine.swaps = [
        swaps.SwapArea(tmp_path / "gone", True, 1 << 30, 0),
        swaps.SwapArea(path, True, 4 << 20, 1 << 20),
    ]
    found = devices.resolve(str(path))
    assert machine.asked == [(path, True)]
    assert (found.kind, found.locator, found.capacity) == (devices.SWAP, 8 << 20, 3 << 20)


def test_a_file_on_a_device_that_nobody_knows_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.blocks = replace(machine.blocks, device=os.makedev(9, 9))
    with pytest.raises(TargetMissing, match="which device"):
        devices.resolve(str(tmp_path / "image"))


def test_swap_partitions_are_known_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "Filename Type Size Used Priority\n"
        "/dev/null partition 1024 0 -2\n"
        f"{tmp_path} file 1024 0 -3\n"
        "/dev/nonesuch partition 1024 0 -4\n"
    )
    table = tmp_path / "swaps"
    table.write_text(text)
    monkeypatch.setattr(swaps, "SWAPS", table)
    assert swaps.swap_numbers() == {"1:3"} and len(swaps.read_swaps()) == 3
    monkeypatch.setattr(swaps, "SWAPS", tmp_path / "none")
    assert swaps.swap_numbers() == set()


def test_what_udev_says_is_read_of_the_devices_that_are_there() -> None:
    pytest.importorskip("pyudev")
    found = devices.list_devices()
    for device in found:
        assert device.number.count(":") == 1 and device.size % devices.SECTOR == 0
        assert str(device.path).startswith("/dev/")
        devices.user_of(device)  # whatever uses it, asking is no error


def test_whom_the_kernel_lets_in_is_not_in_use(tmp_path: Path) -> None:
    assert not devices.is_claimed(tmp_path / "nonesuch")
    path = tmp_path / "file"
    path.touch()
    assert not devices.is_claimed(path)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Naming a swap area to the kernel, so that logind offers hibernation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import NoTarget, TargetMapped
from kjump.machine.cmdline import parse
from kjump.session.systemd import kernel_hibernation, resume_device
from kjump.session.target import files, swaps
from kjump.session.target.swaps import SwapArea

from .test_readiness import DISK, SWAP

NONE = NoTarget("none")


def test_only_if_logind_waits_for_it() -> None:
    def needs(*, efi: bool = False, resume: str = "0:0\n", words: str = "", ours: str = "") -> bool:
        return resume_device.needs_resume_device(
            efi=efi, resume=resume, command_line=parse(words), recorded=ours
        )

    assert needs()
    assert not needs(efi=True)
    assert not needs(resume="254:5\n")
    assert not needs(resume="254:5\n", ours="254:6")
    # What was named by us may be swapped off by now.
    assert needs(resume="254:5\n", ours="254:5")
    assert not needs(words="noresume")


def test_the_target_comes_first() -> None:
    area = SwapArea(Path("/dev/null"), is_file=False, size=1, used=0)
    assert resume_device.resume_device(SWAP, [area]) == (DISK.number, 0)
    file = replace(SWAP, file="/swap", locator=8192)
    assert resume_device.resume_device(file, []) == (DISK.number, 2)
    assert resume_device.resume_device(DISK, []) is None


def test_the_first_area_that_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_device: int, what: str) -> None:
        if "zero" in what:
            raise TargetMapped("zram")

    monkeypatch.setattr(files, "refuse_mapped", refuse)
    areas = [
        SwapArea(Path("/nonexistent"), is_file=True, size=1, used=0),
        SwapArea(Path("/dev/zero"), is_file=False, size=1, used=0),
        SwapArea(Path("/dev/null"), is_file=False, size=1, used=0),
    ]
    assert resume_device.resume_device(NONE, areas) == ("1:3", 0)


@pytest.mark.parametrize("page", [0, 7])
def test_the_kernel_gets_the_device_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    (tmp_path / "resume").write_text("0:0\n")
    monkeypatch.setattr(kernel_hibernation, "POWER", tmp_path)
    monkeypatch.setattr(resume_device, "EFI", tmp_path / "none")
    monkeypatch.setattr(swaps, "read_swaps", list)
    monkeypatch.setattr(kernel_hibernation, "RESUME_DEVICE_RECORD", tmp_path / "run/recorded")
    assert resume_device.set_resume_device(NONE, parse("")) is None
    target = replace(SWAP, locator=page * 4096)
    assert resume_device.set_resume_device(target, parse("")) == (DISK.number, page)
    assert (tmp_path / "resume").read_text() == DISK.number
    assert (tmp_path / "resume_offset").exists() == bool(page)
    assert (tmp_path / "run/recorded").read_text() == DISK.number
    assert resume_device.set_resume_device(target, parse("")) is None
    # Another area is in use instead.
    other = replace(target, number="8:3", locator=3 * 4096)
    assert resume_device.set_resume_device(other, parse("")) == ("8:3", 3)
    assert (tmp_path / "resume").read_text() == (tmp_path / "run/recorded").read_text() == "8:3"
    # The boot's own word is left alone.
    (tmp_path / "resume").write_text("254:9\n")
    assert resume_device.set_resume_device(target, parse("")) is None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Atomic writes: the old content or the new, on the disk, with the mode that was asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kjump import atomic


def test_content_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    before = os.umask(0o077)
    try:
        atomic.write(path, "new ü")
    finally:
        os.umask(before)
    assert path.read_text() == "new ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError), atomic.replacing(path) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(old: str, new: Path) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", renamed)
    atomic.write(tmp_path / "file", b"data", mode=0o600)
    assert steps == ["file", "rename", "folder"]


def test_new_directories_get_their_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(0o700)
    before = os.umask(0o077)
    try:
        atomic.make_folder(there / "one/two")
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (there, there / "one", there / "one/two")
    ]
    assert modes == [0o700, 0o755, 0o755]
    atomic.make_folder(there)
    assert stat.S_IMODE(there.stat().st_mode) == 0o700

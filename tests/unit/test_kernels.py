# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels are installed: one answer, for doctor and for what makes the initrds."""

from __future__ import annotations

from pathlib import Path

import pytest

from kjump.initrd import helper, update
from kjump.session import kernels
from kjump.session.checks import doctor
from kjump.settings import Settings
from tests.unit.test_readiness import READY


def test_kernels_by_number() -> None:
    releases = ["6.12.9-amd64", "6.9.1", "6.12.117-kjump", "6.12.12-amd64", "7.2.13"]
    assert sorted(releases, key=kernels.by_number) == [
        "6.9.1",
        "6.12.9-amd64",
        "6.12.12-amd64",
        "6.12.117-kjump",
        "7.2.13",
    ]


def test_kernels_are_found_in_boot_and_beside_their_modules(tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    for release in ("6.9.0", "6.12.0", "6.13.0", "6.14.0"):
        (modules / release).mkdir(parents=True)
        (modules / release / "modules.dep").touch()
    for kernel in (
        boot / "vmlinuz-6.12.0",
        boot / "vmlinuz-linux",
        boot / "vmlinuz-7.0.0",
        modules / "6.9.0/vmlinuz",
        modules / "6.12.0/vmlinuz",
        modules / "6.14.0/vmlinuz",
    ):
        kernel.touch()
    (modules / "6.14.0/modules.dep").unlink()
    assert kernels.installed(boot, modules, tmp_path) == ["6.9.0", "6.12.0"]


def test_installed_kernels_in_order(tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    for release in ("6.9.0-1", "6.12.0-2", "6.12.0-10"):
        (boot / f"vmlinuz-{release}").touch()
        (modules / release).mkdir(parents=True)
        (modules / release / "modules.dep").touch()
    (boot / "vmlinuz-7.0").touch()  # no modules: not one that boots here
    installed = ["6.9.0-1", "6.12.0-2", "6.12.0-10"]
    assert kernels.installed(boot, modules, tmp_path) == installed
    # If a sandbox hides the modules.
    (boot / "config-6.9.0-1").touch()
    assert kernels.installed(boot, tmp_path / "hidden", tmp_path) == ["6.9.0-1"]


def test_the_sandbox_does_not_hide_a_kernel_that_is_only_beside_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kjumpd sees neither the kernel nor its modules there, but the copy for the helper."""
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    (boot / "vmlinuz-6.9.0").touch()
    (boot / "config-6.9.0").touch()
    for release in ("6.9.0", "6.12.0"):
        (modules / release).mkdir(parents=True)
        (modules / release / "modules.dep").touch()
    (modules / "6.12.0/vmlinuz").write_bytes(b"kernel")
    monkeypatch.setattr(helper, "BOOT", boot)
    monkeypatch.setattr(helper, "MODULES", modules)
    for release in ("6.9.0", "6.12.0"):
        helper.keep_kernel(release, tmp_path / f"helper-{release}.img")
    outside = kernels.installed(boot, modules, tmp_path)
    assert outside == ["6.9.0", "6.12.0"]
    assert kernels.installed(boot, tmp_path / "hidden", tmp_path) == outside


def test_doctor_and_the_initrds_have_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(kernels, "installed", lambda: ["6.9.0", "6.12.0"])
    monkeypatch.setattr(update, "locate", lambda: None)
    monkeypatch.setattr(update, "update_boot_initrd", made.append)
    monkeypatch.setattr("sys.argv", ["update-initrds", "--boot-only"])
    assert update.main() == 1  # none was made
    found = doctor.read_surroundings(Settings(), READY).installed
    assert tuple(made) == found == ("6.9.0", "6.12.0")

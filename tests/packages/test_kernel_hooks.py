# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's installation and removal call: helper initrds come and go with their kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packages.conftest import ROOT

HOOKS = ROOT / "packaging/kernel-hooks"
RELEASE = "6.12.1-test"
ADD = ("add", RELEASE, "/boot/0123/" + RELEASE, "/usr/lib/modules/" + RELEASE + "/vmlinuz")
REMOVE = ("remove", RELEASE, "/boot/0123/" + RELEASE)


@pytest.fixture
def libexec(tmp_path: Path) -> Path:
    """A folder with an update-initrds that records its arguments."""
    script = tmp_path / "update-initrds"
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ntest ! -e {tmp_path}/fail\n')
    script.chmod(0o755)
    return tmp_path


def calls(libexec: Path) -> list[str]:
    try:
        return (libexec / "calls").read_text().splitlines()
    except OSError:
        return []


def plugin(libexec: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HOOKS / "kernel-install", *words],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "KJUMP_LIBEXEC": str(libexec), **environment},
    )


def test_a_kernel_comes_and_goes(libexec: Path) -> None:
    plugin(libexec, *ADD, KERNEL_INSTALL_MACHINE_ID="0123", KERNEL_INSTALL_LAYOUT="bls")
    plugin(libexec, *REMOVE)
    assert calls(libexec) == [f"--made --release {RELEASE}", f"--forget --release {RELEASE}"]


@pytest.mark.parametrize("generator", ["dracut", "mkinitcpio", "initramfs-tools"])
def test_a_boot_initrd_that_has_us_is_noted(libexec: Path, generator: str) -> None:
    plugin(libexec, *ADD, KERNEL_INSTALL_INITRD_GENERATOR=generator)
    assert calls(libexec) == [f"--made --release {RELEASE}"]


def test_a_boot_initrd_that_is_not_made_here_is_not_noted(libexec: Path, tmp_path: Path) -> None:
    """Else the daemon would take it for one that can resume."""
    helper_only = f"--helper-only --release {RELEASE}"
    plugin(libexec, *ADD, KERNEL_INSTALL_INITRD_GENERATOR="none")
    plugin(libexec, *ADD, KERNEL_INSTALL_IMAGE_TYPE="uki")
    plugin(libexec, *ADD, "/boot/an-initrd-of-another")
    # 50-dracut.install takes the one that lies beside the kernel.
    (tmp_path / "initrd").touch()
    plugin(libexec, *ADD[:3], str(tmp_path / "vmlinuz"))
    assert calls(libexec) == [helper_only] * 4


def test_it_keeps_out_where_it_has_no_business(libexec: Path, tmp_path: Path) -> None:
    plugin(libexec, *ADD, KERNEL_INSTALL_MACHINE_ID="")  # an image for another machine
    plugin(libexec, *ADD, DEB_MAINT_PARAMS="configure")  # /etc/kernel/postinst.d has done it
    plugin(libexec, "inspect")
    plugin(libexec)
    plugin(tmp_path / "nonexistent", *ADD)  # removed, this file still there
    assert calls(libexec) == []


def test_a_failure_does_not_stop_the_installation(libexec: Path) -> None:
    (libexec / "fail").touch()
    done = plugin(libexec, *ADD)
    assert "has no helper initrd and cannot hibernate" in done.stderr
    plugin(libexec, *REMOVE)


def test_kernel_install_itself_calls_it(libexec: Path, tmp_path: Path) -> None:
    if shutil.which("kernel-install") is None:
        pytest.skip("kernel-install is not installed")
    if os.getuid():
        pytest.skip("kernel-install wants root")
    # systemd 252 runs plugins of this name only.
    ours = tmp_path / "95-kjump.install"
    shutil.copy(HOOKS / "kernel-install", ours)
    boot = tmp_path / "boot"
    boot.mkdir()
    image = tmp_path / "kernel" / "vmlinuz"
    image.parent.mkdir()
    image.touch()
    environment = {
        "PATH": os.environ["PATH"],
        "KJUMP_LIBEXEC": str(libexec),
        "KERNEL_INSTALL_PLUGINS": str(ours),
        "MACHINE_ID": "0123456789abcdef0123456789abcdef",
        "BOOT_ROOT": str(boot),
    }
    for words in (["add", RELEASE, str(image)], ["remove", RELEASE]):
        done = subprocess.run(
            ["kernel-install", *words], check=False, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert calls(libexec) == [f"--made --release {RELEASE}", f"--forget --release {RELEASE}"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The mkinitcpio hooks: what the install hook adds, and what the other does at boot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.packages.conftest import ROOT

HOOKS = ROOT / "packaging/mkinitcpio"

# Stand-ins for the functions of mkinitcpio that the hook calls: they record their arguments.
STUB = """
set -u
warning() { echo "warning $*"; }
add_module() { echo "module $1"; }
add_file() { echo "file $1 $2"; }
add_symlink() { echo "link $1 $2"; }
add_runscript() { echo "runscript ${BASH_SOURCE[1]##*/}"; }
in_array() { local needle=$1; shift; [[ " $* " == *" $needle "* ]]; }
. "$1"
read -ra HOOKS <<<"$2"
build
"""


def build(libexec: Path, hooks: str = "base udev block kjump filesystems") -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", "KJUMP_LIBEXEC": str(libexec)}
    command = ["bash", "-c", STUB, "-", str(HOOKS / "install/kjump"), hooks]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.splitlines()


@pytest.fixture
def libexec(tmp_path: Path) -> Path:
    """The real initrd-files, on the source tree."""
    script = tmp_path / "initrd-files"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT}/daemon exec /usr/bin/python3 -m kjump.initrd.files"
        f' "$@" --daemon {ROOT}/daemon --launchers {ROOT}/packaging/launchers\n'
    )
    script.chmod(0o755)
    return tmp_path


def test_all_that_resuming_needs_is_added(libexec: Path) -> None:
    calls = build(libexec)
    files = {line.split()[2]: line.split()[1] for line in calls if line.startswith("file ")}
    for name in ("/usr/libexec/kjump/kjump-resume", "/usr/bin/python3"):
        assert name in files
    assert any(
        name.endswith("/kjump/resume/main.py") or name.endswith("/kjump/resume/main.pyc")
        for name in files
    )
    assert any("libzstd.so" in name for name in files)
    assert any(name.endswith("libkjump.so") for name in files)
    assert all(Path(source).exists() for source in files.values())
    assert calls[-1] == "runscript kjump"
    # All of what the list has, once.
    listed = subprocess.run(
        [libexec / "initrd-files", "resume"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    assert len(files) == len(listed) == len(calls) - 2
    assert "module evdev?" in calls


def test_with_systemd_it_is_a_unit(libexec: Path) -> None:
    calls = build(libexec, "base systemd block kjump filesystems")
    unit = "/usr/lib/systemd/system/kjump-resume.service"
    source = "/usr/lib/dracut/modules.d/96kjump-resume/kjump-resume.service"
    assert calls[-2:] == [
        f"file {source} {unit}",
        "link /usr/lib/systemd/system/initrd.target.wants/kjump-resume.service"
        " ../kjump-resume.service",
    ]
    assert (ROOT / "packaging/dracut/96kjump-resume/kjump-resume.service").exists()


def test_an_initrd_is_made_also_where_we_cannot_be_put_in(tmp_path: Path) -> None:
    calls = build(tmp_path)  # no initrd-files there
    assert calls == ["warning kjump: this initrd cannot resume a hibernated session"]


def test_the_hook_at_boot_never_stops_it(tmp_path: Path) -> None:
    """Whatever kjump-resume answers, and where it is not there."""
    text = (HOOKS / "hooks/kjump").read_text()
    program = tmp_path / "kjump-resume"
    here = text.replace("/usr/libexec/kjump/kjump-resume", str(program))
    assert here.count(str(program)) == 2
    script = f"{here}\nrun_hook && echo went on"
    run = ["dash", "-c", script]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "went on\n"
    program.write_text("#!/bin/sh\necho resuming\nexit 3\n")
    program.chmod(0o755)
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    if Path("/proc/vmcore").exists():
        assert done.stdout == "went on\n"
    else:
        assert (done.returncode, done.stdout) == (0, "resuming\nwent on\n")


def test_a_crash_kernel_is_left_alone(tmp_path: Path) -> None:
    text = (HOOKS / "hooks/kjump").read_text().replace("/proc/vmcore", str(tmp_path))
    program = tmp_path / "kjump-resume"
    program.write_text("#!/bin/sh\necho resuming\n")
    program.chmod(0o755)
    text = text.replace("/usr/libexec/kjump/kjump-resume", str(program))
    done = subprocess.run(
        ["dash", "-c", f"{text}\nrun_hook"], check=True, capture_output=True, text=True
    )
    assert done.stdout == ""

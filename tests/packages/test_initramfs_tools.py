# SPDX-License-Identifier: GPL-2.0-or-later
"""The scripts in a boot initrd of initramfs-tools: kjump-resume begins early, and nobody goes on
before it has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "packaging/initramfs-tools/scripts"
PR_SET_CHILD_SUBREAPER = 36

PROGRAM = """#!/bin/sh
echo "begun $*" >>SAID
if [ "$1" = --after ]; then while [ ! -e "$2" ]; do sleep 0.02; done; fi
echo "looks" >>SAID
sleep 0.5
echo "ended" >>SAID
"""


class Initrd:
    """The scripts with their paths in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said_in = folder / "said"
        program = folder / "kjump-resume"
        program.write_text(PROGRAM.replace("SAID", str(self.said_in)))
        program.chmod(0o755)
        for place in ("init-top", "init-premount", "local-premount"):
            text = (SCRIPTS / place / "kjump").read_text()
            for path, here in (
                ("/run/kjump", folder / "run"),
                ("/usr/libexec/kjump/kjump-resume", program),
                ("/proc/vmcore", folder / "vmcore"),
            ):
                text = text.replace(path, str(here))
            (folder / place).write_text(text)

    def run(self, place: str, *, boot: str = "local", stop: str = "") -> None:
        environment = {**os.environ, "BOOT": boot, "break": stop}
        subprocess.run(["sh", self.folder / place], env=environment, check=True, timeout=20)

    @property
    def said(self) -> list[str]:
        return self.said_in.read_text().splitlines() if self.said_in.exists() else []

    @property
    def early(self) -> int:
        return int((self.folder / "run/pid").read_text())


@pytest.fixture
def initrd(tmp_path: Path) -> Iterator[Initrd]:
    # As the boot initrd's first process is: it inherits what is started, and takes no notice.
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    found = Initrd(tmp_path)
    yield found
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    if (tmp_path / "run/pid").exists():
        os.waitpid(found.early, 0)


def test_it_begins_early_and_is_waited_for(initrd: Initrd) -> None:
    initrd.run("init-top")
    time.sleep(0.3)
    assert initrd.said == [f"begun --after {initrd.folder}/run/go"]
    initrd.run("init-premount")
    initrd.run("local-premount")
    assert initrd.said[1:] == ["looks", "ended"]  # and not once more


def test_where_nobody_said_that_it_may_look_the_last_script_does(initrd: Initrd) -> None:
    initrd.run("init-top")
    initrd.run("local-premount")
    assert initrd.said[1:] == ["looks", "ended"]


def test_one_that_was_killed_is_not_waited_for(initrd: Initrd) -> None:
    initrd.run("init-top")
    os.kill(initrd.early, signal.SIGKILL)
    begun = time.monotonic()
    initrd.run("local-premount")
    assert time.monotonic() - begun < 10
    assert "looks" not in initrd.said


@pytest.mark.parametrize(("boot", "stop"), [("nfs", ""), ("local", "mount")])
def test_where_nobody_may_wait_for_it_it_is_not_started_early(
    initrd: Initrd, boot: str, stop: str
) -> None:
    initrd.run("init-top", boot=boot, stop=stop)
    initrd.run("init-premount", boot=boot, stop=stop)
    time.sleep(0.3)
    assert initrd.said == []
    initrd.run("local-premount", boot=boot, stop=stop)
    assert initrd.said == ["begun ", "looks", "ended"]


def test_a_crash_kernel_does_nothing(initrd: Initrd) -> None:
    (initrd.folder / "vmcore").touch()
    for place in ("init-top", "init-premount", "local-premount"):
        initrd.run(place)
    assert initrd.said == []


def test_the_order_among_other_scripts() -> None:
    """After Plymouth, so that its screen is found."""
    script = SCRIPTS / "init-premount/kjump"
    done = subprocess.run(["sh", script, "prereqs"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["plymouth"]

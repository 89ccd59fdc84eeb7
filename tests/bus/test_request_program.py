# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump-hibernate, which systemd-hibernate.service runs: the program itself, on the private bus."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kjump import errors
from kjump.cli import main as kjumpctl
from kjump.session.systemd import systemd_bus

from .conftest import ROOT, Client, Daemon

SOURCE = ROOT / "daemon/request/kjump-hibernate.c"
BUILT = ROOT / "daemon/request/built"

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program, and in it what it becomes: each writes its name and words."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("kjumpctl", "systemd-sleep"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (folder / name).chmod(0o755)
    subprocess.run(
        [
            "cc",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{BUILT}",
            f'-DKJUMPCTL="{folder}/kjumpctl"',
            f'-DSYSTEMD_SLEEP="{folder}/systemd-sleep"',
            "-o",
            folder / "kjump-hibernate",
            SOURCE,
            "-lsystemd",
        ],
        check=True,
    )
    return folder


@pytest.fixture
def run(programs: Path, address: str) -> Run:
    def start(at: str = address, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [programs / "kjump-hibernate"],
            env={**os.environ, "KJUMP_BUS_ADDRESS": at, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and error."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_a_cycle(run: Run, daemon: Daemon) -> None:
    daemon.set("inhibited", "block")  # logind has asked before it came to this
    assert ends(run()) == (0, "", "")
    assert daemon.done.count("prepare") == daemon.done.count("freeze") == 1


def test_sessions_are_not_frozen_where_systemd_is_told_not_to(run: Run, daemon: Daemon) -> None:
    assert ends(run(SYSTEMD_SLEEP_FREEZE_USER_SESSIONS="False"))[0] == 0
    assert daemon.done.count("prepare") == 1 and "freeze" not in daemon.done


def test_it_reads_that_word_as_kjumpctl_does(run: Run, daemon: Daemon) -> None:
    for word in ("0", "no", "N", "f", "OFF", "1", "yes", "", "none"):
        before = daemon.done.count("freeze")
        assert ends(run(SYSTEMD_SLEEP_FREEZE_USER_SESSIONS=word))[0] == 0
        froze = daemon.done.count("freeze") > before
        assert froze != systemd_bus.says_no(word), word


@pytest.mark.parametrize("cls", [errors.JumpFailed, errors.TargetTooSmall])
def test_an_error_keeps_its_sentence_and_its_exit_code(
    run: Run, daemon: Daemon, cls: type[errors.KjumpError]
) -> None:
    daemon.set("fail", cls.__name__)
    status, out, err = ends(run())
    assert (status, out) == (cls.exit_code, "")
    assert err == f"kjump-hibernate: The test wants it to fail.  {cls.advice}\n"


def test_every_error_has_its_exit_code() -> None:
    text = (BUILT / "errors.h").read_text()
    for name, found in errors.table().items():
        assert f'{{"{name}", {found.exit_code}}},' in text


def test_what_kjump_cannot_the_kernel_does(run: Run, daemon: Daemon) -> None:
    daemon.set("reasons", "NoKexecJump")
    daemon.set("kernel-hibernation")
    status, out, err = ends(run())
    assert (status, out) == (0, "systemd-sleep hibernate\n")
    assert "No CONFIG_KEXEC_JUMP.  The kernel's own hibernation is done instead." in err
    daemon.unset("kernel-hibernation")
    assert ends(run())[:2] == (errors.NoKexecJump.exit_code, "")


def test_where_kjumpd_is_not_there_kjumpctl_decides(run: Run, daemon: Daemon) -> None:
    daemon.stop()
    status, out, _err = ends(run())
    words = out.split()
    assert status == 0 and words[:1] == ["kjumpctl"]
    options = kjumpctl.parser().parse_args(words[1:])
    assert options.quiet and options.fallback and options.ignore_inhibitors
    assert ends(run(at="unix:path=/nowhere"))[1] == out  # nor a bus


def test_a_daemon_that_dies_meanwhile_is_no_reason_to_hibernate_again(
    run: Run, client: Client, daemon: Daemon
) -> None:
    daemon.set("kernel-hibernation")
    daemon.set("hold")
    process = run()
    end = time.monotonic() + 20
    while "jump" not in daemon.done:
        assert time.monotonic() < end, daemon.done
        time.sleep(0.02)
    daemon.stop(signal.SIGKILL)
    status, out, err = ends(process)
    assert (status, out) == (errors.ServiceUnreachable.exit_code, "")
    assert "kjumpd does not answer" in err


def test_it_takes_no_arguments(programs: Path) -> None:
    found = subprocess.run([programs / "kjump-hibernate", "now"], capture_output=True, check=False)
    assert found.returncode == errors.BadRequest.exit_code and b"no arguments" in found.stderr

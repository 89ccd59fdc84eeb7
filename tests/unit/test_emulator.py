# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest tests do where KVM does not work, or stops working: see qemu_stand_in.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import guests
from tests.bench.figures import Cell, Record
from tests.vm import demo, emulator, run, scenarios
from tests.vm.channel import Message, Monitor
from tests.vm.errors import EmulatorFailed, GuestError
from tests.vm.guest import Guest, Shape
from tests.vm.image import Image
from tests.vm.steps import expect

STAND_IN = Path(__file__).with_name("qemu_stand_in.py")
AT_ONCE = 10.0
"""Seconds.  What is not noticed takes 60 and more here."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a /dev/kvm that opens, and nothing decided yet."""
    kvm, kernel = tmp_path / "kvm", tmp_path / "vmlinuz"
    kvm.touch()
    kernel.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(emulator, "KVM", kvm)
    monkeypatch.setattr(emulator, "test_kernel", lambda: kernel)
    monkeypatch.setattr(emulator, "_kvm_failed", threading.Event())
    monkeypatch.setenv("KJUMP_QEMU", str(STAND_IN))
    monkeypatch.setenv("KJUMP_ACCEL", "")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    image = Image(tmp_path / "guest.qcow2", 0, 0, {"kjump": "6.12.0"})
    image.save()
    return image


def switched_on(image: Image) -> Guest:
    """A guest whose disk needs no qemu-img."""
    guest = Guest(image, Shape())
    guest.disk.touch()
    return guest.start()


def a_test(image: Image) -> None:
    """What a test of a guest does."""
    with switched_on(image) as guest:
        guest.wait_ready()
        expect("what the guest says", guest.check("echo done"), "done\n")


# -- the probe ------------------------------------------------------------------------------


def test_kvm_that_boots_a_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KJUMP_STAND_IN", "works")
    assert emulator.acceleration() == "kvm"
    assert os.environ["KJUMP_ACCEL"] == "kvm", "child processes do not try again"


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("hangs", "a Linux kernel did not boot within"),
        ("dies", "failed to set MSR 0x10a"),
        ("aborts", "Assertion"),
        ("internal-error", "QEMU stopped a Linux kernel with an internal error"),
    ],
)
def test_kvm_that_boots_only_a_firmware_is_not_used(
    fate: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulator, "PROBE_DEADLINE", 1.0 if fate == "hangs" else 60.0)
    monkeypatch.setenv("KJUMP_STAND_IN", fate)
    begin = time.monotonic()
    assert emulator.acceleration() == "tcg"
    assert time.monotonic() - begin < AT_ONCE
    assert emulator.acceleration() == "tcg"
    said = capsys.readouterr().out
    assert said.count("not using KVM") == 1
    assert reason in said


def test_without_dev_kvm_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulator, "KVM", tmp_path / "none")
    monkeypatch.setenv("KJUMP_QEMU", "/nonexistent")
    assert emulator.acceleration() == "tcg"


def test_no_kernel_is_built_to_try_kvm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulator, "test_kernel", lambda: None)
    assert emulator.acceleration() == "tcg"
    assert "make kernel" in capsys.readouterr().out


def test_the_test_kernel_is_only_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("KJUMP_CACHE", str(tmp_path))
    monkeypatch.setenv("KJUMP_KERNEL_DEB", str(tmp_path / "none.deb"))
    begin = time.monotonic()
    assert emulator.test_kernel() is None
    assert time.monotonic() - begin < AT_ONCE


def test_the_kernel_comes_out_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KJUMP_CACHE", str(tmp_path / "cache"))
    deb = tmp_path / "linux-image.deb"

    def package(content: bytes) -> None:
        root = tmp_path / "root"
        (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (root / "boot").mkdir(exist_ok=True)
        (root / "DEBIAN/control").write_text(
            "Package: linux-image-9\nVersion: 1\nArchitecture: amd64\n"
            "Maintainer: Nobody <nobody@localhost>\nDescription: kernel\n"
        )
        (root / "boot/vmlinuz-9").write_bytes(content)
        subprocess.run(["dpkg-deb", "-Znone", "-b", root, deb], check=True)

    package(b"one")
    first = emulator.kernel_image(deb)
    assert first.read_bytes() == b"one"
    assert emulator.kernel_image(deb) == first
    package(b"two")
    assert emulator.kernel_image(deb).read_bytes() == b"two"
    assert first.read_bytes() == b"one"


def test_a_real_kernel_boots_to_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise KVM would never be used, and nobody would notice."""
    monkeypatch.undo()
    kernel = emulator.test_kernel()
    if kernel is None or shutil.which(emulator.QEMU) is None:
        pytest.skip("no test kernel in the cache, or no QEMU")
    assert emulator.why_not_linux(kernel, "tcg") == ""


# -- a guest that breaks --------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["internal-error", "breaks-later"])
def test_an_internal_error_is_noticed_at_once(
    fate: str, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", fate)
    begin = time.monotonic()
    with pytest.raises(EmulatorFailed, match="Suberror: 1"):
        a_test(image)
    assert time.monotonic() - begin < AT_ONCE
    assert os.environ["KJUMP_ACCEL"] == "tcg"


def test_a_guest_that_never_boots_under_kvm_is_broken(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "hangs")

    def waits() -> None:
        with switched_on(image) as guest:
            guest.wait_ready(0.1)

    emulator.retried(waits)
    assert emulator.KVM_FAILED.findall(capsys.readouterr().out) == ["it never booted"]


def test_whoever_waits_for_the_end_learns_of_it(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "internal-error")
    with switched_on(image) as guest, pytest.raises(EmulatorFailed, match="internal error"):
        guest.wait_exit(60)


def test_a_broken_guest_runs_again_in_tcg(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "internal-error")
    used: list[str] = []

    def twice() -> None:
        for _ in range(2):
            used.append(emulator.acceleration())
            a_test(image)

    emulator.retried(twice)
    emulator.retried(twice)
    assert used == ["kvm", "tcg", "tcg", "tcg", "tcg"]
    assert len(emulator.KVM_FAILED.findall(capsys.readouterr().out)) == 1


def test_a_test_may_fail_by_anything_when_its_guest_is_gone(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "internal-error")

    def blind() -> str:
        with switched_on(image) as guest:
            assert guest.process
            if guest.accel == "kvm":
                guest.process.wait(AT_ONCE)
            answers = {"accel": guest.accel} if guest.running else {}
            return answers["accel"]

    assert emulator.retried(blind) == "tcg"


def test_what_fails_by_its_own_fault_does_not_run_again(image: Image) -> None:
    attempts: list[Image] = []

    def wrong() -> None:
        attempts.append(image)
        raise GuestError("the session is gone")

    with pytest.raises(GuestError):
        emulator.retried(wrong)
    assert len(attempts) == 1


def test_an_emulator_that_always_fails_is_not_tried_for_ever() -> None:
    attempts: list[int] = []

    def broken() -> None:
        attempts.append(1)
        raise EmulatorFailed("again")

    with pytest.raises(EmulatorFailed):
        emulator.retried(broken)
    assert len(attempts) == 1 + emulator.AGAIN


def test_a_machine_that_is_paused_is_not_broken() -> None:
    broken: list[str] = []
    events: list[Message] = []
    monitor = Monitor(events.append, lambda: broken.append("broken"))
    far = monitor.far_end.dup()
    monitor.begin()
    far.sendall(b'{"event": "STOP"}\n')
    question = json.loads(far.recv(4096))
    assert question["execute"] == "query-status"
    answer = {"id": question["id"], "return": {"status": "paused"}}
    far.sendall(json.dumps(answer).encode() + b"\n")
    time.sleep(0.1)
    monitor.close()
    assert events == [{"event": "STOP"}]
    assert not broken


# -- a whole run ----------------------------------------------------------------------------

CHILD = """
import sys
from tests.unit import test_emulator
from tests.vm import run, scenarios
scenarios.ALWAYS = {"one": test_emulator.a_test, "two": test_emulator.a_test}
sys.exit(run.run_one(sys.argv[1]))
"""


def test_scenarios_that_start_later_use_tcg(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "internal-error")
    monkeypatch.setattr(run, "child", lambda name: [sys.executable, "-c", CHILD, name])
    monkeypatch.setattr(scenarios, "ALWAYS", {"one": a_test, "two": a_test})
    assert run.run_all(["one", "two"], 1, image) == 0
    said = capsys.readouterr().out
    assert emulator.KVM_FAILED.findall(said) == ["internal error"]
    assert said.count(emulator.RUN_AGAIN) == 1, "the second begins with TCG"
    assert os.environ["KJUMP_ACCEL"] == "tcg"


def test_the_demo_recovers(
    image: Image, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    monkeypatch.setenv("KJUMP_STAND_IN", "breaks-later")
    monkeypatch.setenv("KJUMP_GUEST_IMAGE", str(image.path))
    monkeypatch.setattr(sys, "argv", ["demo"])

    def demonstrate(disk: Image, _shape: Shape) -> bool:
        a_test(disk)
        return True

    monkeypatch.setattr(demo, "demonstrate", demonstrate)
    assert demo.main() == 0
    assert len(emulator.KVM_FAILED.findall(capsys.readouterr().out)) == 1


def test_times_of_kvm_and_tcg_are_not_mixed(
    image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KJUMP_ACCEL", "kvm")
    used: list[tuple[int, str]] = []

    def measure(disk: Image, cell: Cell, system: str, pair: int, folder: Path) -> Record:
        assert not list(folder.iterdir()), "each attempt has a folder of its own"
        (folder / "disk").touch()
        monkeypatch.setenv("KJUMP_STAND_IN", "works" if pair == 1 else "internal-error")
        used.append((pair, emulator.acceleration()))
        a_test(disk)
        return Record(cell, system, pair, off=1.0, running=1.0, written=1, took=1.0)

    monkeypatch.setattr(guests, "measure", measure)
    results = bench.Results(tmp_path / "bench", bench.about(image), fresh=True)
    plan = bench.alternating([Cell(1024, 75, "text", 0)], ("ours",), 2)
    assert bench.measure_all(plan, image, results, 100) == 0
    assert used == [(1, "kvm"), (2, "kvm"), (2, "tcg"), (1, "tcg")]
    assert sorted(record.pair for record in results.records) == [1, 2]
    assert "tcg" in results.about["runs on"]
    assert (tmp_path / "bench/results-other-accelerator.json").exists()

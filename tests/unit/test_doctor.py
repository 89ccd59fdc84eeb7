# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl doctor: every check has a result, and each that fails says why and what to do."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import VERSION, errors
from kjump.cli import client
from kjump.cli import doctor as looking
from kjump.cli import main as kjumpctl
from kjump.machine import displays
from kjump.session import kernels
from kjump.session.checks import doctor, readiness
from kjump.session.checks.doctor import FAILED, OK, SKIPPED, WARNING, Finding, Surroundings
from kjump.session.checks.facts import Facts
from kjump.session.staging import describe
from kjump.session.staging.describe import MountedFileSystem, file_systems, mounted_file_systems
from kjump.session.staging.helper_record import HelperRecord
from kjump.session.target.devices import FILE, SWAP
from kjump.session.target.mounts import Mount
from kjump.session.target.swaps import SwapArea
from kjump.settings import Settings, parse
from tests.unit.test_readiness import DISK, MIB, READY

FINE = Surroundings(
    largest_image=1000 * MIB,
    helper=HelperRecord(version=VERSION),
    helper_made=20.0,
    modules_made=10.0,
    installed=("6.9.0", "6.12.0"),
    configs={"6.12.0": "CONFIG_HIBERNATION_SNAPSHOT_DEV=y\n"},
    swaps=(SwapArea(Path("/dev/vda2"), False, 100 * MIB, 40 * MIB),),
)
ROOT = MountedFileSystem("/dev/sda2", "ext4", "/", ("/dev/disk/by-partuuid/1",))
SNAP = MountedFileSystem("/dev/loop3", "squashfs", "/snap/x", (), "a loop device")
PORTAL = MountedFileSystem("/dev/fuse", "fuse", "/run/user/1000/doc")
UNNAMED = MountedFileSystem("/dev/sdb", "ext4", "/data")
CRYPT = MountedFileSystem(
    "/dev/dm-0", "xfs", "/home", ("/dev/disk/by-id/dm-name-home",), "encrypted"
)
LARGE = replace(
    READY,
    target=replace(DISK, size=4096 * MIB),
    boot={"config": "aa", "releases": {"6.12.0": "aa", "6.9.0": "old"}},
)


def states(facts: Facts = LARGE, more: Surroundings = FINE) -> dict[str, Finding]:
    found = doctor.examine(facts, more)
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def test_a_machine_where_all_is_well() -> None:
    found = states()
    assert {finding.state for finding in found.values()} == {OK}
    assert doctor.worst(found.values()) == OK and looking.exit_code([*found.values()]) == 0
    assert "60 MiB free" in found["swap"].sentence
    assert "6.12.0" in found["next-boot"].sentence


def test_every_check_of_readiness_is_there_and_has_words_of_its_own() -> None:
    names = [check.name for check in readiness.CHECKS]
    assert list(states())[: len(names)] == names and len(set(names)) == len(names)
    for facts in (LARGE, Facts(), replace(LARGE, warm=True, foreign_image=True)):
        for finding in states(facts).values():
            assert finding.sentence and finding.sentence.endswith("."), finding


@pytest.mark.parametrize(
    ("facts", "more", "name", "state", "error"),
    [
        ({"boot": None}, {}, "boot-resume", FAILED, "NoBootResume"),
        ({"sizing": errors.NoHelperInitrd("gone")}, {}, "helper", FAILED, "NoHelperInitrd"),
        ({"sizing": errors.NoHelperInitrd("gone")}, {}, "memory", SKIPPED, ""),
        ({"sizing": errors.NoHelperInitrd("gone")}, {}, "helper-age", SKIPPED, ""),
        ({"target": errors.NoTarget("none")}, {}, "target-there", FAILED, "NoTarget"),
        ({"target": errors.NoTarget("none")}, {}, "target-size", SKIPPED, ""),
        ({"target": errors.NoTarget("none")}, {}, "target-room", SKIPPED, ""),
        ({"lockdown": "integrity"}, {}, "jump", SKIPPED, ""),
        ({"window": errors.NoWindow("none")}, {}, "window", FAILED, "NoWindow"),
        ({"sizing": errors.NoHelperInitrd("gone")}, {}, "window", SKIPPED, ""),
        ({}, {"largest_image": 4097 * MIB}, "target-room", WARNING, "TargetTooSmall"),
        ({}, {"helper": HelperRecord(version="0.0.9")}, "helper-age", FAILED, "NoHelperInitrd"),
        ({}, {"helper_made": 9.0}, "helper-age", WARNING, "NoHelperInitrd"),
        ({}, {"plymouth": True}, "helper-age", WARNING, "NoHelperInitrd"),
        (
            {},
            {"helper": HelperRecord(version=VERSION, plymouth=True)},
            "helper-age",
            WARNING,
            "NoHelperInitrd",
        ),
        (
            {},
            {"helper": HelperRecord(version=VERSION, plymouth=True), "plymouth": True},
            "helper-age",
            OK,
            "",
        ),
        (
            {},
            {"helper": HelperRecord(displays=("bochs",)), "displays": ("i915",)},
            "helper-age",
            WARNING,
            "NoHelperInitrd",
        ),
        (
            {},
            {"helper": HelperRecord(displays=("bochs",)), "displays": ("bochs", "i915")},
            "helper-age",
            OK,
            "",
        ),
        ({}, {"grub_default": "saved"}, "next-boot", WARNING, ""),
        ({}, {"grub_default": "0"}, "next-boot", OK, ""),
        ({}, {"installed": ()}, "next-boot", WARNING, ""),
        (
            {},
            {"configs": {"6.12.0": "CONFIG_HIBERNATION=y"}},
            "next-boot",
            FAILED,
            "NoSnapshotDevice",
        ),
        ({}, {"configs": {}}, "next-boot", OK, ""),
        ({}, {"installed": ("6.12.0", "6.14.0")}, "next-boot", FAILED, "NoBootResume"),
        ({}, {"installed": ("6.9.0",)}, "next-boot", FAILED, "NoBootResume"),
        (
            {"cmdline_target": "/dev/vda3:0", "cmdline_target_matches": True},
            {"installed": ("6.9.0",)},
            "next-boot",
            OK,
            "",
        ),
        ({}, {"swaps": ()}, "swap", OK, ""),
        ({}, {"file_systems": (ROOT, SNAP)}, "file-systems", OK, ""),
        ({}, {"file_systems": (ROOT, UNNAMED)}, "file-systems", WARNING, ""),
        ({}, {"file_systems": (ROOT, CRYPT)}, "file-systems", WARNING, ""),
    ],
)
def test_what_is_found(
    facts: dict[str, Any], more: dict[str, Any], name: str, state: str, error: str
) -> None:
    finding = states(replace(LARGE, **facts), replace(FINE, **more))[name]
    assert (finding.state, finding.error) == (state, error)
    if state in (FAILED, WARNING):
        assert finding.advice, finding


def test_a_reason_that_no_check_knows_is_reported_all_the_same() -> None:
    strange = errors.NoWarmHelper("Something new.")
    found = doctor.examine(LARGE, FINE, [strange])
    assert [f.error for f in found if f.state == FAILED] == ["NoWarmHelper"]
    twice = doctor.examine(replace(LARGE, boot=None), FINE, [errors.NoBootResume("x")])
    assert [f.error for f in twice if f.state == FAILED] == ["NoBootResume"]


def test_file_systems_that_cannot_be_checked_are_counted_and_named() -> None:
    more = replace(FINE, file_systems=(ROOT, UNNAMED, CRYPT, SNAP, PORTAL))
    finding = states(LARGE, more)["file-systems"]
    assert finding.sentence == (
        "2 mounted file systems cannot be checked at the resume: /data (ext4 on /dev/sdb),"
        " /home (xfs on /dev/dm-0)."
    )


def test_the_file_systems_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        Mount("0:40", "/", "/tmp", ("rw",), "tmpfs", "tmpfs"),
        Mount("1:3", "/", "/data", ("rw",), "ext4", "/dev/null"),
        Mount("1:3", "/sub", "/bind", ("rw",), "ext4", "/dev/null"),
        Mount("9:9", "/", "/gone", ("rw",), "ext4", "/dev/nonexistent"),
    ]
    monkeypatch.setattr(describe, "read_mounts", lambda: lines)
    assert mounted_file_systems() == [MountedFileSystem("/dev/null", "ext4", "/data")]
    assert file_systems() == ()  # nothing that the helper could find


def test_targets_have_names() -> None:
    swap = replace(DISK, kind=SWAP, locator=0, room=1)
    assert readiness.name_of(swap) == f"swap partition {DISK.path}"
    assert readiness.name_of(replace(swap, file="/s")) == f"swap file /s on {DISK.path}"
    assert readiness.name_of(replace(DISK, kind=FILE, file="/f")) == f"file /f on {DISK.path}"


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("", None),
        ("GRUB_DEFAULT=0\n", "0"),
        ('# GRUB_DEFAULT=1\nGRUB_DEFAULT="saved"  # the last\nGRUB_TIMEOUT=5\n', "saved"),
        ("GRUB_DEFAULT=0\nGRUB_DEFAULT='1>2'\n", "1>2"),
    ],
)
def test_grubs_default(text: str, default: str | None) -> None:
    assert doctor.grub_default(text) == default


def test_modules_that_the_daemon_does_not_see_are_seen_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initrd, modules = tmp_path / "initrd", tmp_path / "6.1"
    modules.mkdir()
    initrd.touch()
    (modules / "modules.dep").touch()
    settings = replace(Settings(), helper=replace(Settings().helper, initrd=str(initrd)))
    monkeypatch.setattr(kernels, "MODULES", tmp_path)
    os.utime(initrd, (20, 20))
    os.utime(modules / "modules.dep", (10, 10))
    assert doctor.newer_modules(settings, "6.1") is None
    os.utime(modules / "modules.dep", (30, 30))
    found = doctor.newer_modules(settings, "6.1")
    assert found is not None and (found.name, found.state) == ("helper-age", doctor.WARNING)


# -- what kjumpctl adds


def test_what_others_see() -> None:
    assert looking.of_drop_ins(enabled=True).state == OK
    assert "kjumpctl enable" in looking.of_drop_ins(enabled=False).advice
    assert looking.of_logind("challenge", enabled=True).state == OK
    assert looking.of_logind("na", enabled=True).state == WARNING
    assert looking.of_logind("na", enabled=False).state == SKIPPED
    assert looking.of_service({"Version": VERSION}).state == OK
    assert looking.of_service({"Version": "0.0"}).state == WARNING


def test_the_last_cycle() -> None:
    assert looking.of_last_cycle({}).state == OK
    assert looking.of_last_cycle({"result": "ok", "finished": 1.0}).state == OK
    report = {"result": "failed", **errors.TargetWriteFailed("No.").report()}
    found = looking.of_last_cycle(report)
    assert (found.state, found.error) == (WARNING, "TargetWriteFailed") and found.advice


def test_the_configuration_is_named_with_its_line() -> None:
    settings = parse(Settings(), "/etc/x.conf", "[Target]\nPath=/dev/a\nColour=red\n")
    found = looking.of_settings(settings, {"Target": {"spec": "/dev/a"}})
    assert len(found) == 1 and found[0].state == WARNING
    assert "/etc/x.conf:3: " in found[0].sentence
    changed = looking.of_settings(Settings(), {"Target": {"spec": "/dev/b"}})
    assert [f.state for f in changed] == [WARNING] and "reload" in changed[0].advice
    assert [f.state for f in looking.of_settings(Settings(), {})] == [OK]


def test_the_displays_of_the_session_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "drivers", lambda: {"bochs"})
    assert doctor.read_surroundings(Settings(), READY).displays == ("bochs",)


def test_the_boot_initrd() -> None:
    assert looking.of_initrd("6", "/boot/i", "usr/bin/kjump-resume\n").state == OK
    found = looking.of_initrd("6", "/boot/i", "usr/bin/sh\n")
    assert (found.state, found.error) == (FAILED, "NoBootResume")
    assert looking.of_initrd("6", "/boot/i", None).state == SKIPPED


def test_how_long_a_dry_run_took() -> None:
    report = {
        "phases": {"check": 9.0, "jump": 0.1, "helper boot": 2.0, "scan": 0.5},
        "wall": {"check": 9.0, "jump": 2.0},
        "pages": {"data": 256},
    }
    assert looking.duration(report) == 2.6
    assert "back in 2.6 s" in looking.of_dry_run(report).sentence
    assert "1024 KiB would be saved" in looking.of_dry_run(report).sentence
    assert looking.duration({}) == 0.0


def test_the_first_failure_gives_the_exit_code() -> None:
    one = doctor.failed("a", errors.NoTarget("x"))
    two = doctor.failed("b", errors.Lockdown("y"))
    assert looking.exit_code([one, two]) == 30 and looking.exit_code([two, one]) == 22
    assert looking.exit_code([doctor.warning("a", errors.NoTarget("x"))]) == 0
    assert looking.exit_code([Finding("a", FAILED, "x", "Unheard")]) == 1
    text = looking.text([one, two, Finding("c", OK, "Well.")])
    assert (
        "failed   a  x" in text and "[NoTarget]" in text and "2 checks failed, 0 warnings." in text
    )
    assert "\x1b" not in text and "\x1b[31m" in looking.text([one], colour=True)
    assert "All is well." in looking.text([Finding("c", OK, "Well.")])


class Trialed:
    """A kjumpd that notes whether it was asked to jump."""

    jumped: list[str] = []  # noqa: RUF012
    fails: errors.KjumpError | None = None

    def dry_run(self) -> dict[str, Any]:
        self.jumped.append("jump")
        if self.fails:
            raise self.fails
        return {"result": "returned", "wall": {"jump": 3.0}}


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    found: list[Finding],
    fails: errors.KjumpError | None = None,
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(Trialed, "jumped", [])
    monkeypatch.setattr(Trialed, "fails", fails)
    monkeypatch.setattr(client, "Client", Trialed)
    monkeypatch.setattr(looking, "look", lambda: list(found))
    code = kjumpctl.main(["doctor", "--json", *words])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, document


def test_a_jump_is_only_made_if_it_was_wanted_and_nothing_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = [Finding("a", OK, "Well.")]
    for words in ([], ["--no-jump"]):
        code, document = run(monkeypatch, capsys, words, well)
        assert (code, Trialed.jumped, document["dry_run"]) == (0, [], None)
        assert document["checks"][-1]["state"] == SKIPPED and document["result"] == OK
    for word in ("--jump", "--yes"):
        code, document = run(monkeypatch, capsys, [word], well)
        assert (code, Trialed.jumped) == (0, ["jump"])
        assert document["dry_run"]["result"] == "returned"
        assert "back in 3.0 s" in document["checks"][-1]["sentence"]
    bad = [doctor.failed("a", errors.NoTarget("None."))]
    code, document = run(monkeypatch, capsys, ["--yes"], bad)
    assert (code, Trialed.jumped, document["result"]) == (30, [], FAILED)
    code, document = run(monkeypatch, capsys, ["--yes"], well, errors.JumpFailed("No."))
    assert code == 51 and document["checks"][-1]["error"] == "JumpFailed"


class Answering:
    """A kjumpd with one finding of its own."""

    def logind_can_hibernate(self) -> str:
        return "yes"

    def properties(self) -> dict[str, Any]:
        return {"Version": VERSION, "Target": {"spec": ""}, "LastCycle": {}}

    def check(self) -> list[tuple[str, str, str, str, str]]:
        return [("target", OK, "", "There is one.", "")]


def test_everything_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("boot", "lib/modules/6.1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "boot/vmlinuz-6.1").touch()
    (tmp_path / "lib/modules/6.1/modules.dep").touch()
    listed: list[str] = []

    def listing(path: str) -> str:
        listed.append(path)
        return "kjump-resume"

    monkeypatch.setattr(looking, "boot_initrd", lambda release: f"/boot/i-{release}")
    monkeypatch.setattr(looking, "listing", listing)
    found = {f.name: f for f in looking.look(Answering, tmp_path)}  # type: ignore[arg-type]
    assert [*found] == [
        "service",
        "configuration",
        "target",
        "boot-initrd",
        "enabled",
        "last-cycle",
    ]
    assert listed == ["/boot/i-6.1"] and found["boot-initrd"].state == OK
    # No drop-ins are installed there.
    assert (found["enabled"].state, found["enabled"].error) == (FAILED, "Internal")
    (tmp_path / "usr/share/kjump/dropins").mkdir(parents=True)
    (tmp_path / "usr/share/kjump/dropins/x.conf").touch()
    found = {f.name: f for f in looking.look(Answering, tmp_path)}  # type: ignore[arg-type]
    assert (found["enabled"].state, found["logind"].state) == (WARNING, SKIPPED)


def test_without_kjumpd_only_root_looks_at_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Any:
        raise errors.ServiceUnreachable("kjumpd does not answer: gone.")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    found = {f.name: f.state for f in looking.look(gone, tmp_path)}
    assert (found["service"], found["machine"], found["configuration"]) == (FAILED, SKIPPED, OK)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(looking, "read_facts", lambda _settings: READY)
    looked = {f.name: f.state for f in looking.look(gone, tmp_path)}
    assert looked["machine"] == OK and len(looked) > len(found)


def test_the_files_of_a_boot_initrd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lister = tmp_path / "lsinitramfs"
    lister.write_text('#!/bin/sh\necho "usr/bin/$(cat "$1")"\n')
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    initrd = tmp_path / "initrd"
    assert looking.listing(str(initrd)) is None
    initrd.write_text("kjump-resume")
    assert looking.listing(str(initrd)) == "usr/bin/kjump-resume\n"
    lister.write_text("#!/bin/sh\nexit 1\n")
    assert looking.listing(str(initrd)) is None
    assert looking.boot_initrd("0.0-none") == ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.checks.readiness and devices: each reason, by facts alone."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import errors
from kjump.machine import memory, syscalls, udev
from kjump.machine.cmdline import parse
from kjump.machine.memory import parse_meminfo
from kjump.session.checks import facts, readiness
from kjump.session.checks.facts import (
    Facts,
    available_memory,
    boot_mark,
    leads_to,
    lockdown_mode,
    read_facts,
)
from kjump.session.checks.readiness import availability, reasons
from kjump.session.staging import load, window
from kjump.session.staging.sizing import Sizing
from kjump.session.target import devices
from kjump.session.target.devices import TargetDevice
from kjump.session.target.mounts import Mount
from kjump.settings import Settings

MIB = 1 << 20
DISK = TargetDevice(
    Path("/dev/vda3"),
    4096 * MIB,
    "254:3",
    "abcd-01",
    "kjump image",
    ("/dev/disk/by-partlabel/kjump\\x20image", "/dev/disk/by-partuuid/abcd-01"),
)


def sizing(need: int = 256 * MIB) -> Sizing:
    return Sizing(Path("/boot/vmlinuz"), Path("/x.img"), 160 * MIB, need)


READY = Facts(
    release="6.12.0",
    target=DISK,
    sizing=sizing(),
    available=512 * MIB,
    boot={"release": "6.12.0", "config": "aa"},
    fingerprint="aa",
)


def names(facts: Facts) -> list[str]:
    return [reason.name for reason in reasons(facts)]


def test_a_ready_machine() -> None:
    assert names(READY) == []
    assert availability([]) == "yes"


@pytest.mark.parametrize(
    ("changes", "name", "answer"),
    [
        ({"machine": "aarch64"}, "UnsupportedMachine", "na"),
        ({"lockdown": "integrity"}, "Lockdown", "na"),
        ({"kexec_disabled": True}, "KexecDisabled", "na"),
        ({"jump": errors.NoKexecJump("no")}, "NoKexecJump", "na"),
        ({"jump": errors.Lockdown("no")}, "Lockdown", "na"),
        ({"snapshot_device": False}, "NoSnapshotDevice", "na"),
        ({"command_line": parse("quiet nohibernate")}, "NoSnapshotDevice", "na"),
        ({"command_line": parse('hibernate="no"')}, "NoSnapshotDevice", "na"),
        ({"command_line": parse("page_poison=on")}, "PagePoison", "na"),
        ({"command_line": parse("page-poison=1")}, "PagePoison", "na"),
        ({"command_line": parse("page_poison=0 page_poison=enable")}, "PagePoison", "na"),
        ({"foreign_image": True}, "ForeignKexecImage", "no"),
        ({"target": errors.NoTarget("none")}, "NoTarget", "no"),
        ({"target": errors.TargetMissing("gone")}, "TargetMissing", "no"),
        ({"target_user": "mounted on /"}, "TargetInUse", "no"),
        ({"target": replace(DISK, size=15 * MIB)}, "TargetTooSmall", "no"),
        ({"target": replace(DISK, signature="ext4")}, "TargetHoldsData", "no"),
        ({"sizing": errors.NoHelperKernel("none")}, "NoHelperKernel", "no"),
        ({"sizing": errors.NoHelperInitrd("none")}, "NoHelperInitrd", "no"),
        ({"available": 255 * MIB}, "TooLittleMemory", "no"),
        ({"window": errors.NoWindow("none")}, "NoWindow", "no"),
        ({"boot": None}, "NoBootResume", "no"),
        ({"boot": {"config": "cc"}}, "NoBootResume", "no"),
        ({"boot": {}}, "NoBootResume", "no"),
        ({"boot_misses": "/dev/disk/by-label/x"}, "NoBootResume", "no"),
    ],
)
def test_each_reason(changes: dict[str, Any], name: str, answer: str) -> None:
    found = reasons(replace(READY, **changes))
    assert [reason.name for reason in found] == [name]
    assert availability(found) == answer


def test_what_is_no_reason() -> None:
    assert (
        names(
            replace(
                READY,
                command_line=parse(
                    "page_poison=1 page_poison=0 hibernate=nocompress -- page_poison=1"
                ),
            )
        )
        == []
    )
    assert names(replace(READY, boot={"config": "bb"})) == ["NoBootResume"]
    ours = replace(READY, target=replace(DISK, signature="gpt"), target_is_ours=True)
    assert names(ours) == []


def test_the_kernel_comes_first_and_one_cause_is_named_once() -> None:
    facts = replace(
        READY,
        kexec_disabled=True,
        jump=errors.KexecDisabled("x"),
        boot=None,
        target=errors.NoTarget("none"),
    )
    assert names(facts) == ["KexecDisabled", "NoTarget", "NoBootResume"]
    assert availability(reasons(facts)) == "na"
    mounted = replace(READY, target=replace(DISK, signature="ext4"), target_user="mounted on /")
    assert names(mounted) == ["TargetInUse"]


def test_the_figures_are_in_the_sentence() -> None:
    (reason,) = reasons(replace(READY, available=100 * MIB))
    assert "256 MiB" in reason.sentence and "100 MiB" in reason.sentence
    (reason,) = reasons(replace(READY, target=replace(DISK, size=2 * MIB)))
    assert "2 MiB" in reason.sentence and "16 MiB" in reason.sentence


def test_every_check_is_pure() -> None:
    for check in readiness.CHECKS:
        assert check.judge(READY) is None and check.judge.__doc__
        assert check.fine(READY).endswith(".") and not check.not_looked_at(READY)
    names = [check.name for check in readiness.TARGET_CHECKS]
    assert names == ["target-free", "target-size", "target-empty", "target-session"]


def test_small_readers(tmp_path: Path) -> None:
    assert lockdown_mode("none [integrity] confidentiality\n") == "integrity"
    assert lockdown_mode("[none] integrity confidentiality\n") == "none"
    assert lockdown_mode("") == "none"
    assert available_memory(parse_meminfo("MemTotal: 5 kB\nMemAvailable:   2048 kB\n")) == 2 * MIB
    assert available_memory({}) == 0
    lists = "  pagesets\n    cpu: 0\n              count: 512\n              high:  6418\n"
    assert available_memory({"MemAvailable": 2 * MIB}, lists) == 4 * MIB
    mark = tmp_path / "boot.json"
    assert boot_mark(mark) is None
    mark.write_text("{")
    assert boot_mark(mark) is None
    mark.write_text(json.dumps({"config": "aa"}))
    assert boot_mark(mark) == {"config": "aa"}


# -- devices


def test_a_spec_names_a_device() -> None:
    assert devices.matches("PARTUUID=ABCD-01", DISK)
    assert devices.matches("PARTLABEL=kjump image", DISK)
    assert devices.matches("/dev/vda3", DISK)
    assert devices.matches("/dev/disk/by-partuuid/abcd-01", DISK)
    assert not devices.matches("PARTLABEL=kjump", DISK)
    assert not devices.matches("PARTUUID=", replace(DISK, partuuid="x"))


def test_the_choice_of_a_device() -> None:
    other = replace(DISK, path=Path("/dev/vdb3"))
    assert devices.device_named("/dev/vdb3", [DISK, other]) is other
    with pytest.raises(errors.NoTarget):
        devices.device_named("", [DISK])
    with pytest.raises(errors.TargetMissing, match="not found"):
        devices.device_named("/dev/vdc", [DISK])
    with pytest.raises(errors.TargetMissing, match="/dev/vda3 and /dev/vdb3"):
        devices.device_named("PARTLABEL=kjump image", [DISK, other])


def test_udevs_escapes() -> None:
    assert udev.decode(r"kjump\x20image") == "kjump image"
    assert udev.decode(r"\xc3\xa4") == "ä"
    assert udev.decode(r"a\xzz") == r"a\xzz"
    assert udev.decode("ä") == "ä"


MOUNTED = [Mount("254:3", "/", "/home/a b", ("rw",), "ext4", "/dev/vda3")]


def test_who_uses_a_device() -> None:
    def occupied(**changes: Any) -> str | None:
        given: dict[str, Any] = {"mounts": [], "swaps": (), "claimed": False, **changes}
        return devices.occupation(given.pop("device", DISK), **given)

    assert occupied() is None
    assert occupied(mounts=MOUNTED) == "mounted on /home/a b"
    assert occupied(swaps={"254:3"}) == "in use as swap"
    assert occupied(device=replace(DISK, holders=("dm-0",))) == "in use by dm-0"
    assert occupied(claimed=True) == "in use by the kernel"
    assert occupied(mounts=[replace(MOUNTED[0], number="254:33")]) is None


def test_a_described_udev_device(tmp_path: Path) -> None:
    (tmp_path / "holders").mkdir()
    (tmp_path / "holders/dm-1").touch()
    raw = types.SimpleNamespace(
        properties={
            "ID_PART_ENTRY_UUID": "abcd-01",
            "ID_PART_ENTRY_NAME": r"kjump\x20image",
            "DEVLINKS": "/dev/disk/by-b /dev/disk/by-a",
            "ID_FS_TYPE": "ext4",
        },
        device_number=(254 << 8) | 3,
        sys_path=str(tmp_path),
        device_node="/dev/vda3",
        attributes=types.SimpleNamespace(asstring={"size": "2048"}.__getitem__),
    )
    found = devices.from_udev(raw)
    assert found.size == MIB
    assert found.number == "254:3"
    assert found.label == "kjump image"
    assert found.links == ("/dev/disk/by-a", "/dev/disk/by-b")
    assert found.signature == "ext4"
    assert found.holders == ("dm-1",)
    target = found.target("PARTUUID=abcd-01")
    assert (target.spec, target.path, target.size) == ("PARTUUID=abcd-01", Path("/dev/vda3"), MIB)


def test_reading_this_machine_never_raises() -> None:
    found = read_facts(Settings())
    assert found.release
    assert found.available > 0
    assert "NoTarget" in names(found)


def test_a_swap_area_that_is_off_is_switched_on_and_not_wiped() -> None:
    (reason,) = reasons(replace(READY, target=replace(DISK, signature="swap")))
    assert reason.name == "TargetHoldsData"
    assert "swapon /dev/vda3" in reason.todo and "wipefs" not in reason.sentence


def test_another_machines_session_is_not_overwritten() -> None:
    assert names(replace(READY, target_session="laptop")) == ["TargetHoldsData"]


def test_a_warm_helper_is_not_foreign_and_has_its_memory() -> None:
    """What is staged already needs no second window, and its image is ours."""
    short = replace(READY, foreign_image=True, available=0, window=errors.NoWindow("none"))
    found = {reason.name for reason in reasons(short)}
    assert found == {"ForeignKexecImage", "TooLittleMemory", "NoWindow"}
    assert reasons(replace(short, warm=True)) == []


# -- files and swap ------------------------------------------------------------------------------

FILE = replace(DISK, kind="file", file="/image", locator=8192, room=1 << 30)
SWAP = replace(DISK, kind="swap", locator=0, room=1 << 30, signature="swap")


def test_what_is_free_of_the_swap_counts_and_its_signature_does_not() -> None:
    assert names(replace(READY, target=SWAP)) == []
    assert names(replace(READY, target=replace(SWAP, room=MIB))) == ["TargetTooSmall"]
    assert "swap" in reasons(replace(READY, target=replace(SWAP, room=MIB)))[0].what


def test_a_file_that_was_written_to_is_somebodys() -> None:
    assert names(replace(READY, target=FILE)) == []
    written = replace(READY, target=replace(FILE, signature="written"))
    assert names(written) == ["TargetHoldsData"]
    assert names(replace(written, target_is_ours=True)) == []


def test_another_machines_session_in_a_file_is_kept_and_in_swap_it_is_lost() -> None:
    facts = replace(READY, target=FILE, target_session="other")
    assert names(facts) == ["TargetHoldsData"]
    assert "wipefs" not in reasons(facts)[0].todo
    assert "/image" in reasons(facts)[0].what
    assert names(replace(facts, target=SWAP)) == []


def test_the_boot_has_to_know_where_a_file_lies() -> None:
    assert FILE.place == "abcd-01:8192"
    assert DISK.place == SWAP.place == ""
    moved = replace(READY, target=FILE, fingerprint="bb")
    assert names(moved) == ["NoBootResume"]
    assert "/image was moved" in reasons(moved)[0].what


def test_the_kernel_command_line_says_where_the_target_is() -> None:
    there = replace(
        READY,
        target=FILE,
        fingerprint="bb",
        cmdline_target="/dev/vda3:8192",
        cmdline_target_matches=True,
    )
    assert names(there) == []
    assert names(replace(there, boot=None)) == ["NoBootResume"]
    wrong = replace(READY, cmdline_target="/dev/vda9", cmdline_target_matches=False)
    assert names(wrong) == ["NoBootResume"]
    assert "kjump.target=" in reasons(wrong)[0].todo


@pytest.mark.parametrize(
    ("place", "right"),
    [("/dev/vda3:8192", True), ("/dev/vda3", False), ("/dev/vda3:0", False), ("nonsense", False)],
)
def test_a_configured_place_is_the_targets_or_not(place: str, right: bool) -> None:
    assert leads_to(place, FILE) is right


def test_swap_by_its_uuid() -> None:
    disk = replace(DISK, links=("/dev/disk/by-uuid/12-ab", "/dev/disk/by-label/s"))
    assert devices.matches("UUID=12-ab", disk)
    assert devices.matches("LABEL=s", disk)
    assert not devices.matches("UUID=12", disk)


# -- the window ----------------------------------------------------------------------------------


class Looks:
    """A machine with and without a window, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.found: errors.NoWindow | None = errors.NoWindow("none")
        self.sizes: list[int] = []

    def look(self, size: int) -> errors.NoWindow | None:
        self.sizes.append(size)
        return self.found


def test_a_window_is_looked_for_now_and_then() -> None:
    machine = Looks()
    look = facts.WindowLook(machine.look, lambda: machine.now, 3.0)
    settings, size = Settings(), 160 * MIB
    assert isinstance(look.find(settings, sizing()), errors.NoWindow)
    machine.found, machine.now = None, 102.9
    assert isinstance(look.find(settings, sizing()), errors.NoWindow)
    assert machine.sizes == [size]
    machine.now = 103.0
    assert look.find(settings, sizing()) is None
    assert machine.sizes == [size] * 2
    # At once after the configuration was read again, and for another size.
    machine.found = errors.NoWindow("none")
    assert look.find(Settings(), sizing()) is not None
    look.find(settings, replace(sizing(), window_size=2 * MIB))
    assert machine.sizes == [size, size, size, 2 * MIB]


def test_without_a_helper_no_window_is_looked_for() -> None:
    machine = Looks()
    look = facts.WindowLook(machine.look)
    assert look.find(Settings(), errors.NoHelperInitrd("gone")) is None
    assert look.find(Settings(), None) is None and not machine.sizes


def test_in_doubt_there_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Any:
        def look(*_: object) -> None:
            raise error

        return look

    monkeypatch.setattr(facts, "vmcoreinfo_note", lambda: (0, 0))
    for error in (OSError(1, "no"), errors.NotPrivileged("no")):
        monkeypatch.setattr(window, "read_kpageflags", fails(error))
        monkeypatch.setattr(memory, "iomem", fails(error))
        assert facts.look_for_window(1 << 40) is None
    monkeypatch.setattr(facts, "vmcoreinfo_note", fails(errors.StagingFailed("no")))
    assert facts.look_for_window(1 << 40) is None


def test_a_window_that_no_machine_has() -> None:
    """The real flags of this machine, if we may read them."""
    try:
        window.read_kpageflags(0, 1)
        load.vmcoreinfo_note()
        assert memory.iomem()
    except (OSError, errors.KjumpError):
        pytest.skip("needs root")
    assert isinstance(facts.look_for_window(4 << 30), errors.NoWindow)
    assert facts.look_for_window(2 * MIB) is None


def test_the_facts_say_whether_there_is_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CanHibernate answers from; before, only staging found it out."""
    machine = Looks()
    monkeypatch.setattr(facts, "_window_look", facts.WindowLook(machine.look))
    monkeypatch.setattr(facts, "measure", lambda *_: sizing())
    assert "NoWindow" in names(read_facts(Settings()))
    machine.found = None
    assert "NoWindow" not in names(read_facts(Settings()))


def test_no_window_is_looked_for_while_an_image_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are in the way and go with it: what is remembered would be wrong afterwards."""
    machine = Looks()
    monkeypatch.setattr(facts, "_window_look", facts.WindowLook(machine.look))
    monkeypatch.setattr(facts, "measure", lambda *_: sizing())
    monkeypatch.setattr(syscalls, "kexec_loaded", lambda: True)
    found = read_facts(Settings())
    assert found.window is None and found.foreign_image and not machine.sizes

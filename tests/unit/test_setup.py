# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl setup --file, as far as it goes without a file system of the right kind."""

from __future__ import annotations

import io
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.cli import dropins, setup
from kjump.cli import main as kjumpctl
from kjump.errors import (
    BadConfiguration,
    BadRequest,
    NoTarget,
    TargetTooSmall,
    UnsuitableFile,
)
from kjump.session.checks.doctor import Finding
from kjump.session.target import claim, files
from kjump.session.target.files import Blocks
from kjump.session.target.mounts import parse_mountinfo

MIB = 1 << 20


def test_sizes() -> None:
    assert setup.parse_size("16G") == 16 << 30
    assert setup.parse_size("800m") == 800 * MIB
    assert setup.parse_size("1073741824") == 1 << 30
    assert setup.parse_size("67112000") == 67112000 // 4096 * 4096
    default = setup.parse_size(None)
    assert (
        claim.largest_image_size() <= default < claim.largest_image_size() + 4096
        and default % 4096 == 0
    )
    for text in ("", "G", "16X", "-1G", "1.5G", "4M", "16GG", "\u0661G"):
        with pytest.raises(BadRequest):
            setup.parse_size(text)


@pytest.fixture
def ext4(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A file system that does what ext4 does; ``found``: where the file is said to lie."""
    told: dict[str, object] = {"flags": []}

    def blocks_of(path: Path) -> Blocks:
        found = told.get("found")
        if isinstance(found, Exception):
            raise found
        return Blocks(1, ((4096, path.stat().st_size),), bool(found))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(files, "file_system", lambda fd: told.get("kind", files.EXT4))
    monkeypatch.setattr(files, "blocks_of", blocks_of)
    monkeypatch.setattr(files, "set_flags", lambda fd, flags: told["flags"].append(flags))  # type: ignore[attr-defined]
    return told


def test_a_file_is_made_and_protected(tmp_path: Path, ext4: dict[str, object]) -> None:
    path = tmp_path / "image"
    assert setup.make(path, 20 * MIB) == setup.Made(path, 20 * MIB)
    status = path.stat()
    assert (status.st_size, status.st_mode & 0o777) == (20 * MIB, 0o600)
    assert status.st_blocks * 512 >= 20 * MIB
    assert ext4["flags"] == [files.IMMUTABLE]


def test_on_btrfs_it_is_not_copied_on_write(tmp_path: Path, ext4: dict[str, object]) -> None:
    ext4["kind"] = files.BTRFS
    setup.make(tmp_path / "image", 20 * MIB)
    assert ext4["flags"] == [files.NOCOW, files.IMMUTABLE]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": 0x01021994}, UnsuitableFile),  # tmpfs
        ({"found": UnsuitableFile("holes")}, UnsuitableFile),
        ({"found": True}, UnsuitableFile),  # written to
    ],
)
def test_where_it_cannot_be_nothing_is_left(
    tmp_path: Path, ext4: dict[str, object], change: dict[str, object], error: type[Exception]
) -> None:
    ext4.update(change)
    with pytest.raises(error):
        setup.make(tmp_path / "image", 20 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TargetTooSmall):
        setup.make(tmp_path / "image", 20 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, ext4: dict[str, object]) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear Bob")
    others = ("relative", "/dev/image", "/var/lib/kjump/image", f"{tmp_path}/none/image")
    for bad in (path, *map(Path, others)):
        with pytest.raises(BadRequest):
            setup.make(bad, 20 * MIB)
    assert path.read_text() == "Dear Bob"
    assert ext4["flags"] == []


def test_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kjump import settings

    real = settings.load
    monkeypatch.setattr(settings, "load", lambda: real(tmp_path))
    drop_in = tmp_path / "etc/kjump/kjump.conf.d/90-target.conf"
    assert setup.configure(Path("/image"), drop_in) == drop_in
    assert real(tmp_path).target.path == "/image"
    drop_in.with_name("99-mine.conf").write_text("[Target]\nPath=PARTLABEL=x\n")
    with pytest.raises(BadConfiguration):
        setup.configure(Path("/image"), drop_in)


# -- choosing

ROOM = 8 << 30
GIB = 1 << 30


def candidate(spec: str, room: int = ROOM, why_not: str = "") -> setup.Candidate:
    return setup.Candidate(spec, f"the {spec}", room, why_not)


def test_what_is_preferred() -> None:
    conf, swap, part, disk = map(candidate, ("conf", "swap", "part", "/kjump.image"))
    everything = setup.Survey(conf, (swap,), (part,), (disk,))
    assert setup.choose(everything, GIB) == setup.Plan("conf", "the conf", write=False)
    rest = replace(everything, configured=candidate("conf", why_not="it is mounted"))
    assert setup.choose(rest, GIB) == setup.Plan("swap", "the swap")
    rest = replace(rest, swaps=(candidate("swap", GIB - 1),))
    assert setup.choose(rest, GIB) == setup.Plan("part", "the part")
    rest = replace(rest, partitions=(candidate("part", why_not="it holds data"),))
    plan = setup.choose(rest, GIB)
    assert (plan.spec, plan.make, plan.write) == ("/kjump.image", GIB, True)
    assert any("/kjump.image, 1024 MiB" in line for line in plan.sentences())


def test_a_file_system_is_not_filled_up_and_all_that_was_passed_over_is_told() -> None:
    found = setup.Survey(
        None,
        (candidate("swap", GIB, "it is on LVM"),),
        (),
        (candidate("/kjump.image", 2 * GIB - 1),),
    )
    with pytest.raises(NoTarget, match=r"the swap: it is on LVM; the .*: 2047 MiB free"):
        setup.choose(found, GIB)
    assert setup.choose(found, GIB - 4096).make == GIB - 4096
    with pytest.raises(NoTarget):
        setup.choose(setup.Survey(), GIB)


def test_file_systems_that_can_hold_a_file() -> None:
    lines = [
        "30 1 8:1 / /home rw,relatime - ext4 /dev/sda1 rw",
        "31 1 8:2 / / rw,relatime shared:1 - xfs /dev/sda2 rw",
        "32 1 0:40 / /tmp rw - tmpfs tmpfs rw",
        "33 1 8:3 / /boot/efi rw - vfat /dev/sda3 rw",
        "34 1 8:4 / /cd ro - ext4 /dev/sda4 ro",
        "35 1 8:1 /sub /bind rw - ext4 /dev/sda1 rw",
        "36 1 0:41 /@data /data rw - btrfs /dev/sda5 rw",
        "37 1 8:6 / /my\\040disk rw - ext4 /dev/sda6 rw",
        "38 1 8:7 / /new\\012line rw - ext4 /dev/sda7 rw",
        "torn",
    ]
    assert setup.supported(parse_mountinfo("\n".join(lines))) == [
        ("/", "xfs"),
        ("/home", "ext4"),
        ("/data", "btrfs"),
        ("/my disk", "ext4"),
    ]


def test_nothing_is_done_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_arguments: object, **_more: object) -> None:
        raise AssertionError("something was done")

    monkeypatch.setattr(setup, "survey", lambda: setup.Survey(None, (candidate("PARTUUID=1"),)))
    for name in ("make", "configure"):
        monkeypatch.setattr(setup, name, never)
    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert kjumpctl.main(["setup", "--size", "1G", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "PARTUUID=1"
    assert kjumpctl.main(["setup", "--size", "1G"]) == 2
    assert "--yes" in capsys.readouterr().err


def test_all_of_it_with_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []

    class Told:
        def reload(self) -> None:
            done.append("reload")

    def enabled(_root: Path) -> list[Path]:
        done.append("enable")
        return []

    def ran(words: list[str], **_more: object) -> subprocess.CompletedProcess[bytes]:
        done.append(Path(words[0]).name)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(setup, "survey", lambda: setup.Survey(None, (), (), (candidate("/k"),)))
    monkeypatch.setattr(setup, "make", lambda path, size: done.append((str(path), size)))
    monkeypatch.setattr(setup, "configure", done.append)
    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(kjumpctl, "Client", Told)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(dropins, "are_enabled", lambda root: False)
    monkeypatch.setattr(dropins, "enable", enabled)
    found = [Finding("a", "failed", "Bad.", "NoTarget")]
    monkeypatch.setattr("kjump.cli.doctor.look", lambda: found)
    assert kjumpctl.main(["setup", "--size", "1G", "--yes", "--json"]) == 30
    assert done == [("/k", GIB), "/k", "update-initrds", "reload", "enable"]
    assert json.loads(capsys.readouterr().out)["result"] == "failed"

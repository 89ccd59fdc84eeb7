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

from kjump.cli import client, dropins, image_file, setup
from kjump.cli import main as kjumpctl
from kjump.errors import (
    BadConfiguration,
    BadRequest,
    Internal,
    NoTarget,
    ServiceUnreachable,
    TargetMapped,
    TargetTooSmall,
    UnsuitableFile,
)
from kjump.session.checks.doctor import Finding
from kjump.session.target import claim, files
from kjump.session.target.devices import TargetDevice
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
    played: dict[str, object] = {"flags": []}

    def blocks_of_open(fd: int, _name: str) -> Blocks:
        found = played.get("found")
        if isinstance(found, Exception):
            raise found
        return Blocks(1, ((4096, os.fstat(fd).st_size),), bool(found))

    def set_flags(fd: int, flags: int) -> None:
        played["flags"].append(flags)  # type: ignore[attr-defined]
        played["on"] = os.fstat(fd).st_ino

    def clear_flags(_fd: int, flags: int) -> None:
        played["flags"].append(-flags)  # type: ignore[attr-defined]

    monkeypatch.setattr(image_file, "OWNERS", {0, os.geteuid()})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(files, "file_system", lambda fd: played.get("kind", files.EXT4))
    monkeypatch.setattr(files, "blocks_of_open", blocks_of_open)
    monkeypatch.setattr(files, "set_flags", set_flags)
    monkeypatch.setattr(files, "clear_flags", clear_flags)
    return played


def test_a_file_is_made_and_protected(tmp_path: Path, ext4: dict[str, object]) -> None:
    path = tmp_path / "image"
    assert image_file.make(path, 20 * MIB) == image_file.Made(path, 20 * MIB)
    status = path.stat()
    assert (status.st_size, status.st_mode & 0o777) == (20 * MIB, 0o600)
    assert status.st_blocks * 512 >= 20 * MIB
    assert ext4["flags"] == [files.IMMUTABLE]


def test_on_btrfs_it_is_not_copied_on_write(tmp_path: Path, ext4: dict[str, object]) -> None:
    ext4["kind"] = files.BTRFS
    image_file.make(tmp_path / "image", 20 * MIB)
    assert ext4["flags"] == [files.NOCOW, files.IMMUTABLE]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": 0x01021994}, UnsuitableFile),  # tmpfs
        ({"found": UnsuitableFile("holes")}, UnsuitableFile),
        ({"found": True}, UnsuitableFile),  # written to
    ],
)
def test_if_it_cannot_be_made_nothing_is_left(
    tmp_path: Path, ext4: dict[str, object], change: dict[str, object], error: type[Exception]
) -> None:
    ext4.update(change)
    with pytest.raises(error):
        image_file.make(tmp_path / "image", 20 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_another_file_of_the_same_name_is_left_alone(
    tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the directory may replace the new file by a link to any other."""
    victim, path = tmp_path / "victim", tmp_path / "image"
    victim.write_text("Dear Bob")
    allocate = os.posix_fallocate

    def replaced(fd: int, start: int, size: int) -> None:
        allocate(fd, start, size)
        path.unlink()
        path.symlink_to(victim)

    monkeypatch.setattr(os, "posix_fallocate", replaced)
    image_file.make(path, 20 * MIB)
    assert ext4["flags"] == [files.IMMUTABLE]
    assert ext4["on"] != victim.stat().st_ino


def test_a_directory_that_others_can_change_is_refused(
    tmp_path: Path, ext4: dict[str, object]
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "below").mkdir(parents=True)
    theirs.chmod(0o770)
    for folder in (theirs, theirs / "below"):
        with pytest.raises(UnsuitableFile, match=f"change {theirs},"):
            image_file.make(folder / "image", 20 * MIB)
        assert not (folder / "image").exists()
    # Nobody can replace what is root's in a directory like /tmp.
    theirs.chmod(0o1777)
    assert image_file.changeable(theirs / "below") is None
    image_file.OWNERS.clear()
    assert image_file.changeable(tmp_path) == Path("/")
    link = tmp_path / "link"
    link.symlink_to(theirs)
    image_file.OWNERS.update({0, os.getuid()})
    assert image_file.changeable(link) == link
    assert ext4["flags"] == []


def test_a_file_that_cannot_be_protected_is_removed(
    tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An immutable file cannot be unlinked: the flag goes first."""
    sync = os.fsync

    def broken(fd: int) -> None:
        if ext4["flags"]:
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UnsuitableFile, match="cannot be protected: Input"):
        image_file.make(tmp_path / "image", 20 * MIB)
    assert ext4["flags"] == [files.IMMUTABLE, -files.IMMUTABLE]
    assert list(tmp_path.iterdir()) == []


def test_a_real_file_is_immutable_and_can_be_removed_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("only root can make such a file")
    path = tmp_path / "image"
    try:
        image_file.make(path, 20 * MIB)
    except (UnsuitableFile, TargetMapped) as error:
        pytest.skip(error.what)
    with pytest.raises(PermissionError):
        path.unlink()
    fd = os.open(path, os.O_RDONLY)
    files.clear_flags(fd, files.IMMUTABLE)
    os.close(fd)
    path.unlink()

    protect = image_file._protect

    def too_late(fd: int, path: Path) -> None:
        protect(fd, path)
        raise UnsuitableFile("After all.")

    monkeypatch.setattr(image_file, "_protect", too_late)
    with pytest.raises(UnsuitableFile, match=r"After all\.$"):
        image_file.make(path, 20 * MIB)
    assert not path.exists()


def test_a_file_that_stays_is_reported_with_the_reason(
    tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def immutable(_name: str, *, dir_fd: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    ext4["kind"] = 0x01021994
    monkeypatch.setattr(os, "unlink", immutable)
    with pytest.raises(UnsuitableFile, match="on neither ext4") as error:
        image_file.make(tmp_path / "image", 20 * MIB)
    assert "could not be removed: Operation not permitted" in error.value.what
    assert "chattr -i" in error.value.sentence


def test_no_room(tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TargetTooSmall):
        image_file.make(tmp_path / "image", 20 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, ext4: dict[str, object]) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear Bob")
    others = ("relative", "/dev/image", "/var/lib/kjump/image", f"{tmp_path}/none/image")
    for bad in (path, *map(Path, others)):
        with pytest.raises(BadRequest):
            image_file.make(bad, 20 * MIB)
    assert path.read_text() == "Dear Bob"
    assert ext4["flags"] == []


def test_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kjump import settings

    real = settings.load
    monkeypatch.setattr(settings, "load", lambda: real(tmp_path))
    drop_in = tmp_path / "etc/kjump/kjump.conf.d/90-target.conf"
    assert setup.configure("/image", drop_in) == drop_in
    assert real(tmp_path).target.path == "/image"
    drop_in.with_name("99-mine.conf").write_text("[Target]\nPath=PARTLABEL=x\n")
    with pytest.raises(BadConfiguration):
        setup.configure("/image", drop_in)


def test_everybody_may_read_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kjumpctl reads it as any user, whatever root's umask was."""
    from kjump import settings

    real = settings.load
    monkeypatch.setattr(settings, "load", lambda: real(tmp_path))
    before = os.umask(0o077)
    try:
        drop_in = setup.configure("/image", tmp_path / "etc/kjump/kjump.conf.d/90-target.conf")
    finally:
        os.umask(before)
    assert drop_in.stat().st_mode & 0o777 == 0o644
    for folder in (drop_in.parent, drop_in.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o755


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


def test_a_file_system_is_not_filled_up_and_all_that_was_passed_over_is_reported() -> None:
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
    monkeypatch.setattr(image_file, "make", never)
    monkeypatch.setattr(setup, "configure", never)
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

    class Kjumpd:
        def reload(self) -> None:
            done.append("reload")

    def make(path: Path, size: int) -> image_file.Made:
        done.append((str(path), size))
        return image_file.Made(path, size)

    def enabled(_root: Path) -> list[Path]:
        done.append("enable")
        return []

    def ran(words: list[str], **_more: object) -> subprocess.CompletedProcess[bytes]:
        done.append(Path(words[0]).name)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(setup, "survey", lambda: setup.Survey(None, (), (), (candidate("/k"),)))
    monkeypatch.setattr(image_file, "make", make)
    monkeypatch.setattr(setup, "configure", done.append)
    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(client, "Client", Kjumpd)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(dropins, "are_enabled", lambda root: False)
    monkeypatch.setattr(dropins, "enable", enabled)
    found = [Finding("a", "failed", "Bad.", "NoTarget")]
    monkeypatch.setattr("kjump.cli.doctor.look", lambda: found)
    assert kjumpctl.main(["setup", "--size", "1G", "--yes", "--json"]) == 30
    assert done == [("/k", GIB), "/k", "update-initrds", "reload", "enable"]
    assert json.loads(capsys.readouterr().out)["result"] == "failed"


def test_a_named_file_is_made_and_configured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []

    class Gone:
        def __init__(self) -> None:
            raise ServiceUnreachable("kjumpd does not answer: gone.")

    def ran(words: list[str], **_more: object) -> subprocess.CompletedProcess[bytes]:
        done.append(words[1:])
        return subprocess.CompletedProcess(words, len(done) - 1)

    def configure(spec: str) -> Path:
        done.append(spec)
        return setup.DROP_IN

    monkeypatch.setattr(image_file, "make", lambda path, size: image_file.Made(Path("/real"), size))
    monkeypatch.setattr(setup, "configure", configure)
    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(client, "Client", Gone)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    words = ["setup", "--file", "/link/file", "--size", "1G"]
    assert kjumpctl.main([*words, "--no-initrd", "--json"]) == 0
    # Its real path is configured, and kjumpd, which does not run, will read it.
    assert done == ["/real"]
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "file": "/real",
        "size": GIB,
        "configuration": str(setup.DROP_IN),
    }
    assert "does not answer" in captured.err
    assert kjumpctl.main([*words, "--dry-run"]) == BadRequest.exit_code
    done.clear()
    assert kjumpctl.main(words) == Internal.exit_code
    assert done == ["/real", ["--boot-only"]]
    assert "Not all initrds" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert kjumpctl.main(words) == BadRequest.exit_code


def test_a_no_does_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(setup, "survey", lambda: setup.Survey(None, (candidate("PARTUUID=1"),)))
    monkeypatch.setattr(setup, "apply", None)
    monkeypatch.setattr("sys.stdin", Typed("maybe\n"))
    assert kjumpctl.main(["setup", "--size", "1G", "--no-initrd"]) == 1
    printed = capsys.readouterr().err
    assert printed.endswith("Nothing was done.\n") and "Build the initrds" not in printed


# -- looking at this machine


def test_what_a_device_is_called() -> None:
    device = TargetDevice(path=Path("/dev/sda2"), size=GIB, links=("/dev/disk/by-uuid/1",))
    assert setup.stable(device) == "/dev/disk/by-uuid/1"
    assert setup.stable(replace(device, links=())) == "/dev/sda2"
    assert setup.stable(replace(device, partuuid="p")) == "PARTUUID=p"
    assert setup.stable(replace(device, file="/swapfile", partuuid="p")) == "/swapfile"


def test_looking_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    found = setup.look_at("/nonexistent/image", "the image")
    assert found.why_not and found.room == 0
    surveyed = setup.survey()
    assert all(candidate.name for candidate in (*surveyed.swaps, *surveyed.file_systems))
    monkeypatch.setattr(setup, "supported", lambda _text: [("/nonexistent", "ext4")])
    (candidate,) = setup.survey().file_systems
    assert candidate.why_not


def test_a_file_system_as_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "refuse_mapped", lambda _device, _name: None)
    monkeypatch.setattr(image_file, "OWNERS", {0, os.getuid()})
    found = setup.file_system(str(tmp_path), "ext4")
    assert found.spec == f"{tmp_path}/kjump.image" and not found.why_not and found.room
    tmp_path.chmod(0o777)
    assert "others than root" in setup.file_system(str(tmp_path), "ext4").why_not
    (tmp_path / "kjump.image").touch()
    assert "exists already" in setup.file_system(str(tmp_path), "ext4").why_not

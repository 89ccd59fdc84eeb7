"""kjumpctl setup --file, as far as it goes without a file system of the right kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kjump.cli import setup
from kjump.errors import BadConfiguration, BadRequest, TargetTooSmall, UnsuitableFile
from kjump.session import areas, files
from kjump.session.files import Blocks

MIB = 1 << 20


def test_sizes() -> None:
    assert setup.parse_size("16G") == 16 << 30
    assert setup.parse_size("800m") == 800 * MIB
    assert setup.parse_size("1073741824") == 1 << 30
    assert setup.parse_size("67112000") == 67112000 // 4096 * 4096
    default = setup.parse_size(None)
    assert areas.enough() <= default < areas.enough() + 4096 and default % 4096 == 0
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


def test_no_room(
    tmp_path: Path, ext4: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of a target means the same device in the session, at boot and in the helper."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import KjumpError
from kjump.image import target
from kjump.machine import cmdline, udev
from kjump.resume import main
from kjump.session.checks import facts
from kjump.session.target import devices
from kjump.settings import Settings, Target, parse

from .test_readiness import DISK


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("PARTLABEL=kjump", ["/dev/disk/by-partlabel/kjump"]),
        ("PARTLABEL=Linux hibernate", [r"/dev/disk/by-partlabel/Linux\x20hibernate"]),
        (r"PARTLABEL=Linux\x20hibernate", [r"/dev/disk/by-partlabel/Linux\x20hibernate"]),
        ("LABEL=a/b", [r"/dev/disk/by-label/a\x2fb"]),
        (r"LABEL=a\b", [r"/dev/disk/by-label/a\x5cb"]),
        ("LABEL=säge=1", ["/dev/disk/by-label/säge=1"]),
        ("LABEL=\udcff", [r"/dev/disk/by-label/\xff"]),
        ("LABEL=\ufffe", [r"/dev/disk/by-label/\xef\xbf\xbe"]),
        ("UUID=12-ab", ["/dev/disk/by-uuid/12-ab", "/dev/disk/by-uuid/12-AB"]),
        ("UUID=12-AB", ["/dev/disk/by-uuid/12-ab", "/dev/disk/by-uuid/12-AB"]),
        ("PARTUUID=AB-01", ["/dev/disk/by-partuuid/ab-01"]),
        ("ID=nvme-X_1", ["/dev/disk/by-id/nvme-X_1"]),
        ("/dev/sda1", ["/dev/sda1"]),
        ("/kjump.image", []),
        ("", []),
        ("COLOUR=red", []),
        ("LABEL=", []),
        ("LABEL=..", []),
    ],
)
def test_the_paths_of_a_spec(spec: str, found: list[str]) -> None:
    assert udev.paths(spec) == [Path(path) for path in found]
    if found:
        assert target.links(spec) == udev.paths(spec)
    else:
        with pytest.raises(KjumpError):
            target.links(spec)


@given(st.text())
def test_no_name_is_lost_in_a_link(name: str) -> None:
    link = udev.encode(name)
    assert "/" not in link and not any(c.isascii() and c.isspace() for c in link)
    assert udev.decode(link) == name


LINKS = (
    r"/dev/disk/by-partlabel/Linux\x20hibernate",
    "/dev/disk/by-partuuid/abcd-01",
    "/dev/disk/by-uuid/ABCD-1234",
)


@pytest.mark.parametrize(
    "spec",
    [
        "PARTLABEL=Linux hibernate",
        r"PARTLABEL=Linux\x20hibernate",
        "PARTUUID=ABCD-01",
        "PARTUUID=abcd-01",
        "UUID=ABCD-1234",
        "UUID=abcd-1234",
        r"/dev/disk/by-partlabel/Linux\x20hibernate",
    ],
)
def test_session_and_boot_find_the_same_device(spec: str) -> None:
    """Whatever the session matches has a link among those that the boot initrd looks for."""
    device = replace(DISK, links=LINKS)
    other = replace(DISK, path=Path("/dev/vdb3"), links=("/dev/disk/by-partlabel/Linux",))
    assert devices.device_named(spec, [other, device]) is device
    for words, configured in (("quiet", spec), (f'"kjump.target={spec}"', "")):
        paths, locator = main.place_to_look(cmdline.parse(words), configured, None)
        assert set(map(str, paths)) & {str(device.path), *LINKS} and locator is None
    # The configuration takes it as it is.
    read = parse(Settings(), "x", f"[Target]\nPath={spec}\n")
    assert read.target.path == spec and not read.warnings


def test_the_boot_takes_the_link_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(udev.FOLDERS, "UUID", str(tmp_path))
    (tmp_path / "abcd").touch()
    (tmp_path / "12AB").touch()
    assert target.link("UUID=ABCD") == tmp_path / "abcd"
    assert target.link("UUID=12ab") == tmp_path / "12AB"
    assert target.link("UUID=99FF") == tmp_path / "99ff"
    assert target.wait_for(target.links("UUID=12ab"), 0) == tmp_path / "12AB"


@pytest.mark.parametrize(
    ("spec", "file"), [("/a", True), ("/dev/a", False), ("LABEL=a", False), ("", False)]
)
def test_what_names_a_file(spec: str, file: bool) -> None:
    assert Target(spec).names_a_file is file


def test_the_links_of_a_real_device_are_as_we_encode_them() -> None:
    """Every link below /dev/disk is the encoded form of the name that it decodes to."""
    for folder in udev.FOLDERS.values():
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                assert udev.encode(udev.decode(name)) == name


def test_readiness_looks_where_the_boot_will_look(tmp_path: Path) -> None:
    device = replace(DISK, path=tmp_path / "vda3")
    device.path.touch()
    assert facts.missed_by_boot(str(device.path), device) == ""
    (tmp_path / "link").symlink_to(device.path)
    spec = str(tmp_path / "link")
    assert facts.found_at([tmp_path / "gone", Path(spec)]) == device.path
    assert facts.found_at([tmp_path / "gone"]) == tmp_path / "gone"
    assert facts.missed_by_boot("PARTLABEL=gone away", device).endswith(r"gone\x20away")
    assert facts.missed_by_boot("/a.file", device) == ""

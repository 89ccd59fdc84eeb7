# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.target.mounts: /proc/self/mountinfo, and names as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kjump.session.target import mounts
from kjump.session.target.mounts import Mount, parse_mountinfo, unescape


def test_a_line_with_and_without_tags() -> None:
    text = (
        "36 35 254:3 /@home /home/a\\040b rw,noatime shared:1 master:2 - btrfs /dev/vda\\0403 rw\n"
        "37 35 0:40 / /tmp rw - tmpfs tmpfs rw,size=1g\n"
        "torn 1 2\n"
        "38 35 8:1 / /torn rw -\n"
    )
    assert parse_mountinfo(text) == [
        Mount("254:3", "/@home", "/home/a b", ("rw", "noatime"), "btrfs", "/dev/vda 3"),
        Mount("0:40", "/", "/tmp", ("rw",), "tmpfs", "tmpfs"),
    ]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("/a", "/a"),
        (r"/a\040b\011c\012d\134e", "/a b\tc\nd\\e"),
        (r"/ä\040", "/ä "),
        (r"/\303\244", "/ä"),
        (r"/a\04", r"/a\04"),
        (r"/a\134040", r"/a\040"),  # once, not twice
        ("/\udcff", "/\udcff"),
    ],
)
def test_octal_escapes(text: str, plain: str) -> None:
    assert unescape(text) == plain


def test_reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert any(mount.point == "/" for mount in mounts.read_mounts())
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "none")
    assert mounts.read_mounts() == []
    assert mounts.device_number("/dev/null") == "1:3"

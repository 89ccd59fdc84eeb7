# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package: lintian finds nothing, and nothing remains after a purge."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kjump import VERSION
from kjump.cli import dropins
from tests.packages.conftest import ROOT

DEBIAN = ROOT / "packaging/debian"


def test_lintian_is_content_with_source_and_package(deb: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    (changes,) = deb.parent.glob("kjump_*.changes")
    done = subprocess.run(
        [
            "lintian",
            "--allow-root",
            "--info",
            "--display-info",
            "--pedantic",
            "--fail-on",
            "error,warning,info,pedantic",
            str(changes),
        ],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    # An override that overrides nothing is for something that was put right.
    assert "unused-override" not in done.stdout


def test_every_override_says_why() -> None:
    for file in DEBIAN.rglob("*lintian-overrides"):
        lines = file.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            assert line.startswith("#") or before.startswith("#"), f"{file.name}: {line}"


def test_one_version_everywhere() -> None:
    changelog = (DEBIAN / "changelog").read_text()
    assert changelog.startswith(f"kjump ({VERSION}) ")
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
    spec = (ROOT / "packaging/rpm/kjump.spec").read_text()
    assert re.search(rf"^Version: +{re.escape(VERSION)}$", spec, re.MULTILINE)
    assert f" - {VERSION}-" in spec.partition("%changelog")[2]


def test_build_dependencies_are_those_that_make_deb_installs() -> None:
    control = (DEBIAN / "control").read_text()
    field = re.search(r"^Build-Depends:((?:.|\n )*)$", control, re.MULTILINE)
    assert field is not None
    needed = {re.split(r"[\s(:]", item.strip())[0] for item in field[1].split(",")}
    # Virtual, or brought by debhelper.
    needed -= {"debhelper-compat", "dh-sequence-python3"}
    listed = (ROOT / "packaging/packages-build.txt").read_text().split()
    assert needed <= set(listed)
    assert set((ROOT / "packaging/packages-test.txt").read_text().split()) >= {"lintian", "rpm"}


def test_purging_takes_away_what_enabling_put_there() -> None:
    script = (DEBIAN / "postrm").read_text()
    patterns = re.findall(r"/etc/systemd/\S*\*kjump\*\.conf", script)
    shipped = ROOT / "units/dropins"
    files = [dropins.destination(path.relative_to(shipped)) for path in shipped.rglob("*.conf")]
    assert files
    for file in files:
        assert any(fnmatch.fnmatch(f"/{file}", pattern) for pattern in patterns), file


def test_conffiles_are_only_what_is_for_the_administrator(deb: Path) -> None:
    shown = subprocess.run(
        ["dpkg-deb", "--ctrl-tarfile", str(deb)], check=True, stdout=subprocess.PIPE
    ).stdout
    text = subprocess.run(
        ["tar", "-xO", "./conffiles"], input=shown, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    assert set(text.split()) == {
        "/etc/kernel/postinst.d/zz-kjump",
        "/etc/kernel/postrm.d/zz-kjump",
        "/etc/kjump/kjump.conf",
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""The RPM: rpmbuild accepts it, and it has the Debian package's content in Fedora's places."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("rpmbuild") is None, reason="rpmbuild is not installed"
)

ONLY_DEBIAN = (
    "/etc/kernel/postinst.d/zz-kjump",
    "/etc/kernel/postrm.d/zz-kjump",
    "/usr/lib/initcpio/hooks/kjump",
    "/usr/lib/initcpio/install/kjump",
    "/usr/share/doc/kjump/changelog",
    "/usr/share/doc/kjump/copyright",
    "/usr/share/initramfs-tools/hooks/kjump",
    "/usr/share/initramfs-tools/scripts/init-premount/kjump",
    "/usr/share/initramfs-tools/scripts/init-top/kjump",
    "/usr/share/initramfs-tools/scripts/local-premount/kjump",
    "/usr/share/lintian/overrides/kjump",
)
ONLY_RPM = ("/usr/share/licenses/kjump/COPYING",)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def common(name: str) -> str:
    """The same name for both packages: no compression, one folder for Python."""
    name = re.sub(r"\.gz$", "", name)
    name = re.sub(r"^/usr/lib(64)?/python3(\.\d+)?/(dist|site)-packages/", "PYTHON/", name)
    name = re.sub(r"^/usr/share/licenses/kjump-[\d.]+/", "/usr/share/licenses/kjump/", name)
    return name.replace("/zsh/site-functions/", "/zsh/vendor-completions/")


def files_of_deb(deb: Path) -> set[str]:
    lines = run("dpkg-deb", "--contents", deb).splitlines()
    return {common(line.split()[5][1:]) for line in lines if not line.startswith("d")}


def files_of_rpm(rpm: Path) -> set[str]:
    lines = run("rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", rpm).splitlines()
    names = {line.split()[1] for line in lines if not line.startswith("d")}
    # By which debuggers find the programs: a link for each.
    names = {name for name in names if not name.startswith("/usr/lib/.build-id/")}
    return {common(name) for name in names if not name.endswith(".pyc")}


def test_both_packages_have_the_same_files(deb: Path, rpm: Path) -> None:
    in_deb, in_rpm = files_of_deb(deb), files_of_rpm(rpm)
    assert in_deb - in_rpm == {common(name) for name in ONLY_DEBIAN}
    assert in_rpm - in_deb == set(ONLY_RPM)


def test_modes_are_those_of_the_debian_package(deb: Path, rpm: Path) -> None:
    lines = run("dpkg-deb", "--contents", deb).splitlines()
    in_deb = {common(line.split()[5][1:]): line.split()[0] for line in lines}
    lines = run("rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", rpm).splitlines()
    for mode, name in (line.split() for line in lines):
        wanted = in_deb.get(common(name), mode)
        assert wanted.startswith("d") or mode == wanted, name


def test_nothing_of_the_build_machine_is_in_it(rpm: Path) -> None:
    named = run("rpm", "-qp", "--qf", "[%{FILEUSERNAME}:%{FILEGROUPNAME}\n]", rpm)
    assert set(named.split()) == {"root:root"}


def test_what_it_needs_is_what_the_debian_package_needs(rpm: Path) -> None:
    """Same programs and modules; each Debian name beside Fedora's."""
    needed = run("rpm", "-qp", "--requires", "--recommends", rpm)
    control = (Path(__file__).parents[2] / "packaging/debian/control").read_text()
    fedora = {
        "default-dbus-system-bus": "dbus-common",
        "dracut-core": "dracut",
        "kmod": "kmod",
        "polkitd": "polkit",
        "python3-gi": "python3-gobject-base",
        "python3-pydbus": "python3-pydbus",
        "python3-pyudev": "python3-pyudev",
        "python3-sdnotify": "python3-sdnotify",
        "python3-structlog": "python3-structlog",
        "python3-systemd": "python3-systemd",
        "systemd": "systemd",
        "udev": "systemd-udev",
        "xz-utils": "xz",
        "zstd": "zstd",
    }
    fields = control.partition("\nPackage: kjump\n")[2].partition("\nDescription:")[0]
    debian = set(re.findall(r"^(?: +|Recommends: )([a-z][a-z0-9-]+)", fields, re.MULTILINE))
    debian -= {"initramfs-tools"}  # Fedora's boot initrds are dracut's
    assert debian == set(fedora)
    for name in debian:
        assert re.search(rf"^{re.escape(fedora[name])}\b", needed, re.MULTILINE), name


def test_scriptlets(rpm: Path) -> None:
    """A new package makes the initrds; one that goes takes its drop-ins and its state along; an
    upgrade does neither."""
    scripts = run("rpm", "-qp", "--scripts", rpm)
    parts = re.split(r"^(\w+) scriptlet.*$", scripts, flags=re.MULTILINE)
    script = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "/usr/libexec/kjump/update-initrds" in script["postinstall"]
    for name, words in (
        ("preuninstall", "kjumpctl disable"),
        ("postuninstall", "rm -rf /var/lib/kjump"),
    ):
        at = script[name].index(words)
        assert "if [ $1 -eq 0 ]" in script[name][:at]
        last = script[name][:at].rindex("if [ $1 ")
        assert "\nfi" not in script[name][last:at], f"{words} also in an upgrade"
    for text in script.values():
        # A macro that was not there.
        assert "%" not in text.replace("%%", ""), text

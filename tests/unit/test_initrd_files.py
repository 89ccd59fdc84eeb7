# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes into the initrds runs there, and nothing else is needed."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kjump.initrd import files, startup_check, update
from kjump.initrd import helper as build
from kjump.machine import displays

ROOT = Path(__file__).resolve().parents[2]
SOURCE_TREE = {**os.environ, "PYTHONPATH": str(ROOT / "daemon"), "PYTHONDONTWRITEBYTECODE": "1"}
ENTRY = {"helper": "kjump.helper.copy, kjump.helper.leave", "resume": "kjump.resume.main"}


def initrd_files(*arguments: str) -> str:
    command = [
        "/usr/bin/python3",
        "-m",
        "kjump.initrd.files",
        *arguments,
        "--daemon",
        str(ROOT / "daemon"),
        "--launchers",
        str(ROOT / "packaging/launchers"),
    ]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=SOURCE_TREE
    ).stdout


def in_root(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with ``root`` as the whole file system."""
    change = ["chroot"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "chroot"]
    done = subprocess.run(
        [*change, str(root), "/usr/bin/python3", "-I", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if done.returncode and "not permitted" in done.stderr:
        pytest.skip("no chroot here")
    return done


@pytest.mark.parametrize("place", sorted(ENTRY))
def test_the_closure_is_closed(place: str, tmp_path: Path) -> None:
    initrd_files(place, "--into", str(tmp_path))
    code = (
        f"import {ENTRY[place]}; import ctypes, traceback; from kjump.image import codec;"
        "print(codec.checksum(b'123456789', 0, 9), kjump.__file__)"
    )
    done = in_root(tmp_path, code)
    assert not done.stderr
    checksum, file = done.stdout.split()
    assert int(checksum) == 0x40E6AE83  # of XXH64: the native part works
    assert file.startswith("/usr/lib/python3/dist-packages/kjump/")


@pytest.mark.parametrize("place", sorted(ENTRY))
def test_lines(place: str) -> None:
    lines = [line.split("\t") for line in initrd_files(place).splitlines()]
    targets = [target for _source, target in lines]
    assert len(targets) == len(set(targets))
    for source, target in lines:
        assert Path(source).is_file()
        # Copied as it stands: /lib64 and the like must not come up as folders of their own.
        assert os.path.realpath(Path(target).parent) == str(Path(target).parent)
    names = {Path(target).name for target in targets}
    assert {"python3", "libkjump.so", "jump.bin", "libgcc_s.so.1"} <= names
    assert ("kjump-resume" in names) == (place == "resume")
    assert ("kjump-copy" in names) == (place == "helper")
    # A system configuration of the session has no business in the helper.
    assert place == "resume" or not any(t.startswith("/etc/") for t in targets)
    # What makes initrds, and what runs in the session only, has no business in either.
    for package in ("initrd", "session", "cli"):
        assert not any(f"/kjump/{package}/" in target for target in targets)
    # OpenSSL is larger than all of Python's library together.
    assert not any("libcrypto" in name for name in names)


def test_an_installed_package_differs_from_a_source_tree() -> None:
    for folder in ("/usr/lib/python3/dist-packages", "/usr/lib64/python3.13/site-packages"):
        assert files.is_installed(Path(folder))
    assert not files.is_installed(files.PACKAGES)
    assert Path("/usr/lib/python3/dist-packages") == files.INSTALLED
    # In a source tree it finds its own.
    launchers = ["--launchers", str(ROOT / "packaging/launchers")]
    command = ["/usr/bin/python3", "-m", "kjump.initrd.files", "resume", *launchers]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=SOURCE_TREE)
    assert found.stdout == initrd_files("resume")


@pytest.mark.parametrize("name", ["build-helper-initrd", "initrd-files", "update-initrds"])
def test_launchers_start_what_they_are_named_for(name: str) -> None:
    launcher = ROOT / "packaging/launchers" / name
    assert os.access(launcher, os.X_OK)
    assert launcher.read_text().startswith("#!/usr/bin/python3 -I\n")
    # With -I it would find an installed package only.
    command = ["/usr/bin/python3", str(launcher), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=SOURCE_TREE)
    assert done.stdout.startswith(f"usage: {name} ")


def test_what_goes_in_stays_small() -> None:
    sources = [Path(line.split("\t")[0]) for line in initrd_files("helper").splitlines()]
    assert sum(source.stat().st_size for source in sources) < 20_000_000


def test_byte_code_goes_in_only_if_it_is_of_this_source(tmp_path: Path) -> None:
    source, code = tmp_path / "a.py", tmp_path / "a.pyc"
    source.write_text("a = 1\n")
    py_compile.compile(str(source), str(code), doraise=True)
    assert files.is_fresh(code, source)
    source.write_text("a = 2  # longer\n")
    assert not files.is_fresh(code, source)
    code.write_bytes(b"\0" * 16)
    assert not files.is_fresh(code, source)
    assert not files.is_fresh(tmp_path / "none.pyc", source)


def test_drivers_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "1.2.3"
    release.mkdir()
    (release / "modules.dep").write_text(
        "kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz\n"
        "kernel/drivers/md/dm-mod.ko:\n"
    )
    monkeypatch.setattr(build, "MODULES", tmp_path)
    assert build.existing({"nvme", "dm_mod", "no_such_driver"}, "1.2.3") == ["dm_mod", "nvme"]


def test_displays_their_drivers_and_what_a_picture_takes(tmp_path: Path) -> None:
    drm = tmp_path / "class/drm"
    for card, driver in (("card0", "bochs"), ("card1", "")):
        device = tmp_path / "devices" / card
        device.mkdir(parents=True)
        if driver:
            (tmp_path / "module" / driver).mkdir(parents=True)
            (device / "driver").mkdir()
            (device / "driver/module").symlink_to(tmp_path / "module" / driver)
        (drm / card).mkdir(parents=True)
        (drm / card / "device").symlink_to(device)
    for name, modes in (("card0-DP-1", "1920x1200\n800x600\n"), ("card0-DP-2", "")):
        (drm / name).mkdir()
        (drm / name / "modes").write_text(modes)
    assert displays.drivers(drm) == {"bochs"}
    assert build.picture(drm) == 1920 * 1200 * 4
    assert displays.drivers(tmp_path) == set()
    assert build.picture(tmp_path) == build.PICTURE


def test_plymouth_is_put_in_if_it_is_wanted_and_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "picture", lambda: 1000)
    installed = {*build.PLYMOUTH}
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)
    assert build.splash(False) == 0
    assert build.splash(True) == build.SPLASH + 3000
    assert f"{build.SPLASH >> 20} MiB" in (ROOT / "docs/kjump.conf.5.md").read_text()
    assert capsys.readouterr().out == ""
    installed.remove("plymouthd")
    assert build.splash(True) == 0
    assert "Plymouth is not installed (plymouthd missing)" in capsys.readouterr().out


def test_libraries_of_what_is_opened_by_name(tmp_path: Path) -> None:
    """dracut looks for them only if a file is executable, which a plugin is not on Debian."""
    plugin = next(found for path in sys.path for found in Path(path).glob("_ctypes.*.so"))
    copy = tmp_path / str(plugin)[1:]
    copy.parent.mkdir(parents=True)
    copy.write_bytes(plugin.read_bytes())
    module = ROOT / "packaging/dracut/95kjump-helper/module-setup.sh"
    code = f'. {module}; inst_multiple() {{ printf "%s\\n" "$@"; }}; install_needed'
    done = subprocess.run(
        ["bash", "-ec", code],
        env=os.environ | {"initdir": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    found = done.stdout.split()
    assert {name.split(".so")[0] for name in map(os.path.basename, found)} >= {"libffi", "libc"}
    assert all(Path(name).is_file() for name in found)


def test_what_systemd_opens_by_name_and_needs() -> None:
    note = '[{"feature":"mount","description":"-","priority":"%s","soname":["libmount.so.1"]}]\0'
    required = b"\x7fELF" + (note % "required").encode() + b"\0\0"
    assert startup_check.required(required) == [["libmount.so.1"]]
    assert startup_check.required((note % "suggested").encode()) == []
    two = b'[{"feature":"x","priority":"required","soname":["libx.so.2","libx.so.1"]}]\0'
    assert startup_check.required(required + two) == [["libmount.so.1"], ["libx.so.2", "libx.so.1"]]
    assert startup_check.required(b'[{"feature": broken\0') == []


def test_an_initrd_in_which_systemd_would_not_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemd"
    program.write_bytes(
        b'[{"feature":"x","priority":"required","soname":["libx.so.2","libx.so.1"]}]\0'
    )
    monkeypatch.setattr(startup_check, "PROGRAMS", (str(program), "/nonexistent"))
    assert startup_check.missing(b"usr/lib/libc.so.6\0") == ["libx.so.2"]
    assert startup_check.missing(b"libx.so.2\0") == ["libx.so.2"]  # a note, not a file's name
    assert startup_check.missing(b"usr/lib/libx.so.1\0") == []


def archive(root: Path) -> bytes:
    """A folder as a cpio archive."""
    out = b""
    entries = [(p.relative_to(root).as_posix(), p) for p in sorted(root.rglob("*"))]
    seen: dict[int, int] = {}
    for name, path in [*entries, ("TRAILER!!!", None)]:
        mode, ino, links, data = 0, 0, 1, b""
        if path is not None:
            about = path.lstat()
            mode, ino, links = about.st_mode, about.st_ino, about.st_nlink
            if path.is_symlink():
                data = os.readlink(path).encode()
            elif path.is_file():
                seen[ino] = seen.get(ino, 0) + 1
                data = path.read_bytes() if seen[ino] == links else b""
        fields = (ino % 2**32, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields)
        out += name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def test_an_archive_is_unpacked_as_it_was_packed(tmp_path: Path) -> None:
    root, found = tmp_path / "root", tmp_path / "found"
    (root / "usr/bin").mkdir(parents=True)
    found.mkdir()
    (root / "usr/bin/a").write_bytes(b"of two names")
    (root / "usr/bin/a").chmod(0o751)
    (root / "usr/bin/b").hardlink_to(root / "usr/bin/a")
    (root / "bin").symlink_to("usr/bin")
    (root / "empty").touch()
    startup_check.unpack(archive(root), found)
    assert (found / "bin/a").read_bytes() == (found / "usr/bin/b").read_bytes() == b"of two names"
    assert (found / "usr/bin/b").stat().st_mode & 0o777 == 0o751
    assert os.readlink(found / "bin") == "usr/bin" and (found / "empty").read_bytes() == b""
    for broken in (b"", archive(root)[:-120], b"x" * 500):
        with pytest.raises(SystemExit):
            startup_check.unpack(broken, tmp_path / "nothing")
        shutil.rmtree(tmp_path / "nothing", ignore_errors=True)


def test_what_does_not_start_in_the_initrd_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("no chroot here")
    monkeypatch.setattr(
        startup_check, "STARTS", startup_check.STARTS[-1:]
    )  # this machine may have no systemd
    whole, without = tmp_path / "whole", tmp_path / "without"
    initrd_files("helper", "--into", str(whole))
    found = tmp_path / "found"
    found.mkdir()
    assert startup_check.unable(archive(whole), found) == []
    whole.rename(without)
    for library in without.rglob("libm.so.6"):
        library.unlink()
    (again := tmp_path / "again").mkdir()
    (line,) = startup_check.unable(archive(without), again)
    assert line.startswith("/usr/bin/python3: ") and "libm.so.6" in line


def pretend_dracut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dracut that makes an initrd of nothing; a file with a line for each time it was asked."""
    (folder / "bin").mkdir()
    dracut, asked = folder / "bin/dracut", folder / "asked"
    dracut.write_text(f'#!/bin/sh\necho >>{asked}\nfor o; do :; done\necho | zstd -q >"$o"\n')
    dracut.chmod(0o755)
    monkeypatch.setenv("PATH", f"{dracut.parent}:{os.environ['PATH']}")
    return asked


def test_the_drivers_of_the_displays_are_recorded_beside_the_initrd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """doctor compares it with what the session has."""
    pretend_dracut(tmp_path, monkeypatch)
    monkeypatch.setattr(startup_check, "unable", lambda *_: [])
    monkeypatch.setattr(startup_check, "missing", lambda _: [])
    monkeypatch.setattr(build, "existing", lambda names, _release: sorted(names))
    monkeypatch.setattr(displays, "drivers", lambda: {"bochs"})
    for screen in (0, 1):
        monkeypatch.setattr(build, "splash", lambda _, screen=screen: screen)
        figures = build.build("6.12.0", tmp_path / "helper.img", plymouth=bool(screen))
        assert figures.displays == (("bochs",) if screen else ())
        assert ("bochs" in figures.drivers) is bool(screen)


@pytest.mark.parametrize(("fails", "made"), [(0, 1), (1, 2), (2, 2)])
def test_dracut_is_asked_once_more_if_its_initrd_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, made: int
) -> None:
    asked = pretend_dracut(tmp_path, monkeypatch)
    answers = iter([["systemd: broken"]] * fails + [[]])
    monkeypatch.setattr(startup_check, "unable", lambda *_: next(answers))
    monkeypatch.setattr(startup_check, "missing", lambda _: [])
    monkeypatch.setattr(build, "existing", lambda *_: [])
    output = tmp_path / "helper.img"
    output.write_text("the one before")
    if fails < build.TRIES:
        build.build("6.12.0", output, plymouth=False)
        assert output.read_bytes() != b"the one before"
    else:
        with pytest.raises(SystemExit, match="does not start"):
            build.build("6.12.0", output, plymouth=False)
        assert output.read_text() == "the one before"
    assert len(asked.read_text().splitlines()) == made


def test_a_kernel_that_is_only_beside_its_modules_is_copied_for_kjumpd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, output = tmp_path / "modules", tmp_path / "helper-6.9.0-x.img"
    copy = tmp_path / "helper-6.9.0-x.vmlinuz"
    monkeypatch.setattr(build, "MODULES", modules)
    (modules / "6.9.0-x").mkdir(parents=True)
    build.keep_kernel("6.9.0-x", output)
    assert not copy.exists()
    (modules / "6.9.0-x/vmlinuz").write_bytes(b"kernel")
    build.keep_kernel("6.9.0-x", output)
    assert copy.read_bytes() == b"kernel"
    (modules / "6.9.0-x/vmlinuz").unlink()
    build.keep_kernel("6.9.0-x", output)
    assert not copy.exists()


def test_mkinitcpio_is_asked_by_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = tmp_path / "recorded"
    program = tmp_path / "mkinitcpio"
    program.write_text(f'#!/bin/sh\necho "$@" >>{recorded}\n')
    program.chmod(0o755)
    monkeypatch.setattr(update, "INITRAMFS_TOOLS", tmp_path / "not here")
    monkeypatch.setattr(update, "MKINITCPIO", program)
    monkeypatch.setattr(update, "MODULES", tmp_path)
    monkeypatch.setattr(update, "PRESETS", tmp_path)
    (tmp_path / "6.9.0").mkdir()
    assert update.update_boot_initrd("6.9.0")
    (tmp_path / "6.9.0/pkgbase").write_text("linux\n")
    assert update.update_boot_initrd("6.9.0")  # has no preset
    (tmp_path / "linux.preset").touch()
    assert update.update_boot_initrd("6.9.0")
    without = "-k 6.9.0 -g /boot/initrd.img-6.9.0"
    assert recorded.read_text().splitlines() == [without, without, "-p linux"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.settings: what is read, what is complained about, what wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump import settings as configuration
from kjump.settings import KEYS, Settings, dump, fingerprint, load, parse


def read(text: str) -> Settings:
    return parse(Settings(), "kjump.conf", text)


def complaints(text: str) -> list[str]:
    return [str(warning) for warning in read(text).warnings]


def test_every_key_is_read() -> None:
    text = """
# comment
; comment
[Target]
Path = PARTLABEL=kjump image
[Helper]
WindowSizeMiB=160
Kernel=/boot/vmlinuz-helper
Initrd=/var/helper.img
CommandLine=quiet panic=5
Console=console=ttyS0,115200 tty0
DeadlineSec=90s
CpuCount=2
[Image]
CompressionLevel=3
[Session]
HookTimeoutSec=5
[Resume]
WaitSec=0
"""
    found = read(text)
    assert found.warnings == ()
    assert found.target.path == "PARTLABEL=kjump image"
    assert found.helper.window_size == 160 << 20
    assert found.helper.kernel == "/boot/vmlinuz-helper"
    assert found.helper.initrd_of("6.12") == Path("/var/helper.img")
    assert found.helper.command_line == "quiet panic=5"
    assert found.helper.console == "ttyS0,115200 tty0"
    assert found.helper.deadline == 90
    assert found.helper.cpu_count == 2
    assert found.image.compression_level == 3
    assert found.session.hook_timeout == 5
    assert found.resume.wait == 0


def test_the_helper_initrd_is_the_running_kernels() -> None:
    assert Settings().helper.initrd_of("6.12.1") == Path("/var/lib/kjump/helper-6.12.1.img")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[Target]\nPth=/dev/vda1\n", "kjump.conf:2: unknown key Pth= in [Target], ignored"),
        ("\n[Tarmac]\nPath=/dev/vda1\n", "kjump.conf:2: unknown section [Tarmac], ignored"),
        ("Path=/dev/vda1\n", "kjump.conf:1: Path= stands before any section, ignored"),
        ("[Target]\n/dev/vda1\n", "kjump.conf:2: missing '=', ignored: '/dev/vda1'"),
        ("[Target]\nPath=vda1\n", "kjump.conf:2: bad value for Path=, ignored: not PARTUUID="),
        ("[Target]\nPath=PARTUUID=\n", "kjump.conf:2: bad value for Path=, ignored: PARTUUID="),
        ("[Target]\nPath=/dev/../etc\n", "kjump.conf:2: bad value for Path=, ignored"),
        ("[Helper]\nWarm=perhaps\n", "kjump.conf:2: bad value for Warm=, ignored: neither yes"),
        ("[Helper]\nCpuCount=5000\n", "kjump.conf:2: bad value for CpuCount=, ignored: 5000 is"),
        ("[Image]\nCompression=xz\n", "kjump.conf:2: bad value for Compression=, ignored: not"),
        ("[Helper]\nDeadlineSec=soon\n", "kjump.conf:2: bad value for DeadlineSec=, ignored"),
        ("[Helper]\nDeadlineSec=²\n", "kjump.conf:2: bad value for DeadlineSec=, ignored"),
        ("[Helper]\nKernel=vmlinuz\n", "kjump.conf:2: bad value for Kernel=, ignored"),
        ("[Helper]\nCommandLine=a \\\nb\nX=1\n", "kjump.conf:4: unknown key X="),
    ],
)
def test_what_cannot_be_used_is_named_with_file_and_line(text: str, complaint: str) -> None:
    (only,) = complaints(text)
    assert only.startswith(complaint)


def test_the_rest_still_works() -> None:
    found = read("[Target]\nBad=1\nPath=/dev/vda1\n[Helper]\nCpuCount=x\nDeadlineSec=7\n")
    assert len(found.warnings) == 2
    assert found.target.path == "/dev/vda1"
    assert found.helper.deadline == 7
    assert found.helper.cpu_count == 0


def test_lines_are_joined_and_values_set_back() -> None:
    assert read("[Helper]\nCommandLine=a \\\n# between\n  b\n").helper.command_line == "a  b"
    assert read("[Helper]\nCpuCount=2\nCpuCount=\n").helper.cpu_count == 0
    for word, warm in (("yes", True), ("On", True), ("1", True), ("no", False), ("false", False)):
        assert read(f"[Helper]\nWarm={word}\n").helper.warm is warm
    assert read("[X-Ours]\nAnything=1\n").warnings == ()


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_drop_ins_win_by_name_and_etc_masks_usr(tmp_path: Path) -> None:
    put(tmp_path, "etc/kjump/kjump.conf", "[Helper]\nCpuCount=1\nDeadlineSec=1\n")
    put(tmp_path, "usr/lib/kjump/kjump.conf.d/50-a.conf", "[Helper]\nCpuCount=5\n")
    put(tmp_path, "usr/lib/kjump/kjump.conf.d/90-b.conf", "[Helper]\nCpuCount=9\n")
    put(tmp_path, "etc/kjump/kjump.conf.d/60-c.conf", "[Helper]\nCpuCount=6\n")
    put(tmp_path, "etc/kjump/kjump.conf.d/ignored.txt", "[Helper]\nCpuCount=7\n")
    assert load(tmp_path).helper.cpu_count == 9
    assert load(tmp_path).helper.deadline == 1
    put(tmp_path, "etc/kjump/kjump.conf.d/90-b.conf", "")
    assert load(tmp_path).helper.cpu_count == 6


def test_a_file_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "etc/kjump/kjump.conf", "[Target]\nPath=/dev/vda1\n")
    (tmp_path / "etc/kjump/kjump.conf.d").mkdir()
    (tmp_path / "etc/kjump/kjump.conf.d/bad.conf").write_bytes(b"[Target]\nPath=/dev/\xff\n")
    found = load(tmp_path)
    assert found.target.path == "/dev/vda1"
    assert "cannot be read" in str(found.warnings[0])
    assert load(tmp_path / "nowhere") == Settings()


def test_the_dump_reads_back() -> None:
    found = read("[Target]\nPath=PARTLABEL=x y\n[Helper]\nWindowSizeMiB=99\nConsole=tty0\n")
    assert read(dump(found)) == found
    assert read(dump(Settings())) == Settings()


def test_the_fingerprint_is_of_what_the_boot_side_reads() -> None:
    one = read("[Target]\nPath=/dev/vda1\n")
    same = read("# x\n[Target]\nPath=/dev/vda1\n[Helper]\nCpuCount=4")
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(read("[Target]\nPath=/dev/vda2\n"))
    assert fingerprint(one) != fingerprint(read("[Target]\nPath=/dev/vda1\n[Resume]\nWaitSec=1\n"))


def test_keys_have_their_own_names_and_defaults() -> None:
    assert len({(key.section, key.name) for key in KEYS}) == len(KEYS)
    for key in KEYS:
        assert hasattr(getattr(Settings(), key.section.lower()), key.attribute)


def test_the_sample_shows_every_key_with_its_default() -> None:
    sample = Path(__file__).parents[2] / "config/kjump.conf"
    text = sample.read_text()
    assert read(text) == Settings() and read(text).warnings == ()
    live = "\n".join(
        line[1:] if line.startswith("#") and "=" in line and line[1] != " " else line
        for line in text.splitlines()
    )
    assert read(live) == Settings()
    assert read(live).warnings == ()
    for key in KEYS:
        assert f"#{key.name}=" in text


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    read(text)


def test_the_module_as_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "etc/kjump/kjump.conf", "[Target]\nPath=/dev/vda1\nBad=1\n")
    monkeypatch.setattr(configuration, "load", lambda: load(tmp_path))
    assert configuration.main(["dump"]) == 0
    assert "Path=/dev/vda1" in capsys.readouterr().out
    assert configuration.main(["fingerprint"]) == 0
    assert capsys.readouterr().out.strip() == fingerprint(load(tmp_path))
    assert configuration.main(["check"]) == 78
    assert configuration.main([]) == 2

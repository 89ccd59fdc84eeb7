# SPDX-License-Identifier: GPL-2.0-or-later
"""What the session passes to the helper, and what it reads from the kernel for that."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kjump.errors import StagingFailed
from kjump.handoff import note, window_layout
from kjump.handoff.documents import FileSystem
from kjump.machine import elf, memory
from kjump.machine.cmdline import parse
from kjump.machine.ranges import MIB
from kjump.session.staging import describe, helper_record, load
from kjump.session.staging import window as windows
from kjump.session.staging.sizing import Sizing, window_parts
from kjump.settings import Settings

from . import samples

TEXT = (0xFFFFFFFF9C000000, 0x2B000000)
RAM = (0xFFFF8E3D00001000, 0x1000)
VMALLOC = (0xFFFFA1C000000000, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("segments", "offset"),
    [
        ([TEXT, VMALLOC, RAM], 0xFFFF8E3D00000000),
        ([VMALLOC, RAM, TEXT], 0xFFFF8E3D00000000),
        ([TEXT, VMALLOC], 0),
        ([(0xFFFF8E3D12345000, 0x1000)], 0),
        ([], 0),
    ],
)
def test_the_direct_map_is_not_taken_for_kernel_text(
    tmp_path: Path, segments: list[tuple[int, int]], offset: int
) -> None:
    headers = b"".join(
        elf.PHDR.pack(elf.PT_LOAD, 7, 0, virtual, physical, 4096, 4096, 0)
        for virtual, physical in segments
    )
    kcore = tmp_path / "kcore"
    kcore.write_bytes(elf.file_header(len(segments)) + headers)
    assert describe.page_offset(kcore) == offset


def test_no_kcore_is_no_error(tmp_path: Path) -> None:
    assert describe.page_offset(tmp_path / "nothing") == 0
    (tmp_path / "junk").write_bytes(b"junk")
    assert describe.page_offset(tmp_path / "junk") == 0


@pytest.mark.parametrize(
    ("cmdline", "config", "policy"),
    [
        ("quiet", "CONFIG_HIBERNATION=y\n", "skip"),
        ("quiet -- init_on_free=1", "CONFIG_HIBERNATION=y\n", "skip"),
        # A /boot that is not mounted: nobody knows.
        ("quiet", "", "zero"),
        ("init_on_free=0", "", "skip"),
        ("init_on_free=0", "CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n", "skip"),
        ("init_on_free=1 init_on_free=off", "CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n", "skip"),
        ("init_on_free=false", "CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n", "zero"),
        ("quiet", "CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n", "zero"),
    ],
)
def test_free_pages_are_zero_if_the_kernel_trusts_them_to_be(
    cmdline: str, config: str, policy: str
) -> None:
    assert describe.free_pages_policy(parse(cmdline), config) == policy


@pytest.mark.parametrize(
    "word",
    [
        "init_on_free=1",
        "init_on_free=on",
        "init_on_free=Y",
        "init-on-free=1",
        'init_on_free="1"',
        '"init_on_free=1"',
        "init_on_free=t",
        "init_on_free=enable",
        "init_on_free=true",
        "init_on_free=0 init_on_free=1",
    ],
)
def test_every_spelling_of_yes_that_some_kernel_reads(word: str) -> None:
    words = parse(f"BOOT_IMAGE=/x root=/dev/sda2 {word} quiet")
    assert describe.free_pages_policy(words, "CONFIG_HIBERNATION=y\n") == "zero"


def test_where_the_kernels_configuration_is(tmp_path: Path) -> None:
    assert describe.kernel_config("6.1", tmp_path) == ""
    for text, name in (
        ("modules", "usr/lib/modules/6.1/config"),
        ("boot", "boot/config-6.1"),
        ("kernel", "proc/config.gz"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        assert describe.kernel_config("6.1", tmp_path) == text
    for torn in (b"", b"no gzip", gzip.compress(b"kernel")[:-9]):
        path.write_bytes(torn)
        assert describe.kernel_config("6.1", tmp_path) == "boot"


def test_words_that_the_next_kernel_needs_as_well() -> None:
    def kept(running: str) -> set[str]:
        return {*window_layout.words(running, cpus=1)}

    assert "console=ttyS0,115200" in kept('"console=ttyS0,115200"')
    assert "noapic" in kept('"noapic"') and "nomodeset" in kept("nomodeset")
    # The decompressor's own words: it knows nothing of what is for init.
    assert "no5lvl" in kept("quiet -- no5lvl")
    assert "console=tty0" not in kept("quiet -- console=tty0")
    # Nothing may hide the words of ours that follow.
    for odd in ('console=tty"0 quiet', 'console="tty0 quiet', 'console="tty0 x"', "console="):
        assert not any(word.startswith("console") for word in kept(odd)), odd
    line = load.command_line(
        replace(
            Settings(), helper=replace(Settings().helper, console='tty0 tt"y', command_line='"x')
        ),
        'quiet console="a b',
        core_header=1,
        cell=0x2000,
    )
    assert parse(line).value("kjump.return") == "0x2000"


def test_the_paging_mode_goes_with_the_command_line() -> None:
    words = load.command_line(
        Settings(), "quiet no5lvl console=ttyS0 root=/dev/x", core_header=0x1000, cell=0x2000
    ).split()
    assert {"no5lvl", "console=ttyS0", "elfcorehdr=0x1000", "kjump.return=0x2000"} <= set(words)
    assert "root=/dev/x" not in words and "quiet" not in words


def test_no_setting_hides_the_way_back() -> None:
    helper = replace(Settings().helper, command_line="elfcorehdr=0x9 a=1 kjump.return=0x9")
    line = load.command_line(
        replace(Settings(), helper=helper), "quiet", core_header=0x1000, cell=0x2000
    )
    assert parse(line).value("kjump.return") == "0x2000" and parse(line).value("a") == "1"
    assert parse(line).value("elfcorehdr") == "0x1000"


def test_the_memory_of_a_splash_screen_is_recorded_beside_the_initrd(tmp_path: Path) -> None:
    initrd, beside = tmp_path / "helper.img", tmp_path / "helper.json"
    assert helper_record.read(initrd).splash == 0
    beside.write_text('{"unpacked": 5}')
    assert helper_record.read(initrd).splash == 0
    beside.write_text('{"splash": 12345}')
    assert helper_record.read(initrd).splash == 12345


@pytest.mark.parametrize(("init_size", "packed", "unpacked"), [(29, 11, 33), (56, 12, 36)])
def test_the_window_holds_all_its_parts_in_160_mib(
    init_size: int, packed: int, unpacked: int
) -> None:
    """With the test kernel, and with a distribution's; two processors, 1 GiB."""
    mib = 1 << 20
    parts = window_parts(init_size * mib, packed * mib, unpacked * mib, 2, 1 << 30)
    assert sum(parts.values()) <= 160 * mib
    assert parts["unpacked"] == unpacked * mib
    # Packed and unpacked are there at once.
    assert sum(parts.values()) >= (init_size + packed + unpacked + 16) * mib
    shown = window_parts(init_size * mib, packed * mib, unpacked * mib, 2, 1 << 30, 24 * mib)
    assert sum(shown.values()) - sum(parts.values()) == 24 * mib
    large = window_parts(init_size * mib, packed * mib, unpacked * mib, 2, 64 << 30)
    assert large["pages"] - parts["pages"] == 63 * mib
    heavy = window_parts(init_size * mib, 90 * mib, unpacked * mib, 2, 1 << 30)
    assert heavy["running"] > 90 * mib


class Sampled(Exception):
    """The arguments with which a window was to be chosen."""


def test_the_window_is_chosen_by_where_memory_is_taken_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def choose(*_: object, likely: list[int], **__: object) -> None:
        raise Sampled(likely)

    def refuse(size: int) -> list[int]:
        raise OSError(12, "Cannot allocate memory")

    sizing = Sizing(Path(), Path(), 2 * MIB, 18 * MIB)
    monkeypatch.setattr(load, "vmcoreinfo_note", lambda: (4096, 1024))
    monkeypatch.setattr(memory, "iomem", list)  # without privileges it shows no addresses
    monkeypatch.setattr(windows, "choose", choose)
    monkeypatch.setattr(windows, "sample_allocations", lambda size: [size])
    with pytest.raises(Sampled, match=str(2 * MIB)):
        load.choose_window(sizing, [])
    # Without that it only takes longer, but somebody should know why.
    monkeypatch.setattr(windows, "sample_allocations", refuse)
    with capture_logs() as lines, pytest.raises(Sampled, match=r"\[\]"):
        load.choose_window(sizing, [])
    assert "Cannot allocate memory" in lines[0]["event"]


def test_a_handoff_that_is_too_long_is_not_staged() -> None:
    links = tuple(f"/dev/disk/by-id/{n:0200}" for n in range(1000))
    order = samples.order(file_systems=(FileSystem("ext4", links),))
    with pytest.raises(StagingFailed, match="handoff note has no room"):
        load.packed_note(order)
    assert load.packed_note(samples.ORDER) == note.pack(samples.ORDER.to_json())

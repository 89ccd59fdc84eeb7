# SPDX-License-Identifier: GPL-2.0-or-later
"""An image as an ELF core: what a debugger would read."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.cli.main import main as kjumpctl
from kjump.errors import ExportFailed, ImageDamaged, ImageIncomplete, NoImage, TargetMissing
from kjump.image import export, prepare, superblocks
from kjump.image.description import Description
from kjump.image.device import DirectDevice
from kjump.image.layout import SPENT, ZERO, Extent
from kjump.image.read import Image
from kjump.image.write import Writer
from kjump.machine import elf
from kjump.machine.elf import iterate_notes
from kjump.machine.ranges import PAGE

from . import imaging, samples

OFFSET = 0xFFFF888000000000
VMCOREINFO = "OSRELEASE=6.12.0\nPAGESIZE=4096\n"
DESCRIPTION = samples.description(
    ram=((0x1000, 0x9F000), (0x100000, 0x400000)),
    low=((0x1000, 0x9F000),),
    window=(0x200000, 0x300000),
    page_offset=OFFSET,
    vmcoreinfo=VMCOREINFO,
    jump_back=0,
)
RNG = random.Random(9)
DATA = {0x110: RNG.randbytes(3 * PAGE), 0x300: b"known string".ljust(PAGE, b".")}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    write(path, DESCRIPTION)
    return path


def write(path: Path, description: Description) -> None:
    with DirectDevice(path, writable=True) as device:
        zeros = [Extent(0x120, 4, ZERO)]
        imaging.fill(device, DATA.items(), zeros, description=description)


def test_the_core_holds_every_page_at_its_address(disk: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    assert kjumpctl(["image", "export", str(core), str(disk)]) == 0
    whole = core.read_bytes()
    note, *loads = elf.parse(whole)
    assert [(s.physical, s.size) for s in loads] == [(0x1000, 0x9E000), (0x100000, 0x300000)]
    assert all(s.virtual == OFFSET + s.physical and s.offset % PAGE == 0 for s in loads)
    # Else crash takes it for another kind of dump, and the kernel for one without KASLR.
    fields = [elf.PHDR.unpack_from(whole, 64 + 56 * n) for n in range(1, 1 + len(loads))]
    assert [entry[-1] for entry in fields] == [0] * len(loads)
    ((owner, _kind, text),) = iterate_notes(whole[note.offset : note.offset + note.size])
    assert (owner, text.decode()) == (b"VMCOREINFO", VMCOREINFO)
    memory = {
        s.physical // PAGE + i: whole[s.offset + i * PAGE : s.offset + (i + 1) * PAGE]
        for s in loads
        for i in range(s.size // PAGE)
    }
    wanted = {
        pfn + i: data[i * PAGE : (i + 1) * PAGE]
        for pfn, data in DATA.items()
        for i in range(len(data) // PAGE)
    }
    assert all(page == wanted.get(pfn, bytes(PAGE)) for pfn, page in memory.items())
    assert set(wanted) <= set(memory)
    assert stat.S_IMODE(core.stat().st_mode) == 0o600  # everybody's memory
    assert core.stat().st_blocks * 512 < len(whole) // 2  # what was not saved is a hole
    if shutil.which("readelf"):
        read = subprocess.run(["readelf", "-hl", core], capture_output=True, text=True, check=True)
        assert "CORE (Core file)" in read.stdout and not read.stderr


def pages_of(core: Path) -> dict[int, bytes]:
    whole = core.read_bytes()
    return {
        s.physical // PAGE + i: whole[s.offset + i * PAGE : s.offset + (i + 1) * PAGE]
        for s in elf.parse(whole)
        if s.kind == elf.PT_LOAD
        for i in range(s.size // PAGE)
    }


def test_what_the_session_had_in_the_window_is_put_back(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, window = range(0x1, 0x9F), range(0x200, 0x300)
    targets = [*low, *window]
    sources = list(range(0x320, 0x320 + len(targets)))
    control, first, second = 0x110, 0x111, 0x112
    one = [low[0] << 12 | 1, *(pfn << 12 | 8 for pfn in sources[: len(low)])]
    two = [window[0] << 12 | 1, *(pfn << 12 | 8 for pfn in sources[len(low) :]), 4]
    kept = {pfn: RNG.randbytes(PAGE) for pfn in sources}
    memory = {
        control: bytes(0x830) + (first << 12 | 2).to_bytes(8, "little"),
        first: b"".join(word.to_bytes(8, "little") for word in [*one, second << 12 | 2]),
        second: b"".join(word.to_bytes(8, "little") for word in two),
        **kept,
    }
    facts = replace(DESCRIPTION.facts, ram=((0x1000, 0x9F000), (0x100000, 0x600000)))
    described = replace(DESCRIPTION, facts=facts, jump_back=(control << 12) + 0x1A4)
    prepare.prepare_target(disk, cycle_id=uuid.UUID(int=2), hostname="h")
    with DirectDevice(disk, writable=True) as device:
        pages = [(pfn, data.ljust(PAGE, b"\0")) for pfn, data in memory.items()]
        imaging.fill(device, pages, description=described)
    core = tmp_path / "core"
    assert kjumpctl(["image", "export", "--json", str(core), str(disk)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"core": str(core), "size": core.stat().st_size, "window": True}
    found = pages_of(core)
    assert all(found[pfn] == kept[source] for pfn, source in zip(targets, sources, strict=True))
    assert all(found[pfn] == data for pfn, data in kept.items())


def test_a_file_that_is_there_is_not_overwritten(disk: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(b"mine")
    assert kjumpctl(["image", "export", str(core), str(disk)]) == 2
    assert core.read_bytes() == b"mine"


def flip(disk: Path, past: int) -> None:
    """Flip a bit so many bytes into the first chunk."""
    with DirectDevice(disk) as device:
        at = Image(device).superblock.chunks_offset + past
    with disk.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_of_a_damaged_image_no_file_is_left(disk: Path, tmp_path: Path) -> None:
    flip(disk, PAGE + 200)
    core = tmp_path / "core"
    assert kjumpctl(["image", "export", str(core), str(disk)]) == ImageDamaged.exit_code
    assert not core.exists()


def test_no_room_for_the_core(
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_page = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > 0x10000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_page(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    core = tmp_path / "core"
    assert kjumpctl(["image", "export", "--json", str(core), str(disk)]) == ExportFailed.exit_code
    said = json.loads(capsys.readouterr().err)
    assert said["error"] == "ExportFailed" and "No space left" in said["sentence"]
    assert not core.exists()


def test_a_core_that_cannot_be_made(disk: Path, tmp_path: Path) -> None:
    core = tmp_path / "missing" / "core"
    assert kjumpctl(["image", "export", str(core), str(disk)]) == ExportFailed.exit_code


def test_interrupted(disk: Path, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    core = tmp_path / "core"
    with DirectDevice(disk) as device, pytest.raises(KeyboardInterrupt):
        export.export(Image(device), core, stop)
    assert not core.exists()


@pytest.mark.parametrize("words", [["verify"], ["export", "core"]])
def test_a_target_without_a_whole_image(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    words = [word.replace("core", str(tmp_path / "core")) for word in words]
    assert kjumpctl(["image", *words, str(path)]) == NoImage.exit_code
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    assert kjumpctl(["image", *words, str(path)]) == NoImage.exit_code
    with DirectDevice(path, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        Writer(device, found).begin(DESCRIPTION)
    assert kjumpctl(["image", *words, str(path)]) == ImageIncomplete.exit_code
    assert kjumpctl(["image", *words, str(tmp_path / "no")]) == TargetMissing.exit_code
    assert not (tmp_path / "core").exists()


def test_a_spent_image_is_still_read(disk: Path, tmp_path: Path) -> None:
    with DirectDevice(disk, writable=True) as device:
        found = superblocks.load(device)
        assert found is not None
        superblocks.store(device, found, state=SPENT)
    assert kjumpctl(["image", "verify", str(disk)]) == 0
    assert kjumpctl(["image", "export", str(tmp_path / "core"), str(disk)]) == 0


def test_progress_goes_to_the_end(disk: Path, tmp_path: Path) -> None:
    progress: list[int] = []
    with DirectDevice(disk) as device:
        export.export(Image(device), tmp_path / "core", progress.append)
    assert progress == sorted(progress) and progress[-1] == 4 * PAGE


def test_verify(disk: Path) -> None:
    assert kjumpctl(["image", "verify", str(disk)]) == 0
    with DirectDevice(disk) as device:
        image = Image(device)
        assert export.verify(image) == 4 * PAGE
    flip(disk, PAGE + 200)
    assert kjumpctl(["image", "verify", str(disk)]) == ImageDamaged.exit_code


def test_pages_outside_ram_are_refused(disk: Path, tmp_path: Path) -> None:
    prepare.prepare_target(disk, cycle_id=uuid.UUID(int=2), hostname="h")
    facts = replace(DESCRIPTION.facts, ram=((0x100000, 0x112000),))
    write(disk, replace(DESCRIPTION, facts=facts))
    with DirectDevice(disk) as device, pytest.raises(ImageDamaged):
        export.export(Image(device), tmp_path / "core")

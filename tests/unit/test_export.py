"""An image as an ELF core: what a debugger would read."""

from __future__ import annotations

import random
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from kjump.cli.main import main as kjumpctl
from kjump.errors import ImageDamaged
from kjump.handoff.note import iterate_notes
from kjump.image import export, target
from kjump.image.device import Device
from kjump.image.layout import ZERO, Extent
from kjump.image.read import Image
from kjump.machine import coreheader
from kjump.machine.ranges import PAGE

from . import imaging

OFFSET = 0xFFFF888000000000
VMCOREINFO = "OSRELEASE=6.12.0\nPAGESIZE=4096\n"
DESCRIPTION: dict[str, Any] = {
    "ram": [[0x1000, 0x9F000], [0x100000, 0x400000]],
    "low": [[0x1000, 0x9F000]],
    "window": [0x200000, 0x300000],
    "page_offset": OFFSET,
    "vmcoreinfo": VMCOREINFO,
}
RNG = random.Random(9)
DATA = {0x110: RNG.randbytes(3 * PAGE), 0x300: b"known string".ljust(PAGE, b".")}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    target.prepare(path, cycle_id=uuid.UUID(int=1), hostname="h")
    write(path, DESCRIPTION)
    return path


def write(path: Path, description: dict[str, Any]) -> None:
    with Device(path, writable=True) as device:
        zeros = [Extent(0x120, 4, ZERO)]
        imaging.fill(device, DATA.items(), zeros, description=description)


def test_the_core_holds_every_page_at_its_address(disk: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    assert kjumpctl(["image", "export", str(core), str(disk)]) == 0
    whole = core.read_bytes()
    note, *loads = coreheader.parse(whole)
    assert [(s.physical, s.size) for s in loads] == [(0x100000, 0x100000), (0x300000, 0x100000)]
    assert all(s.virtual == OFFSET + s.physical and s.offset % PAGE == 0 for s in loads)
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
    assert core.stat().st_blocks * 512 < len(whole) // 2  # what was not saved is a hole
    if shutil.which("readelf"):
        read = subprocess.run(["readelf", "-hl", core], capture_output=True, text=True, check=True)
        assert "CORE (Core file)" in read.stdout and not read.stderr


def test_a_file_that_is_there_is_not_overwritten(disk: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(b"mine")
    assert kjumpctl(["image", "export", str(core), str(disk)]) == 2
    assert core.read_bytes() == b"mine"


def test_verify(disk: Path) -> None:
    assert kjumpctl(["image", "verify", str(disk)]) == 0
    with Device(disk) as device:
        image = Image(device)
        assert export.verify(image) == 4 * PAGE
        at = image.superblock.chunks_offset + 200
    with disk.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert kjumpctl(["image", "verify", str(disk)]) == ImageDamaged.exit_code


def test_pages_outside_ram_are_refused(disk: Path, tmp_path: Path) -> None:
    target.prepare(disk, cycle_id=uuid.UUID(int=2), hostname="h")
    write(disk, {**DESCRIPTION, "ram": [[0x100000, 0x112000]]})
    with Device(disk) as device, pytest.raises(ImageDamaged):
        export.export(Image(device), tmp_path / "core")

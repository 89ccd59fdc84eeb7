# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables, maps and code for the machine, against what the machine defines."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import re
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import DamagedHandoff, NoHelperKernel, NotPrivileged
from kjump.image.layout import EXTENT
from kjump.machine import bzimage, code, elf, memory, native, paging
from kjump.machine.memory import E820_RAM, E820_RESERVED, HEADROOM, Entry
from kjump.machine.native import address_of
from kjump.machine.ranges import PAGE, intersect, merge, overlaps, subtract, whole_pages

MIB = 1 << 20
GIB = 1 << 30
RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=8)


def points(ranges: list[tuple[int, int]]) -> set[int]:
    return {x for start, end in ranges for x in range(start, end)}


@given(RANGES, RANGES)
def test_ranges_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert points(merge(a)) == points(a)
    assert points(subtract(a, b)) == points(a) - points(b)
    assert points(intersect(a, b)) == points(a) & points(b)
    assert all(overlaps(r, b) == bool(points([r]) & points(b)) for r in merge(a) if merge(b) == b)


def test_whole_pages_are_inside() -> None:
    assert whole_pages([(0x1000, 0x9FC00), (0x100001, 0x102FFF)]) == [
        (0x1000, 0x9F000),
        (0x101000, 0x102000),
    ]


# -- page tables ----------------------------------------


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("large", [False, True])
@given(st.lists(st.integers(0, (1 << 40) - 1), min_size=1, max_size=5))
def test_identity_maps_what_it_should_and_nothing_far(
    levels: int, large: bool, addresses: list[int]
) -> None:
    base = 0x31A02000
    tables = paging.identity(
        base, [(a, a + 1) for a in addresses], levels=levels, gigabyte_pages=large
    )
    assert len(tables) % PAGE == 0
    for address in addresses:
        assert paging.translate(tables, base, address, levels=levels) == address
    far = max(addresses) + 2 * GIB
    assert paging.translate(tables, base, far, levels=levels) is None


def test_identity_entries_are_supervisor_and_executable() -> None:
    tables = paging.identity(0x1000000, [(0, GIB)], levels=4)
    for (entry,) in struct.iter_unpack("<Q", tables):
        assert not entry & 4 and not entry >> 63  # no US bit (SMEP), no NX


def test_identity_refuses_what_the_levels_do_not_reach() -> None:
    with pytest.raises(ValueError):
        paging.identity(0, [(1 << 47, (1 << 47) + 1)], levels=4)
    assert paging.identity(0, [(1 << 47, (1 << 47) + 1)], levels=5)
    with pytest.raises(ValueError):
        paging.identity(0, [], levels=3)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("zeros", [b"", EXTENT.pack(0x300000, 2, 1) * 300000])
def test_jump_pages_map_code_stack_target_and_what_is_cleared(
    levels: int, large: bool, zeros: bytes
) -> None:
    at, target = 0x7FA00000, 0x13FFFE000
    ram = [(0x100000, 0x40000000), (0x300000000, 0x301000000)]
    jump = code.jump_pages(
        at, target, levels=levels, gigabyte_pages=large, zeros=zeros, memory=ram if zeros else ()
    )
    root, stack, found, cleared = struct.unpack_from("<4Q", jump.data, code.JUMP_PARAMETERS)
    assert root == jump.tables and found == target and bool(cleared) == bool(zeros)
    wanted = [at, stack, stack + 7, root - 1, target, target + PAGE - 1]
    if zeros:
        wanted += [cleared, cleared + len(zeros) + code.END_OF_ZEROS - 1, 0x300000000, 0x300001FFF]
        listed = jump.data[cleared - at :]
        assert listed.startswith(zeros + bytes(code.END_OF_ZEROS))
    for address in wanted:
        assert paging.translate(jump.data[root - at :], root, address, levels=levels) == address


# -- assembled code ----------------------------------------


def disassembly(name: str) -> str:
    if not shutil.which("objdump"):
        pytest.skip("binutils is not installed")
    return subprocess.run(
        ["objdump", "-d", native.BUILT / f"{name}.elf"], capture_output=True, text=True, check=True
    ).stdout


def symbols(name: str) -> dict[str, int]:
    out = subprocess.run(
        ["nm", native.BUILT / f"{name}.elf"], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in out.splitlines()}


def test_entry_parameters_are_where_the_loader_writes_them() -> None:
    found = symbols("entry")
    at = code.ENTRY_PARAMETERS
    assert found["start"] == 0
    names = ("note_slot", "cell_slot", "boot_params", "kernel_entry")
    assert [found[n] for n in names] == [at, at + 8, at + 16, at + 24]
    stub = code.entry_stub(note_slot=1, cell_slot=2, boot_params=3, kernel_entry=4)
    assert struct.unpack_from("<4Q", stub, at) == (1, 2, 3, 4)


def test_jump_parameters_are_where_the_loader_writes_them() -> None:
    found, at = symbols("jump"), code.JUMP_PARAMETERS
    assert [found[n] for n in ("start", "tables", "stack", "target", "zeros")] == [
        0,
        at,
        at + 8,
        at + 16,
        at + 24,
    ]
    assert found["kept"] == code.JUMP_KEPT


def test_entry_stub_keeps_the_address_twice_then_enters_by_lret() -> None:
    text = disassembly("entry")
    order = [
        r"mov\s+\(%rsp\),%rax",
        r"mov\s+%rax,\(%rbx\)",
        r"mov\s+%rax,\(%rbx\)",
        r"lgdt",
        r"lretq?",
    ]
    at = 0
    for pattern in order:
        match = re.compile(pattern).search(text, at)
        assert match, pattern
        at = match.end()
    assert symbols("entry")["gdt"] % 8 == 0


def test_jump_sets_cr4_before_cr3_and_starts_with_endbr64() -> None:
    text = disassembly("jump")
    first = next(line for line in text.splitlines() if line.strip().startswith("0:"))
    assert "endbr64" in first
    assert text.index("%cr4\n") < text.index(",%cr3") < text.index("jmp")


def test_a_kept_helper_hands_its_own_address_on_before_it_leaves_its_tables() -> None:
    """The session finds at 0(%rsp) where to enter the helper again."""
    text = disassembly("jump").partition("<kept>:")[2]
    order = [
        r"endbr64",
        r"mov\s+\(%rsp\),%rax",
        r"mov\s+0x[0-9a-f]+\(%rip\),%rcx\s+# 88 <stack>",
        r"mov\s+%rax,\(%rcx\)",
        r"jmp\s+0 <start>",
    ]
    at = 0
    for pattern in order:
        match = re.compile(pattern).search(text, at)
        assert match, pattern
        at = match.end()
    before = disassembly("jump").partition("<kept>:")[0]
    assert "(%rsp)" not in before, "the boot kernel's stack is not mapped"


def test_what_clears_pages_clears_those_and_no_others() -> None:
    """The machine code itself, run here: its addresses are this program's for once."""
    memory_here = mmap.mmap(-1, 16 * PAGE)
    memory_here[:] = b"x" * len(memory_here)
    first = address_of(memory_here) // PAGE
    runs = [(1, 1), (3, 4), (14, 2)]
    room = mmap.mmap(-1, 2 * PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    run_at, ret = address_of(room), 0x400
    blob = bytearray(code.blob("jump"))
    struct.pack_into("<Q", blob, code.JUMP_PARAMETERS + 16, run_at + ret)
    room[: len(blob)] = bytes(blob)
    room[ret] = 0xC3
    table = b"".join(EXTENT.pack(first + pfn, pages, 1) for pfn, pages in runs)
    room[PAGE : PAGE + len(table)] = table  # the extent without pages is there already
    clear = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(
        run_at + symbols("jump")["clear"]
    )
    clear(0, run_at + PAGE)
    blank = {n for pfn, pages in runs for n in range(pfn, pfn + pages)}
    for n in range(16):
        wanted = (b"\0" if n in blank else b"x") * PAGE
        assert memory_here[n * PAGE : n * PAGE + PAGE] == wanted


# -- boot protocol ----------------------------------------


def fake_bzimage(version: int = 0x20F, xloadflags: int = 1) -> bytes:
    image = bytearray(PAGE)
    image[0x1F1] = 39
    image[0x201] = 0x6A
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x236, xloadflags)
    struct.pack_into("<I", image, 0x238, 2047)
    struct.pack_into("<I", image, 0x260, 30060544)
    return bytes(image)


def test_bzimage_header() -> None:
    kernel = bzimage.parse(fake_bzimage())
    assert (kernel.body_offset, kernel.init_size, kernel.cmdline_size) == (20480, 30060544, 2047)


@pytest.mark.parametrize(
    "image", [b"", b"\x7fELF" * 2000, fake_bzimage(version=0x20B), fake_bzimage(xloadflags=0)]
)
def test_what_is_no_64_bit_bzimage_is_refused(image: bytes) -> None:
    with pytest.raises(NoHelperKernel):
        bzimage.parse(image)


def test_boot_params_fields() -> None:
    page = bzimage.boot_params(
        bzimage.parse(fake_bzimage()),
        command_line=0x1_2345_6000,
        initrd=0x2_0000_1000,
        initrd_size=5 << 20,
        memory_map=[Entry(0, 0x9F000, E820_RAM), Entry(GIB, 2 * GIB, E820_RESERVED)],
        running=bytes(range(256)) * 16,
        acpi_rsdp=0xF5A10,
    )
    assert len(page) == PAGE
    assert page[:0x40] == bytes(range(0x40))
    assert struct.unpack_from("<II", page, 0x218) == (0x1000, 5 << 20)
    assert struct.unpack_from("<III", page, 0xC0) == (2, 0, 1)
    assert struct.unpack_from("<I", page, 0x228) == (0x23456000,)
    assert page[0x1E8] == 2 and page[0x210] == 0xFF
    assert struct.unpack_from("<QQI", page, 0x2D0 + 20) == (GIB, GIB, E820_RESERVED)
    assert struct.unpack_from("<Q", page, 0x70) == (0xF5A10,)


# -- memory maps ----------------------------------------

# A real one: QEMU q35, 5 GiB.
FIRMWARE = [
    Entry(0, 0x9FC00, 1),
    Entry(0x9FC00, 0xA0000, 2),
    Entry(0xF0000, 0x100000, 2),
    Entry(0x100000, 0x7FFDF000, 1),
    Entry(0x7FFDF000, 0x80000000, 2),
    Entry(0xB0000000, 0xC0000000, 2),
    Entry(0xFED1C000, 0xFED20000, 2),
    Entry(0xFFFC0000, 0x1_0000_0000, 2),
    Entry(0x1_0000_0000, 0x1_C000_0000, 1),
]


def test_helper_map_has_only_window_and_low_memory_as_ram() -> None:
    window, low = (0x6EC00000, 0x6EC00000 + 192 * MIB), (0x1000, 0x9F000)
    found = memory.helper_map(FIRMWARE, window, [low])
    ram = [(e.start, e.end) for e in found if e.kind == E820_RAM]
    assert ram == [low, (window[0] + HEADROOM, window[1])]
    everything = merge((e.start, e.end) for e in found)
    hole = (MIB, MIB + PAGE)  # or the session's memory would be joined with what lies below it
    assert everything == subtract([(e.start, e.end) for e in FIRMWARE], [hole])
    reserved = merge((e.start, e.end) for e in found if e.kind == E820_RESERVED)
    assert not [pair for pair in reserved if pair[0] < MIB < pair[1]]
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


def test_map_checksum_of_a_real_kernel() -> None:
    # crc32 over u32 count and packed entries, as compute_e820_crc32 does it.
    data = struct.pack("<I", 2) + struct.pack("<QQI", 0, 0x9FC00, 1)
    data += struct.pack("<QQI", 0x100000, 0x700000, 1)
    import zlib

    assert memory.map_checksum([Entry(0, 0x9FC00, 1), Entry(0x100000, 0x800000, 1)]) == zlib.crc32(
        data
    )


IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000f0000-000fffff : System ROM
00100000-3ffdefff : System RAM
  2b800000-2c9fffff : Kernel code
  2ca00000-2d3a1fff : Kernel rodata
  2d400000-2d6fffff : Kernel data
100000000-1bfffffff : System RAM
"""


def test_iomem() -> None:
    found = memory.parse_iomem(IOMEM)
    assert memory.system_ram(found) == [
        (0x1000, 0x9FC00),
        (0x100000, 0x3FFDF000),
        (0x100000000, 0x1C0000000),
    ]
    assert [r.depth for r in found if r.name == "Kernel code"] == [1]


def test_iomem_without_privilege_is_an_error_not_an_empty_machine() -> None:
    with pytest.raises(NotPrivileged):
        memory.parse_iomem(re.sub(r"[0-9a-f]+-[0-9a-f]+", "00000000-00000000", IOMEM))


# -- core header ----------------------------------------


def test_core_header_round_trip() -> None:
    made = elf.build([(0x1000, 0x1024), (0x5000, 300)], [(0x100000, 0x200000)])
    found = elf.parse(made)
    assert [(s.kind, s.offset, s.physical, s.size) for s in found] == [
        (elf.PT_NOTE, 0x1000, 0x1000, 0x1024),
        (elf.PT_NOTE, 0x5000, 0x5000, 300),
        (elf.PT_LOAD, 0x100000, 0x100000, 0x100000),
    ]


@given(st.binary(max_size=300))
def test_core_header_of_any_bytes(data: bytes) -> None:
    for candidate in (data, elf.IDENT + data):
        try:
            elf.parse(candidate)
        except DamagedHandoff:
            continue

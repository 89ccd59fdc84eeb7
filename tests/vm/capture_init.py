# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs as /init of a guest that capture.py starts: makes pages of many kinds, then sends what the
kernel says of them and its struct pages, and switches off.

It uses nothing of kjump: /proc/kcore is read, and the page tables are walked, by code of its own,
so that what is captured does not depend on what it will test.

usage: /init (the kernel starts it); the answer, a tar file in gzip, goes to /dev/ttyS1
"""

from __future__ import annotations

import ctypes
import glob
import gzip
import io
import json
import mmap
import os
import signal
import struct
import sys
import tarfile
import termios
import time
import traceback
import tty
from collections.abc import Callable

PAGE = 4096
MIB = 1 << 20
BLOCK = 1024
"""Pages of the largest free block on x86_64: no block crosses a multiple of it."""
BLOCKS = 9
"""How many blocks to capture."""
START_KERNEL_MAP = 0xFFFFFFFF80000000
ADDRESS = 0x000FFFFFFFFFF000

# include/uapi/linux/kernel-page-flags.h and, from 32 on, kernel-page-flags.h in include/linux.
BUDDY, HUGE, HWPOISON, THP, OFFLINE, PAGE_TABLE, RESERVED = 10, 17, 19, 22, 23, 26, 32
RARE = (HUGE, HWPOISON, THP, OFFLINE, PAGE_TABLE, RESERVED)
TELLING = (3, 5, 7, 10, 11, 12, 14, 15, 16, 17, 19, 20, 22, 23, 24, 26, 32)
"""dirty, lru, slab, buddy, mmap, anon, swap-backed, compound head and tail, huge, hwpoison, nopage,
thp, offline, zero page, page table, reserved: what makes a page interesting."""

MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_HWPOISON, MADV_SOFT_OFFLINE = 14, 15, 100, 101
MAP_HUGETLB = 0x40000
RB_POWER_OFF = 0x4321FEDC
libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, path: str) -> None:
    os.makedirs(path, exist_ok=True)
    if libc.mount(kind.encode(), path.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {kind}")


def load_modules() -> None:
    """In the order that capture.py numbered them in."""
    for path in sorted(glob.glob("/modules/*.ko")):
        with open(path, "rb") as file:
            image = file.read()
        if libc.init_module(image, ctypes.c_ulong(len(image)), b""):
            say(f"{path}: {os.strerror(ctypes.get_errno())}")


def say(text: str) -> None:
    with open("/dev/kmsg", "w") as log:
        log.write(f"capture: {text}\n")


def advise(area: mmap.mmap, offset: int, size: int, advice: int) -> None:
    """madvise; what this kernel cannot do is printed and passed over."""
    try:
        area.madvise(advice, offset, size)
    except OSError as error:
        say(f"madvise {advice}: {error}")


def touch(area: mmap.mmap) -> None:
    for at in range(0, len(area), PAGE):
        area[at : at + 8] = struct.pack("<Q", at + 1)


def anonymous(size: int, advice: int) -> mmap.mmap:
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advise(area, 0, size, advice)
    touch(area)
    return area


def make_pages() -> list[object]:
    """Pages of many kinds, which last as long as the list is kept and the child lives."""
    # Off by default where memory is small (hugepage_init in mm/huge_memory.c).
    with open("/sys/kernel/mm/transparent_hugepage/enabled", "w") as switch:
        switch.write("madvise")
    kept: list[object] = [
        anonymous(6 * MIB, MADV_NOHUGEPAGE),
        anonymous(8 * MIB, MADV_HUGEPAGE),
    ]
    # Holes between pages in use: free blocks of small orders, and pages on per-cpu lists.
    sieve = anonymous(8 * MIB, MADV_NOHUGEPAGE)
    for at in range(0, len(sieve), 16 * PAGE):
        for page in (1, 4, 5, 8, 9, 10, 11):
            sieve.madvise(mmap.MADV_DONTNEED, at + page * PAGE, PAGE)
    kept.append(sieve)
    with open("/proc/sys/vm/nr_hugepages", "w") as file:
        file.write("4")
    try:
        huge = mmap.mmap(-1, 4 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
        touch(huge)
        kept.append(huge)
    except OSError as error:
        say(f"huge pages: {error}")
    with open("/file", "wb") as file:  # page cache
        file.write(os.urandom(6 * MIB))
    os.makedirs("/many")
    for number in range(400):  # dentries and inodes
        with open(f"/many/{number}", "w") as small:
            small.write("x")
    # A broken page kills who touches it: a child has them, and touches none afterwards.  6.12 sends
    # SIGBUS to whoever breaks one at once.
    if not os.fork():
        signal.signal(signal.SIGBUS, lambda *_: None)
        area = anonymous(4 * MIB, MADV_NOHUGEPAGE)
        for number, page in enumerate((3, 4, 40, 77, 200, 201, 300)):
            advice = MADV_SOFT_OFFLINE if number % 3 == 2 else MADV_HWPOISON
            advise(area, page * PAGE, PAGE, advice)
        thp = anonymous(4 * MIB, MADV_HUGEPAGE)
        advise(thp, 2 * MIB + 5 * PAGE, PAGE, MADV_HWPOISON)
        while True:
            time.sleep(1000)
    return kept


class Kernel:
    """The running kernel's memory, through /proc/kcore."""

    def __init__(self) -> None:
        self.file = open("/proc/kcore", "rb", buffering=0)  # noqa: SIM115
        head = self.file.read(64)
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        self.loads: list[tuple[int, int, int]] = []  # physical, size, file offset
        self.vmcoreinfo = b""
        for number in range(count):
            kind, _flags, at, _virtual, physical, length = struct.unpack(
                "<IIQQQQ", self.at(offset + number * size, 40)
            )
            if kind == 4:
                self.find_note(self.at(at, length))
            elif physical != (1 << 64) - 1:
                self.loads.append((physical, length, at))
        self.facts = dict(
            line.split("=", 1) for line in self.vmcoreinfo.decode().splitlines() if "=" in line
        )
        # What was read, as whole pages by physical address.
        self.pages: dict[int, bytes] = {}

    def find_note(self, notes: bytes) -> None:
        at = 0
        while at + 12 <= len(notes):
            name, length, _kind = struct.unpack_from("<III", notes, at)
            data = at + 12 + (name + 3 & ~3)
            if notes[at + 12 :].startswith(b"VMCOREINFO\0"):
                self.vmcoreinfo = notes[data : data + length].rstrip(b"\0")
            at = data + (length + 3 & ~3)

    def at(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        data = b""
        while len(data) < size:
            part = self.file.read(size - len(data))
            if not part:
                raise OSError(f"/proc/kcore ends at {offset + len(data):#x}")
            data += part
        return data

    def page(self, physical: int) -> bytes:
        """The page that holds this physical address; remembered."""
        first = physical & ~(PAGE - 1)
        if first not in self.pages:
            self.pages[first] = self.fresh(first)
        return self.pages[first]

    def fresh(self, first: int) -> bytes:
        for start, size, offset in self.loads:
            if start <= first and first + PAGE <= start + size:
                return self.at(offset + first - start, PAGE)
        raise OSError(f"physical {first:#x} is not in /proc/kcore")

    def number(self, key: str, base: int = 10) -> int:
        return int(self.facts[key], base)

    def physical(self, address: int) -> int:
        """Of a kernel virtual address, by its page tables."""
        top = self.facts.get("SYMBOL(init_top_pgt)") or self.facts["SYMBOL(swapper_pg_dir)"]
        table = int(top, 16) - START_KERNEL_MAP + self.number("NUMBER(phys_base)")
        shift = 48 if self.facts.get("NUMBER(pgtable_l5_enabled)") == "1" else 39
        while True:
            (entry,) = struct.unpack_from("<Q", self.page(table), (address >> shift & 511) * 8)
            if not entry & 1:
                raise OSError(f"{address:#x} is not mapped")
            if shift == 12 or (shift < 39 and entry & 0x80):
                inside = address & (1 << shift) - 1
                return int(entry & ADDRESS & ~((1 << shift) - 1)) + inside
            table, shift = entry & ADDRESS, shift - 9

    def quad(self, address: int) -> int:
        physical = self.physical(address)
        return int(struct.unpack_from("<Q", self.page(physical), physical % PAGE)[0])

    def struct_page(self, pfn: int) -> int:
        """Virtual address of a pfn's struct page, by way of mem_section, as all kernels have it."""
        section = pfn >> (self.number("NUMBER(SECTION_SIZE_BITS)") - 12)
        size = self.number("SIZE(mem_section)")
        per_root = PAGE // size
        roots = self.number("SYMBOL(mem_section)", 16)
        if roots >= START_KERNEL_MAP:  # a pointer to the array lies in the kernel image
            roots = self.quad(roots)
        root = self.quad(roots + section // per_root * 8)
        coded = self.quad(
            root + section % per_root * size + self.number("OFFSET(mem_section.section_mem_map)")
        )
        return (coded & ~0x3F) + pfn * self.number("SIZE(page)")

    def structs(self, first: int, count: int, page: Callable[[int], bytes]) -> bytes:
        """The struct pages of a block; ``page`` reads a physical page."""
        size = self.number("SIZE(page)")
        start = self.struct_page(first)
        end = start + count * size
        pages = range(start & ~(PAGE - 1), end, PAGE)
        parts = [page(self.physical(at)) for at in pages]
        skip = start % PAGE
        return b"".join(parts)[skip : skip + count * size]


def page_flags(first: int = 0, count: int | None = None) -> list[int]:
    """/proc/kpageflags of ``count`` pfns, or of all."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        file.seek(first * 8)
        data = b""
        while count is None or len(data) < count * 8:
            part = file.read((count * 8 - len(data)) if count is not None else MIB)
            if not part:
                break
            data += part
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def features(flags: list[int]) -> set[tuple[str, int]]:
    """What is to be seen in a block: combinations of flags, and lengths of runs of free pages."""
    found = {("flags", sum(1 << bit for bit in TELLING if f >> bit & 1)) for f in set(flags)}
    # These must be there, whatever else there is to see.
    for bit in RARE:
        found |= {(f"rare {n}", bit) for n in range(20) if any(f >> bit & 1 for f in set(flags))}
    run = 0
    for f in [*flags, 0]:
        if f >> BUDDY & 1:
            run += 1
        elif run:
            found.add(("free", run.bit_length()))
            run = 0
    return found


def choose(flags: list[int]) -> list[int]:
    """First pfns of the blocks that together show most."""
    blocks = {
        first: features(flags[first : first + BLOCK])
        for first in range(0, len(flags) - BLOCK + 1, BLOCK)
    }
    chosen: list[int] = []
    seen: set[tuple[str, int]] = set()
    while len(chosen) < BLOCKS:
        best = max(blocks, key=lambda first: len(blocks[first] - seen))
        if not blocks[best] - seen:
            break
        chosen.append(best)
        seen |= blocks.pop(best)
    return sorted(chosen)


def capture() -> bytes:
    kernel = Kernel()
    kept = make_pages()
    end = time.monotonic() + 60
    while time.monotonic() < end:  # the balloon takes its time, and so does the child
        time.sleep(1)
        flags = page_flags()
        offline, broken = (sum(f >> bit & 1 for f in flags) for bit in (OFFLINE, HWPOISON))
        if offline >= 16 * MIB // PAGE and broken >= 5:
            break
    time.sleep(2)
    chosen = choose(page_flags())
    say(f"blocks {[hex(first) for first in chosen]}, {offline} offline, {broken} broken")
    for first in chosen:  # the way there, and room for the answer
        kernel.structs(first, BLOCK, kernel.page)
    runs, told, dropped = [], [], 0
    for first in chosen:
        before = page_flags(first, BLOCK)
        size = kernel.number("SIZE(page)")
        read: dict[int, bytes] = {}

        def reread(physical: int, read: dict[int, bytes] = read) -> bytes:
            return read.setdefault(physical & ~(PAGE - 1), kernel.fresh(physical & ~(PAGE - 1)))

        structs = kernel.structs(first, BLOCK, reread)
        kernel.pages.update(read)
        after = page_flags(first, BLOCK)
        again = kernel.structs(first, BLOCK, kernel.fresh)
        for n in range(BLOCK):
            same = before[n] == after[n]
            part = slice(n * size, (n + 1) * size)
            if not same or structs[part] != again[part]:
                before[n] = (1 << 64) - 1
                dropped += 1
        runs.append([first, first + BLOCK])
        told += before
    with open("/proc/cmdline") as words:
        command_line = words.read().strip()
    about = {
        "release": kernel.facts["OSRELEASE"],
        "command_line": command_line,
        "runs": runs,
        "dropped": dropped,
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add("about.json", json.dumps(about, indent=1).encode())
        add("vmcoreinfo", kernel.vmcoreinfo)
        add("kpageflags", struct.pack(f"<{len(told)}Q", *told))
        for physical, data in sorted(kernel.pages.items()):
            add(f"pages/{physical:#x}", data)
    del kept
    return out.getvalue()


def main() -> None:
    for kind, path in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        mount(kind, path)
    try:
        load_modules()
        data = gzip.compress(capture())
        port = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
        tty.setraw(port)
        data = struct.pack("<Q", len(data)) + data
        while data:
            data = data[os.write(port, data[:4096]) :]
        termios.tcdrain(port)
        say("done")
    except BaseException:  # noqa: BLE001 (nobody else would see it)
        for line in traceback.format_exc().splitlines():
            say(line)
    libc.reboot(RB_POWER_OFF)
    sys.exit(1)


if __name__ == "__main__":
    main()

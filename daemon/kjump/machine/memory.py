# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's physical memory: /proc/iomem, the firmware's memory map, /dev/mem.

Runs in all three kernels.  Never writes to memory except through a view that the caller opened for
writing.  All addresses are physical, ranges are half-open.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import NotPrivileged
from kjump.machine import cmdline
from kjump.machine.ranges import PAGE, Range, align_down, align_up, merge

E820_RAM, E820_RESERVED = 1, 2

# Names used by drivers/firmware/memmap.c and arch/x86/kernel/e820.c, and their e820 types.
E820_TYPES = {
    "System RAM": 1,
    "Reserved": 2,
    "reserved": 2,
    "ACPI Tables": 3,
    "ACPI Non-volatile Storage": 4,
    "Unusable memory": 5,
    "Unusable RAM": 5,
    "Persistent Memory": 7,
    "Persistent Memory (legacy)": 12,
    "Soft Reserved": 0xEFFFFFFF,
    "Unknown E820 type": 2,
}


@dataclass(frozen=True)
class Resource:
    """A line of /proc/iomem; ``depth`` 0 is the outermost."""

    depth: int
    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Entry:
    """An e820 entry: physical bytes [start, end) and type."""

    start: int
    end: int
    kind: int


def parse_iomem(text: str) -> list[Resource]:
    """Lines of /proc/iomem.  Raises `NotPrivileged` if every address is 0, as the kernel shows
    them without CAP_SYS_ADMIN (kernel/resource.c, r_show)."""
    out = []
    for line in text.splitlines():
        if " : " not in line:
            continue
        span, name = line.strip().split(" : ", 1)
        first, last = (int(part, 16) for part in span.split("-"))
        out.append(Resource((len(line) - len(line.lstrip())) // 2, first, last + 1, name))
    if out and not any(r.start for r in out):
        raise NotPrivileged("/proc/iomem shows no addresses: CAP_SYS_ADMIN is missing.")
    return out


def iomem() -> list[Resource]:
    return parse_iomem(Path("/proc/iomem").read_text())


def system_ram(resources: Iterable[Resource]) -> list[Range]:
    """The ranges that the running kernel uses as RAM."""
    return merge((r.start, r.end) for r in resources if r.depth == 0 and r.name == "System RAM")


def firmware_map(root: Path = Path("/sys/firmware/memmap")) -> list[Entry]:
    """The memory map that the firmware gave to the running kernel, in the firmware's order."""
    out = []
    for folder in sorted(root.iterdir(), key=lambda path: int(path.name)):
        start = int((folder / "start").read_text(), 16)
        end = int((folder / "end").read_text(), 16) + 1
        name = (folder / "type").read_text().strip()
        out.append(Entry(start, end, E820_TYPES.get(name, E820_RESERVED)))
    return out


def map_checksum(entries: Sequence[Entry]) -> int:
    """CRC-32 over the e820 table as the kernel keeps it: u32 count, then packed (u64 start, u64
    size, u32 type), little-endian (arch/x86/power/hibernate.c, compute_e820_crc32)."""
    data = struct.pack("<I", len(entries))
    for entry in entries:
        data += struct.pack("<QQI", entry.start, entry.end - entry.start, entry.kind)
    return zlib.crc32(data)


def helper_map(entries: Iterable[Entry], window: Range, low: Iterable[Range]) -> list[Entry]:
    """The memory map that the helper gets.

    Its RAM is the window without the first 2 MiB (handoff, boot_params and core header lie there),
    and the ``low`` ranges below 1 MiB that are staged with it.  All other RAM is the session's and
    becomes *reserved* rather than a hole: the kernel might give a hole to PCI devices.

    One page, at 1 MiB, does become a hole.  The kernel joins neighbouring ranges of the same type,
    and marks a reserved range that begins below 1 MiB as busy, because it believes the firmware
    owns it (arch/x86/kernel/e820.c, do_mark_busy).  With CONFIG_IO_STRICT_DEVMEM, which
    distributions set, /dev/mem refuses busy memory; without the hole that would be all memory of
    the session.
    """
    usable = merge([(window[0] + HEADROOM, window[1]), *low])
    out: list[Entry] = []
    for entry in entries:
        if entry.kind != E820_RAM:
            out.append(entry)
            continue
        at = entry.start + PAGE if entry.start == LOW_END else entry.start
        for start, end in usable:
            if end <= entry.start or start >= entry.end:
                continue
            if at < start:
                out.append(Entry(at, start, E820_RESERVED))
            out.append(Entry(start, min(end, entry.end), E820_RAM))
            at = min(end, entry.end)
        if at < entry.end:
            out.append(Entry(at, entry.end, E820_RESERVED))
    return sorted(out, key=lambda entry: entry.start)


LOW_END = 1 << 20
HEADROOM = 2 << 20
"""Bytes at the window's start that hold the handoff; the helper sees them as reserved."""


def is_5_level() -> bool:
    """Whether the running kernel uses 5-level page tables (CR4.LA57)."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            # The decompressor reads this word by its own rules: it ignores quotes and "--".
            return "la57" in line.split() and "no5lvl" not in cmdline.read_text().split()
    return False


def has_gigabyte_pages() -> bool:
    """Whether the CPU has 1 GiB pages."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return "pdpe1gb" in line.split()
    return False


class PhysicalMemory:
    """Physical memory through /dev/mem, by mapping (its read() stops at the end of RAM).

    With CONFIG_STRICT_DEVMEM a kernel refuses access to its *own* RAM, so the helper can reach
    the session's memory but not its own.
    """

    def __init__(self, *, writable: bool = False) -> None:
        self._writable = writable
        self._fd = os.open("/dev/mem", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    def map(self, start: int, size: int) -> tuple[mmap.mmap, int]:
        """A mapping that covers the bytes, and the offset of ``start`` in it.  Raises OSError."""
        first = align_down(start)
        length = align_up(start + size) - first
        access = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        return mmap.mmap(self._fd, length, mmap.MAP_SHARED, access, offset=first), start - first

    def read(self, start: int, size: int) -> bytes:
        view, at = self.map(start, size)
        with view:
            return view[at : at + size]

    def write(self, start: int, data: bytes) -> None:
        view, at = self.map(start, len(data))
        with view:
            view[at : at + len(data)] = data

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> PhysicalMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_meminfo(text: str) -> dict[str, int]:
    """The sizes in /proc/meminfo, in bytes (it gives them in KiB); its plain counts are left
    out."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3}


def read_meminfo() -> dict[str, int]:
    """/proc/meminfo, in bytes; empty if it cannot be read."""
    try:
        return parse_meminfo(Path("/proc/meminfo").read_text())
    except OSError:
        return {}


def own_memory() -> dict[str, int]:
    """The running kernel's memory in bytes: ``total`` and ``available`` (/proc/meminfo)."""
    facts = read_meminfo()
    return {"total": facts.get("MemTotal", 0), "available": facts.get("MemAvailable", 0)}


def processors() -> int:
    """How many processors this program may use."""
    return len(os.sched_getaffinity(0))


def page_count() -> int:
    """``num_physpages`` as /dev/snapshot checks it: the sum of ``present`` over all zones."""
    total = 0
    for line in Path("/proc/zoneinfo").read_text().splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "present":
            total += int(words[1])
    return total

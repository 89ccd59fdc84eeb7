# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's machine, as far as staging a helper needs it: its memory, and kexec, are played.

What kexec is given lies in `Session.memory` then, where the helper would find it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from kjump.image.target import Target
from kjump.machine import memory, syscalls
from kjump.machine.memory import HEADROOM, Entry
from kjump.machine.ranges import MIB, PAGE, Range, overlaps
from kjump.machine.syscalls import Segment
from kjump.session.staging import load, pinned_pages, reclaim
from kjump.session.staging import window as windows
from kjump.session.staging.sizing import Sizing

IOMEM = (
    "00001000-0009fbff : System RAM\n"
    "00100000-3fffffff : System RAM\n"
    "  01000000-02bfffff : Kernel code\n"
    "100000000-13fffffff : System RAM\n"
)
RAM = [(0x1000, 0x9F000), (0x100000, 0x40000000), (0x100000000, 0x140000000)]
LOW = (0x1000, 0x9F000)
FIRMWARE = [
    Entry(0, 0x9FC00, 1),
    Entry(0x9FC00, 0xA0000, 2),
    Entry(0x100000, 0x40000000, 1),
    Entry(0x100000000, 0x140000000, 1),
]
VMCOREINFO = (0x5000, 0x400)
INIT_SIZE = 3 * MIB
TARGET = Target("PARTLABEL=kjump", Path("/dev/vda3"), 2 << 30, "uuid", ("/dev/disk/by-x/kjump",))


def bzimage(body: bytes, cmdline_size: int = 2047) -> bytes:
    """A kernel whose setup is one sector."""
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x201] = 0x6A
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x236, 1)
    struct.pack_into("<I", image, 0x238, cmdline_size)
    struct.pack_into("<I", image, 0x260, INIT_SIZE)
    return bytes(image) + body


class Session:
    """``refuse``: what the kernel refuses with EPERM; ``done``: what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.iomem = IOMEM
        self.done: list[str] = []
        self.refuse = ""
        self.loaded = False
        self.segments: list[tuple[int, int, bytes]] = []
        self.entry = 0
        self.moved = 0
        self.free = 1 << 30
        self.flags: dict[int, int] = {}
        self.body, self.ramdisk = b"kernel" * 5000, b"initrd" * 3000
        self.kernel, self.initrd = folder / "vmlinuz", folder / "helper.img"
        self.kernel.write_bytes(bzimage(self.body))
        self.initrd.write_bytes(self.ramdisk)
        self._locked: dict[int, int] = {}
        monkeypatch.setattr(memory, "iomem", lambda: memory.parse_iomem(self.iomem))
        monkeypatch.setattr(memory, "firmware_map", lambda: list(FIRMWARE))
        monkeypatch.setattr(windows, "read_kpageflags", self.read_flags)
        monkeypatch.setattr(windows, "sample_allocations", lambda _size: [])
        monkeypatch.setattr(pinned_pages, "physical_address", self.physical)
        monkeypatch.setattr(load, "vmcoreinfo_note", lambda: VMCOREINFO)
        monkeypatch.setattr(reclaim, "free_up", lambda _: reclaim.Reclaimed(MIB, self.free))
        monkeypatch.setattr(reclaim, "free_now", lambda: self.free)
        monkeypatch.setattr(syscalls, "kexec_load", self.load)
        monkeypatch.setattr(syscalls, "kexec_unload", self.unload)
        monkeypatch.setattr(syscalls, "kexec_loaded", lambda: self.loaded)
        monkeypatch.setattr(syscalls, "reboot_kexec", lambda: self.do("jump"))
        monkeypatch.delenv("KJUMP_INJECT", raising=False)

    def sizing(self, size: int = 8 * MIB) -> Sizing:
        return Sizing(self.kernel, self.initrd, size, size + MIB)

    def do(self, what: str) -> None:
        if what == self.refuse:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.done.append(what)

    def load(self, entry: int, segments: Sequence[Segment], *, preserve_context: bool) -> None:
        assert preserve_context
        self.do("load")
        self.entry, self.loaded = entry, True
        self.segments = [(s.memory, s.size, bytes(s.data)) for s in segments]

    def unload(self) -> None:
        self.do("unload")
        self.loaded = False

    def physical(self, address: int) -> int:
        """Of a page of this process: below the lowest window, the same as long as none moves."""
        found = self._locked.setdefault(address, 0x200000 + len(self._locked) * PAGE)
        return found + self.moved

    def page(self, physical: int) -> bytes:
        """The page of this process that was said to lie there."""
        (address,) = (a for a, found in self._locked.items() if found == physical)
        return ctypes.string_at(address, PAGE)

    def put(self, physical: int, data: bytes) -> None:
        (address,) = (a for a, found in self._locked.items() if found == physical)
        ctypes.memmove(address, data, len(data))

    def read_flags(self, first: int, count: int) -> bytearray:
        return bytearray(
            b"".join(struct.pack("<Q", self.flags.get(n, 0)) for n in range(first, first + count))
        )

    def memory(self, start: int, size: int) -> bytes:
        """What lies at the physical address after the jump, out of one segment."""
        (found,) = (s for s in self.segments if s[0] <= start and start + size <= s[0] + s[1])
        at, length, data = found
        return data.ljust(length, b"\0")[start - at : start - at + size]

    def covered(self) -> list[Range]:
        """Where segments lie, in order; none over another."""
        ranges = sorted((start, start + size) for start, size, _ in self.segments)
        assert not any(overlaps(one, ranges[:at]) for at, one in enumerate(ranges))
        return ranges


__all__ = ["HEADROOM", "LOW", "RAM", "TARGET", "VMCOREINFO", "Session", "bzimage"]

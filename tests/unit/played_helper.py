# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine as the helper has it: memory is a file here, and kexec is played."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.helper import leave
from kjump.machine import cmdline, memory, syscalls
from kjump.machine.ranges import PAGE
from kjump.machine.syscalls import Segment

NONCE = bytes(range(16))
CELL_AT, PAGE_AT = 0x10800, 0x30000
WINDOW = 0x40000000
CELL = Cell(PAGE_AT, NONCE, WINDOW, 64 << 20, jump_back=0x1234000)


class Machine:
    """Memory, and what was asked of the kernel.  ``refuse``: what fails with EPERM."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.path = path
        self.path.write_bytes(bytes(64 * PAGE))
        self.put(CELL_AT, CELL.pack())
        self.put(PAGE_AT, reports.blank(NONCE))
        self.command_line = path.with_name("cmdline")
        self.command_line.write_text("quiet\n")
        self.done: list[str] = []
        self.refuse = ""
        self.entry = 0
        self.segments: list[Segment] = []
        self.said: list[str] = []
        machine = self

        class Memory(memory.PhysicalMemory):
            def __init__(self, *, writable: bool = False) -> None:
                self._writable = writable
                flags = os.O_RDWR if writable else os.O_RDONLY
                self._fd = os.open(machine.path, flags | os.O_CLOEXEC)

        monkeypatch.setattr(memory, "PhysicalMemory", Memory)
        monkeypatch.setattr(memory, "is_5_level", lambda: False)
        monkeypatch.setattr(memory, "has_gigabyte_pages", lambda: True)
        monkeypatch.setattr(cmdline, "CMDLINE", self.command_line)
        monkeypatch.setattr(cmdline.read, "__defaults__", (self.command_line,))
        monkeypatch.setattr(syscalls, "kexec_load", self.load)
        monkeypatch.setattr(syscalls, "kexec_unload", lambda: self.do("unload"))
        monkeypatch.setattr(syscalls, "reboot_kexec", lambda: self.do("jump"))
        monkeypatch.setattr(leave, "say", self.said.append)

    def do(self, what: str) -> None:
        if what.startswith(self.refuse or "nothing"):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.done.append(what)

    def load(self, entry: int, segments: Sequence[Segment], *, preserve_context: bool) -> None:
        self.do("load to come back" if preserve_context else "load for good")
        self.entry, self.segments = entry, list(segments)

    def put(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def report(self) -> reports.Report | None:
        return reports.unpack(self.path.read_bytes()[PAGE_AT:][:PAGE], NONCE)

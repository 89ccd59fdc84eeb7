# SPDX-License-Identifier: GPL-2.0-or-later
"""A saved session in crash and in drgn.

Runs on the host.  Both read an ELF core and the kernel's own debug information, which only the
kernel of ``make kernel-debug`` has.

- `kernel`: that kernel, as a package and as vmlinux.
- `Crash`: a core in crash, and what its answers say.
- `Drgn`: a core in drgn: tasks, their memory, and what the kernel's own lists say of its pages.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kjump.machine.ranges import PAGE

from . import suites
from .guest import GuestError

ROOT = Path(__file__).resolve().parents[2]
CRASH_SUITE = "trixie"
"""Its crash (8.0.6) knows 6.12; that of Debian 12 (8.0.2) does not."""
CRASH_TIME = 600.0
"""Seconds for one run of crash, at the slowest."""


@dataclass(frozen=True)
class DebugKernel:
    """What ``packaging/kernel/build --debug`` makes: a Debian package, and vmlinux beside it."""

    package: Path

    @classmethod
    def build(cls) -> DebugKernel:
        """From the cache, or built (about 10 minutes)."""
        command = [str(ROOT / "packaging/kernel/build"), "--debug"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return cls(Path(out.strip().splitlines()[-1]))

    def vmlinux(self, folder: Path) -> Path:
        """The kernel with its debug information, unpacked into the folder."""
        path = folder / "vmlinux"
        packed = self.package.with_name("vmlinux.zst")
        subprocess.run(["zstd", "-dqf", packed, "-o", path], check=True)
        return path


@dataclass(frozen=True)
class Crash:
    """Opening takes it a while, so it is asked many things at once."""

    vmlinux: Path
    core: Path

    def answers(self, *commands: str) -> list[str]:
        """What crash says to each command.  Raises GuestError where it does not open the core."""
        with tempfile.TemporaryDirectory(dir=self.core.parent) as scratch:
            files = [Path(scratch, str(number)) for number in range(len(commands))]
            lines = [f"{words} > {file}" for words, file in zip(commands, files, strict=True)]
            script = Path(scratch, "commands")
            script.write_text("\n".join(["set scroll off", *lines, "quit"]) + "\n")
            words = suites.program(CRASH_SUITE, "crash", "/usr/bin/crash")
            # Nothing of the caller's ~/.crashrc.
            words += ["-s", "--no_crashrc", "-i", str(script), str(self.vmlinux), str(self.core)]
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CRASH_TIME,
                check=False,
            )
            if done.returncode or not all(file.exists() for file in files):
                raise GuestError(
                    f"crash, asked {commands}: status {done.returncode}\n{done.stdout}{done.stderr}"
                )
            return [file.read_text(errors="replace") for file in files]


def tasks_of(ps: str) -> dict[int, str]:
    """Name by pid, of what crash's ``ps`` lists; those of CPUs that idle have pid 0."""
    found = {}
    for line in ps.splitlines():
        # ">     336     334   1  ffff96c7449e6900  ??   0.3     4328     3636  tmux: server"
        match = re.match(
            r">?\s*(\d+)\s+\d+\s+\d+\s+[0-9a-f]{16}\s+\S+\s+[\d.]+\s+\d+\s+\d+\s+(.+)$", line
        )
        if match:
            found[int(match[1])] = match[2].strip().strip("[]")
    return found


def jumping(ps: str) -> int:
    """The pid of the thread that asked for the jump: a kjumpd that a CPU was at."""
    (pid,) = re.findall(r"^>\s*(\d+) .* kjumpd$", ps, re.MULTILINE)
    return int(pid)


def addresses(search: str) -> list[int]:
    """Where crash's ``search`` found something."""
    return [int(at, 16) for at in re.findall(r"^([0-9a-f]+): ", search, re.MULTILINE)]


def characters(rd: str) -> str:
    """What crash's ``rd -a`` shows."""
    return "".join(re.findall(r"^\s*[0-9a-f]+:  (.*)$", rd, re.MULTILINE))


def physical(vtop: str) -> int:
    """The physical address that crash's ``vtop`` comes to."""
    match = re.search(r"^[0-9a-f]+\s+([0-9a-f]+)\s*$", vtop, re.MULTILINE)
    if not match:
        raise GuestError(f"crash's vtop: {vtop}")
    return int(match[1], 16)


class Drgn:
    def __init__(self, vmlinux: Path, core: Path) -> None:
        import drgn

        self.program = drgn.Program()
        self.program.set_core_dump(core)
        self.program.load_debug_info([str(vmlinux)])
        self.fault = drgn.FaultError

    def tasks(self) -> dict[int, str]:
        from drgn.helpers.linux.pid import for_each_task

        return {
            int(task.pid): task.comm.string_().decode(errors="replace")
            for task in for_each_task(self.program)
        }

    def task(self, pid: int) -> Any:
        from drgn.helpers.linux.pid import find_task

        return find_task(self.program, pid)

    def stack(self, pid: int) -> list[str]:
        """Names of the functions that a task is in, the innermost first."""
        return [frame.name or "" for frame in self.program.stack_trace(self.task(pid))]

    def anonymous(self, pid: int) -> Iterator[tuple[int, bytes]]:
        """(user address, page) of a task's anonymous writable memory, as far as it is present:
        read by the task's page tables."""
        from drgn.helpers.linux.mm import access_remote_vm, for_each_vma

        mm = self.task(pid).mm
        for vma in for_each_vma(mm):
            if vma.vm_file or not int(vma.vm_flags) & 2:
                continue
            for address in range(int(vma.vm_start), int(vma.vm_end), PAGE):
                try:
                    yield address, access_remote_vm(mm, address, PAGE)
                except self.fault:
                    continue

    def search(self, pid: int, text: str) -> list[int]:
        """The user addresses at which a task's anonymous memory has the text."""
        return [
            address + match.start()
            for address, page in self.anonymous(pid)
            for match in re.finditer(re.escape(text.encode()), page)
        ]

    def physical(self, pid: int, address: int) -> int:
        from drgn.helpers.linux.mm import follow_phys

        return int(follow_phys(self.task(pid).mm, address))

    # -- pages -----------------------------------------------------------------------------------

    def free(self) -> set[int]:
        """The pfns on the free lists of all zones: what the kernel itself would hand out."""
        from drgn import sizeof
        from drgn.helpers.linux.list import list_for_each_entry
        from drgn.helpers.linux.mmzone import for_each_online_pgdat

        # vmemmap is an array of all pages.
        first = int(self.program["vmemmap_base"])
        size = sizeof(self.program.type("struct page"))
        found: set[int] = set()
        for node in for_each_online_pgdat(self.program):
            for zone in node.node_zones:
                if not zone.present_pages:  # its lists were never set up
                    continue
                for order, area in enumerate(zone.free_area):
                    for head in area.free_list:
                        for page in list_for_each_entry(
                            "struct page", head.address_of_(), "buddy_list"
                        ):
                            pfn = (int(page) - first) // size
                            found.update(range(pfn, pfn + (1 << order)))
        return found

    def broken(self, first: int, count: int) -> set[int]:
        """Pfns of the pages from ``first`` on that have PG_hwpoison."""
        bit = 1 << int(self.program.constant("PG_hwpoison"))
        return {
            first + n
            for n, flags in enumerate(self._column("flags", first, count, 8))
            if flags & bit
        }

    def offline(self, first: int, count: int) -> set[int]:
        """Pfns of the pages from ``first`` on whose type is offline (6.12: the top byte)."""
        kind = int(self.program.constant("PGTY_offline"))
        return {
            first + n
            for n, value in enumerate(self._column("page_type", first, count, 4))
            if value >> 24 == kind
        }

    def _column(self, member: str, first: int, count: int, width: int) -> list[int]:
        """A member of ``count`` struct pages, unsigned."""
        from drgn import offsetof, sizeof

        kind = self.program.type("struct page")
        size, offset = sizeof(kind), offsetof(kind, member)
        data = self.program.read(int(self.program["vmemmap_base"]) + first * size, count * size)
        words = memoryview(data).cast("Q" if width == 8 else "I")
        return words[offset // width :: size // width].tolist()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's machine is made of: processors, memory, buses, and the faults of its disk.

Runs on the host.  Only describes: machine.py makes QEMU's command line of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .channel import Message


@dataclass(frozen=True)
class Shape:
    """The parts of a machine, and how it is booted. Memory in MiB."""

    memory: int = 1024
    cpus: int = 2
    machine: str = "q35"  # or pc
    bus: str = "virtio"  # or ahci, ide (pc only), nvme, scsi
    la57: bool = False
    huge: bool = True  # 1 GiB pages
    numa: int = 1  # nodes with an equal share of memory and processors each
    kaslr: bool = True
    kernel: str = "kjump"  # or stock
    words: str = ""  # more for the kernel command line
    slots: int = 0  # for memory that is plugged in later
    prealloc: bool = False  # all memory is there at power-on: for what is timed, see nodes()
    watchdog: str = ""  # i6300esb
    tables: tuple[str, ...] = ()  # files with ACPI tables beside the firmware's

    def command_line(self) -> str:
        # A panic must end the run at once, not hang until a deadline.  The kernel's check of its
        # timer fails now and then where an emulated processor does not get the real one in time;
        # on a hypervisor that it knows the kernel leaves that check out by itself.
        parts = ["panic=-1 no_timer_check", "" if self.kaslr else "nokaslr", self.words]
        if self.cpus > 1:
            # What kills a kernel on its way to the jump is seen; see Machine.emulator_failed.
            parts.append("no_console_suspend")
        return " ".join(part for part in parts if part)

    def cpu(self, accel: str) -> str:
        """QEMU's words for the kind of processor."""
        words = "host" if accel == "kvm" else "max"
        if accel == "tcg":
            # An emulated "rep stosb" is 4096 steps for a page, "rep stosq" 512; a processor takes
            # equally long for both.  So the kernel does not learn that strings of bytes are fast.
            words += ",erms=off,fsrm=off"
        return f"{words},la57={'on' if self.la57 else 'off'},pdpe1gb={'on' if self.huge else 'off'}"

    def devices(self) -> list[str]:
        """QEMU's words for the devices: the disk on its bus, and a watchdog."""
        found = {
            "virtio": ["virtio-blk-pci,werror=report,rerror=report"],
            "ahci": ["ich9-ahci,id=ahci", "ide-hd,bus=ahci.0,werror=report,rerror=report"],
            "ide": ["ide-hd,bus=ide.0,werror=report,rerror=report"],
            "nvme": ["nvme"],
            "scsi": ["virtio-scsi-pci", "scsi-hd,werror=report,rerror=report"],
        }[self.bus]
        found[-1] += ",id=hd,drive=disk,serial=kjump,bootindex=0"
        return [*found, self.watchdog] if self.watchdog else found

    def nodes(self) -> list[str]:
        """QEMU's words for more than one NUMA node, and for memory that is there beforehand.

        Otherwise the host gives a page when the guest first touches it.  That can take 0.1 ms and
        more a page where the host is a guest itself, and it falls on whoever in the guest is the
        first to touch it: no time of a guest's would mean anything.
        """
        there = f",prealloc=on,prealloc-threads={self.cpus}" if self.prealloc else ""
        if self.numa == 1:
            memory = f"memory-backend-ram,id=node0,size={self.memory}M{there}"
            return ["-object", memory, "-machine", "memory-backend=node0"] if there else []
        words = []
        for node in range(self.numa):
            size = f"size={self.memory // self.numa}M{there}"
            own = [n for n in range(self.cpus) if n % self.numa == node]
            words += ["-object", f"memory-backend-ram,id=node{node},{size}"]
            words += [
                "-numa",
                f"node,nodeid={node},memdev=node{node}" + "".join(f",cpus={n}" for n in own),
            ]
        return words


@dataclass(frozen=True)
class DiskErrors:
    """Requests that touch these bytes of the disk fail.

    QEMU's rules name single sectors: one every `stride` bytes, so requests at least that large are
    hit.  `size` None is the whole disk.
    """

    offset: int = 0
    size: int | None = None
    stride: int = 4096
    once: bool = False
    errno: int = 5
    kind: str = "write"  # or read, flush

    def rules(self) -> list[Message]:
        rule: Message = {
            "event": "none",
            "iotype": self.kind,
            "errno": self.errno,
            "once": self.once,
            "immediately": False,
        }
        if self.size is None:
            return [rule]
        if self.size // self.stride > 20000:
            raise ValueError("too many sectors to fail: take a larger stride")
        sectors = range(self.offset // 512, (self.offset + self.size) // 512, self.stride // 512)
        return [{**rule, "sector": sector} for sector in sectors]

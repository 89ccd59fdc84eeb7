# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are measured: the disks they start from, and one cycle with its times.

All systems have the same kernel, processors, memory and disk.  Where the kernel's own hibernation
is measured there is no kjump on the disk, and a swap area is in use that the boot initrd resumes
from.
"""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.vm.guest import Guest, Message, Shape
from tests.vm.image import Image
from tests.vm.steps import ctl_json, require

from . import spans
from .figures import MIB, OURS, STOCK, WARM, Cell, Record

CPUS = 2
PER_GIB = 300.0
"""Seconds that a GiB may take to save, or to put back, at the slowest."""
PLAIN = 1024
"""MiB of the plain sequential write that the copy is compared with, at the most.  QEMU's throttle
lets a tenth of a second's bytes through at once after a rest: with few of them that is what would
be measured."""


class NotThere(Exception):
    """The system cannot be measured here; the text says why."""


class Timed(Guest):
    """A guest whose QEMU stays when the machine goes off, and whose events have their moments."""

    def command(self) -> list[str]:
        self.moments: dict[str, float] = {}
        return [word.replace("shutdown=poweroff", "shutdown=pause") for word in super().command()]

    def on_event(self, message: Message) -> None:
        self.moments[message["event"]] = time.monotonic()
        super().on_event(message)

    def wait_off(self, deadline: float) -> float:
        """The moment at which the machine went off."""
        end = time.monotonic() + deadline
        while "SHUTDOWN" not in self.moments:
            if not self.running:
                raise self.error(f"QEMU ended ({self.ended()})")
            if "jumping back to the session" in self.console()[self.seen :]:
                journal = self.run("journalctl -b -n 30 --no-pager -u kjumpd", timeout=120).out
                raise self.error(f"came back instead of going off:\n{journal}")
            if time.monotonic() > end:
                raise self.error(f"not off after {deadline:.0f} s")
            time.sleep(0.02)
        reason = next(e["data"]["reason"] for e in self.events if e["event"] == "SHUTDOWN")
        if reason != "guest-shutdown":
            raise self.error(f"ended by {reason}")
        return self.moments["SHUTDOWN"]

    def written(self) -> int:
        """Bytes written to the disk since QEMU started."""
        stats = self.qmp("query-blockstats")
        return sum(int(entry["stats"]["wr_bytes"]) for entry in stats if entry.get("qdev"))

    def work_done(self) -> float:
        """Processor seconds of QEMU so far."""
        assert self.process
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def quit(self) -> None:
        self.qmp("quit")
        self.wait_exit()

    def wait_user(self, deadline: float) -> float:
        """The moment at which a process of the user's answers."""
        end = time.monotonic() + deadline
        while not self.user.ask({"op": "ping"}, 0.25):
            if not self.running or "SHUTDOWN" in self.moments:
                raise self.error("went off instead of coming back")
            if time.monotonic() > end:
                raise self.error(f"the user's agent is silent after {deadline:.0f} s")
        self.ready.add(True)
        return time.monotonic()


class Watch:
    """Reads the console as it grows, and notes when each line came."""

    def __init__(self, guest: Guest, begin: float, offset: int = 0) -> None:
        self.lines: list[spans.Line] = []
        self.begin = begin
        self._path, self._offset = guest.log("console"), offset
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pending = ""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while True:
                over = self._over.is_set()
                data = file.read()
                moment = time.monotonic() - self.begin
                *whole, pending = (pending + data.decode(errors="replace")).split("\n")
                self.lines += [(moment, line.strip("\r")) for line in whole]
                if over:
                    return
                time.sleep(0.02)

    def end(self) -> list[spans.Line]:
        self._over.set()
        self._thread.join()
        return self.lines


def shape(system: str, memory: int) -> Shape:
    words = f"hibernate.compressor={system}" if system in STOCK else ""
    return Shape(memory=memory, cpus=CPUS, words=words, prealloc=True)


def plain_write(guest: Guest) -> float:
    """Bytes a second of a plain sequential direct write to a partition of the same disk."""
    source, target = "/dev/shm/plain", "/dev/disk/by-partlabel/spare"
    size = min(PLAIN // 2, guest.shape.memory // 4)
    said = guest.check(
        f"head -c {size}M /dev/urandom >{source}\n"
        # The disk allocates, as at the image's write; none is from a cache.
        "for n in 0 1; do"
        f" dd if={source} of={target} bs=4M oflag=direct seek=$((n * {size // 4})) 2>&1; done\n"
        f"rm {source}",
        timeout=400,
    )
    seconds = [float(found) for found in re.findall(r"copied, ([0-9.e-]+) s", said)]
    require("dd says how long it took", len(seconds) == 2, said)
    return 2 * size * MIB / sum(seconds)


def fill(guest: Guest, cell: Cell) -> dict[str, Any]:
    """Fill the guest's memory to the cell's level; what is in use then, in MiB."""
    total = int(guest.check("awk '/^MemTotal/ {print $2}' /proc/meminfo")) // 1024
    left = total * (100 - cell.fill) // 100
    share = 1.0 if cell.mix == "random" else 0.0
    blocks = guest.fill(f"start --until-available {left} --random {share}")["blocks"]
    available = int(guest.check("awk '/^MemAvailable/ {print $2}' /proc/meminfo")) // 1024
    return {"filled": blocks, "total": total, "available": available}


def stage_warm(guest: Guest) -> None:
    """Boot the helper ahead.  Raises `NotThere`."""
    usage = guest.run("kjumpctl stage --help", timeout=120)
    if usage.rc or "--warm" not in usage.out:
        raise NotThere("this kjumpctl has no 'stage --warm'")
    guest.check("kjumpctl stage --warm", timeout=400)


def measure(image: Image, cell: Cell, system: str, pair: int, folder: Path) -> Record:
    """One cycle.  Raises `NotThere`, `GuestError`."""
    began = time.monotonic()
    busy, mine = processor_seconds()
    deadline = 300 + PER_GIB * cell.memory / 1024
    guest = Timed.booted(image, shape(system, cell.memory), folder=folder)
    assert isinstance(guest, Timed)
    plain = None
    with guest:
        guest.wait_ready()
        # As in a desktop's session: it runs already when somebody hibernates.
        guest.check("systemctl start polkit.service", timeout=120)
        if system in STOCK:
            name = guest.check("cat /sys/module/hibernate/parameters/compressor").strip()
            require("the kernel compresses as asked", name == system, name)
            guest.check("grep -q partition /proc/swaps")
        else:
            guest.check("systemctl start kjumpd.service", timeout=120)
        guest.slow_disk(cell.throttle * 1000 * 1000)
        if system in (OURS, WARM) and cell.mix == "random":
            plain = plain_write(guest)
        facts = fill(guest, cell)
        if system == WARM:
            guest.slow_disk(0)
            stage_warm(guest)
            guest.slow_disk(cell.throttle * 1000 * 1000)
        guest.check("sync")
        # What the host still has to write slows down who writes next: the plain write comes before
        # ours only, and the cycle before may have written more or less.
        os.sync()
        before = guest.written()
        guest.seen = len(guest.console())
        worked = guest.work_done()
        request = time.monotonic()
        watch = Watch(guest, request, guest.log("console").stat().st_size)
        guest.spawn("systemctl hibernate", user=True)
        off = guest.wait_off(deadline) - request
        work_off = guest.work_done() - worked
        said_saving = watch.end()
        written = guest.written() - before
        guest.quit()

    again = Timed(image, shape(system, cell.memory), folder=guest.folder)
    with again.start():
        power_on = again.powered_on
        watch = Watch(again, power_on)
        again.slow_disk(cell.throttle * 1000 * 1000)
        facts["agent"] = again.wait_user(deadline) - power_on
        blocks = again.fill("ping")["blocks"]
        running = time.monotonic() - power_on
        work_on = again.work_done()
        said_resuming = watch.end()
        require("the same fill", blocks == facts["filled"], blocks)
        # Throttled as before: what was swapped out has to come back.
        found = again.fill("check", deadline=deadline)
        facts["whole"] = time.monotonic() - power_on
        require("every page of the fill is as it was", found["ok"], found)
        record = Record(
            cell,
            system,
            pair,
            off,
            running,
            written,
            0.0,
            plain=plain,
            facts=facts,
            work_off=work_off,
            work_on=work_on,
        )
        record = (
            stock(record, said_saving, said_resuming)
            if system in STOCK
            else ours(record, again, said_saving, said_resuming)
        )
    took = time.monotonic() - began
    now_busy, now_mine = processor_seconds()
    others = ((now_busy - busy) - (now_mine - mine)) / took / (os.cpu_count() or 1)
    return replace(record, took=took, others=max(0.0, others))


def processor_seconds() -> tuple[float, float]:
    """What the host's processors did: in all, and for this program and its ended children."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _wait, irq, soft = (int(word) for word in first[1:8])
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (
        (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"),
        sum(usage.ru_utime + usage.ru_stime for usage in own),
    )


def ours(
    record: Record, guest: Guest, saving: list[spans.Line], resuming: list[spans.Line]
) -> Record:
    """The record with what kjump reports."""
    last = ctl_json(guest, "history")[-1]
    require("the cycle went well", last["result"] == "ok", last)
    phases, memory = last["phases"], last.get("memory") or {}
    return replace(
        record,
        helper=memory["total"] - memory["available"] if memory else None,
        image=last["image"]["size"],
        copy=phases["copy"],
        way=last["more"].get("way", ""),
        saving=spans.ours_saving(saving, phases, record.off),
        resuming=spans.ours_resuming(resuming, record.running),
        facts={**record.facts, "report": last},
    )


def stock(record: Record, saving: list[spans.Line], resuming: list[spans.Line]) -> Record:
    """The record with what the kernel said on the console."""
    parts = spans.cut(saving, spans.STOCK_SAVING, record.off, "switch off")
    image = spans.stock_image(saving)
    require("the kernel wrote an image", image, saving[-5:])
    return replace(
        record,
        image=image,
        copy=next((end - begin for name, begin, end in parts if name == "write"), None),
        way="swap",
        saving=parts,
        resuming=spans.cut(resuming, spans.STOCK_RESUMING, record.running, "session wakes"),
        facts={
            **record.facts,
            "kernel": [text for _, text in saving if "hibernation:" in text][-12:],
        },
    )

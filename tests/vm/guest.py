# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest in QEMU: one `Guest` is one power-on of the machine.

The guest's disk is an overlay in the guest's folder, so a power-off and power-on is the end of one
Guest and `guest.again()`.  Talk is over a QMP channel and two serial ports with an agent behind
each: root's, and one inside the ordinary user's own session (see agent.py).  Kernel and systemd
write to a third, kept as a log file.  Every wait has a deadline, and an error always shows the end
of that log.

The thread that starts a guest must live as long as it: QEMU dies with that thread, so that nothing
is left running when a test is killed.
"""

from __future__ import annotations

import atexit
import base64
import fcntl
import functools
import itertools
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from . import suites
from .image import Image, digest

Message = dict[str, Any]

QEMU = "qemu-system-x86_64"
MENDED = (8, 1)
"""QEMU's version from which on one emulated processor does not run into what another has just
patched: see `Guest.emulator_failed`."""
QEMU_SUITE = "trixie"
"""Where this machine's is older, the one of this release of Debian is taken."""
BOOT = 240.0  # seconds until the agents answer, at the slowest, in software emulation
CHUNK = 24 * 1024  # of a file per message: the guest's tty buffers no more than 64 KiB
SMBIOS_WORDS = 400
AGAIN = 5.0  # seconds without an answer, after which an agent is asked again; then twice as many
EMULATOR_FAILED = "The emulator broke this guest."

_running: set[subprocess.Popen[bytes]] = set()


@atexit.register
def _kill_all() -> None:
    for process in list(_running):
        process.kill()


class GuestError(Exception):
    """The guest did not do what the test waited for."""


@dataclass(frozen=True)
class Shape:
    """What is bought in the shop, and how it is booted. Memory in MiB."""

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
            # What kills a kernel on its way to the jump is seen; see Guest.emulator_failed.
            parts.append("no_console_suspend")
        return " ".join(part for part in parts if part)

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


@dataclass(frozen=True)
class Result:
    rc: int
    out: str
    err: str


@functools.cache
def acceleration() -> str:
    """kvm where it really runs a machine, else tcg; KJUMP_ACCEL decides without asking.

    The machine is one with nothing to boot from, which the firmware therefore resets.
    """
    chosen = os.environ.get("KJUMP_ACCEL")
    if chosen:
        return chosen
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = (
        f"{QEMU} -accel kvm -cpu host -m 32 -nodefaults -display none -vga none -no-reboot "
        "-boot reboot-timeout=1"
    )
    try:
        done = subprocess.run(command.split(), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "tcg"
    return "kvm" if done.returncode == 0 else "tcg"


def version_of(words: Sequence[str]) -> tuple[int, int]:
    """Major and minor of a QEMU."""
    found = re.search(r"version (\d+)\.(\d+)", said_version(words))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def said_version(words: Sequence[str]) -> str:
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
    return done.stdout


@functools.cache
def emulator() -> tuple[str, ...]:
    """The words by which QEMU is started: this machine's, where it is good enough; else a newer one
    that is unpacked in the cache, and installed nowhere.  KJUMP_QEMU decides without asking."""
    own = (os.environ.get("KJUMP_QEMU", QEMU),)
    if "KJUMP_QEMU" in os.environ or acceleration() == "kvm" or version_of(own) >= MENDED:
        return own
    try:
        words = suites.program(QEMU_SUITE, "qemu-system-x86", f"/usr/bin/{QEMU}")
        version_of(words)
    except (OSError, SystemExit, subprocess.SubprocessError) as error:
        print(f"guest: no newer QEMU to be had ({error}); this machine's is taken", flush=True)
        return own
    share = Path(words[-1]).parents[1] / "share"
    return (*words, "-L", f"{share}/qemu", "-L", f"{share}/seabios")


class Channel:
    """JSON lines in both directions: requests with an id, their answers, and everything else."""

    def __init__(
        self, other: Callable[[Message], None] | None = None, *, lossy: bool = False
    ) -> None:
        """`lossy`: requests may get lost, and are known by their id, so they are sent again."""
        self.socket, self.far_end = socket.socketpair()
        self.other = other
        self.lossy = lossy
        # An agent that was frozen may still owe an answer to the host of before the hibernation.
        self.ids = itertools.count(time.time_ns() // 1000)
        self.waiting: dict[int, queue.Queue[Message | None]] = {}
        self.lock = threading.Lock()
        self.open = True

    def begin(self) -> None:
        self.far_end.close()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        pending = b""
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.accept(line)
        with self.lock:
            self.open = False
            for answer in self.waiting.values():
                answer.put(None)

    def accept(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        # A terminal that is not in raw mode yet echoes our requests.
        if not isinstance(message, dict) or "op" in message:
            return
        waiting = self.waiting.get(message.get("id", 0))
        if waiting:
            waiting.put(message)
        elif self.other:
            self.other(message)

    def ask(self, message: Message, timeout: float) -> Message | None:
        """The answer; None when there is none in time, or none can come any more."""
        answer: queue.Queue[Message | None] = queue.Queue()
        end = time.monotonic() + timeout
        with self.lock:
            if not self.open:
                return None
            number = next(self.ids)
            self.waiting[number] = answer
        line = b"\n" + json.dumps({**message, "id": number}).encode() + b"\n"
        pause = AGAIN if self.lossy else timeout
        try:
            while True:
                with self.lock:
                    self.socket.sendall(line)
                try:
                    return answer.get(timeout=max(0, min(pause, end - time.monotonic())))
                except queue.Empty:
                    if time.monotonic() >= end:
                        return None
                pause *= 2
        except OSError:
            return None
        finally:
            del self.waiting[number]

    def close(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class Guest:
    """One power-on of a machine. Use it as a context manager: QEMU never outlives it."""

    def __init__(
        self,
        image: Image,
        shape: Shape | None = None,
        *,
        folder: Path | None = None,
        errors: DiskErrors | None = None,
        clock: float = 0,
        debug: bool = False,
        snapshot: Path | None = None,
    ) -> None:
        """`folder` keeps disk and logs (default: a temporary one); a disk that is there is used.

        `errors` are there from the power-on, `clock` seconds are added to the hardware clock,
        `debug` logs every interrupt and CPU reset (large).  `snapshot` is for `booted`.
        """
        self.image = image
        self.shape = shape or Shape()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kjump-guest-"))
        self.own_folder = folder is None
        self.errors = errors
        self.clock = clock
        self.debug = debug
        self.snapshot = snapshot
        self.events: list[Message] = []
        self.exit_reason: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.disk = self.folder / "disk.qcow2"
        self.root, self.user = Channel(lossy=True), Channel(lossy=True)
        self.monitor = Channel(self.noted)
        # What the console says is in its log; this end of it only takes that, and types.
        self.terminal = Channel()
        self.ready: set[bool] = set()
        self.nodes = itertools.count(1)
        self.seen = 0

    # -- power ------------------------------------------------------------------------------

    def command(self) -> list[str]:
        shape = self.shape
        accel = acceleration()
        cpu = "host" if accel == "kvm" else "max"
        if accel == "tcg":
            # An emulated "rep stosb" is 4096 steps for a page, "rep stosq" 512; a processor takes
            # equally long for both.  So the kernel is not told that strings of bytes are fast.
            cpu += ",erms=off,fsrm=off"
        cpu += f",la57={'on' if shape.la57 else 'off'},pdpe1gb={'on' if shape.huge else 'off'}"
        # Padded: the firmware's tables, and so the memory map, are alike whatever the words.
        words = shape.command_line().ljust(SMBIOS_WORDS).replace(",", ",,")
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + self.clock))
        disk = {
            "driver": "qcow2",
            "node-name": "disk",
            # The host's page cache outlives QEMU: flushing it to the host's disk tests nothing.
            "cache": {"no-flush": True, "direct": False},
            "file": {
                "driver": "file",
                "filename": str(self.disk),
                "cache": {"no-flush": True, "direct": False},
            },
        }
        devices = {
            "virtio": ["virtio-blk-pci,werror=report,rerror=report"],
            "ahci": ["ich9-ahci,id=ahci", "ide-hd,bus=ahci.0,werror=report,rerror=report"],
            "ide": ["ide-hd,bus=ide.0,werror=report,rerror=report"],
            "nvme": ["nvme"],
            "scsi": ["virtio-scsi-pci", "scsi-hd,werror=report,rerror=report"],
        }[shape.bus]
        devices[-1] += ",id=hd,drive=disk,serial=kjump,bootindex=0"
        noted = "int,cpu_reset" if self.debug else "cpu_reset"  # resets name triple faults
        clock = moment if self.clock else "utc"
        slots = f",slots={shape.slots},maxmem=8G" if shape.slots else ""
        command = (
            f"-nodefaults -no-user-config -display none -vga std "
            f"-machine {shape.machine} -accel {accel} -cpu {cpu} -smp {shape.cpus} "
            f"-m {shape.memory}{slots} -rtc clock=host,base={clock} -device virtio-rng-pci "
            f"-d {noted} -action reboot=shutdown,shutdown=poweroff,panic=shutdown"
        ).split()
        command = ["setpriv", "--pdeathsig", "KILL", *emulator(), *command]
        command += shape.nodes()
        command += ["-D", str(self.log("qemu")), "-blockdev", json.dumps(disk)]
        command += ["-smbios", f"type=1,sku={shape.kernel},family={words}"]
        log = f"logfile={self.log('console')},logappend=on"
        command += ["-chardev", f"socket,id=console,fd={self.terminal.far_end.fileno()},{log}"]
        command += ["-device", "isa-serial,chardev=console,index=0"]
        for table in shape.tables:
            command += ["-acpitable", f"file={table}"]
        if shape.watchdog:
            devices.append(shape.watchdog)
        for device in devices:
            command += ["-device", device]
        # The third port's usual interrupt is the first one's: give it one of its own.
        ports = {"root": "isa-serial,index=1", "user": "isa-serial,index=2,irq=7"}
        for name, device in ports.items():
            number = getattr(self, name).far_end.fileno()
            command += ["-chardev", f"socket,id={name},fd={number}"]
            command += ["-device", f"{device},chardev={name}"]
        command += ["-chardev", f"socket,id=monitor,fd={self.monitor.far_end.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        if self.snapshot:
            command += ["-incoming", f"exec:zstd -dcq {self.snapshot / 'memory'}"]
        if self.waits:
            command.append("-S")
        return command

    def log(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self.boot}.log"

    @property
    def waits(self) -> bool:
        """Whether the machine stands still until it was told to go on."""
        return bool(self.snapshot or self.errors or self.shape.prealloc)

    def start(self) -> Guest:
        self.powered_on = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.boot = len(list(self.folder.glob("console-*.log"))) + 1
        self.log("console").touch()
        if not self.disk.exists():
            below = self.snapshot / "disk.qcow2" if self.snapshot else self.image.path
            create_overlay(below, self.disk)
        channels = (self.root, self.user, self.monitor, self.terminal)
        with self.log("stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[channel.far_end.fileno() for channel in channels],
            )
        _running.add(self.process)
        for channel in channels:
            channel.begin()
        self.qmp("qmp_capabilities")
        if self.snapshot:
            self.wait_status("paused")
        if self.errors:
            self.fail_disk(self.errors)
        if self.waits:
            self.powered_on = time.monotonic()
            self.qmp("cont")
        if self.snapshot:
            # The guest's clock stood still since the snapshot was made.
            self.check(f"date --set=@{time.time() + self.clock:.3f}")
        return self

    @classmethod
    def booted(
        cls,
        image: Image,
        shape: Shape | None = None,
        *,
        work: int = 0,
        folder: Path | None = None,
        **options: Any,
    ) -> Guest:
        """A started guest with both agents there, and `work` MiB of user's work in progress.

        It goes on from a snapshot that is made when first asked for.  Guests of one snapshot share
        boot id and KASLR offsets.  NVMe cannot be part of a snapshot, so it is booted each time.
        """
        shape = shape or Shape()
        snapshot = None
        if shape.bus != "nvme":
            key = digest(
                repr((shape, work, acceleration())),
                cls.command,
                cls.make_snapshot,
                Shape,
                cls.version(),
            )
            snapshot = image.path.with_name(f"booted-{image.path.stem}-{key}")
            with snapshot.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not snapshot.exists():
                    cls.make_snapshot(image, shape, work, snapshot)
        guest = cls(image, shape, folder=folder, snapshot=snapshot, **options)
        try:
            guest.start()
            guest.wait_ready(user=True)
            if work and not snapshot:
                guest.start_work(work)
        except BaseException:
            guest.close()
            raise
        return guest

    @classmethod
    def make_snapshot(cls, image: Image, shape: Shape, work: int, result: Path) -> None:
        part = result.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with cls(image, shape, folder=part) as guest:
            guest.wait_ready(user=True)
            guest.run("systemctl is-system-running --wait", timeout=BOOT)
            if work:
                guest.start_work(work)
            guest.check("sync")
            guest.qmp("stop")
            guest.qmp("migrate", uri=f"exec:zstd -1 -q -T0 -o {part / 'memory'}")
            guest.wait_status("postmigrate")
            guest.qmp("quit")
            guest.wait_exit()
        for log in part.glob("*.log"):
            log.unlink()
        part.rename(result)

    @staticmethod
    def version() -> str:
        return said_version(emulator())

    def wait_status(self, status: str, deadline: float = 120) -> None:
        """Wait for a state of QEMU's run state machine."""
        end = time.monotonic() + deadline
        while (found := self.qmp("query-status")["status"]) != status:
            if time.monotonic() > end:
                raise self.error(f"QEMU is {found}, not {status}")
            time.sleep(0.1)

    def again(self, **changes: Any) -> Guest:
        """Power on the same machine again; `changes` are of its shape or of Guest's own options."""
        if self.process is None or self.process.poll() is None:
            raise GuestError("still switched on")
        options = {
            name: changes.pop(name) for name in ("errors", "clock", "debug") if name in changes
        }
        shape = replace(self.shape, **changes)
        guest = Guest(self.image, shape, folder=self.folder, **options)
        guest.own_folder, self.own_folder = self.own_folder, False
        return guest

    def wait_exit(self, deadline: float = 120) -> str:
        """Why the machine went off: poweroff, reset, triple-fault, panic, killed or died."""
        assert self.process
        try:
            self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self.error(f"still on after {deadline:.0f} s") from None
        return self.ended()

    def ended(self) -> str:
        assert self.process
        _running.discard(self.process)
        self.monitor.reader.join(5)
        if self.exit_reason is None:
            reasons = [
                event["data"]["reason"] for event in self.events if event["event"] == "SHUTDOWN"
            ]
            names = {"guest-shutdown": "poweroff", "guest-reset": "reset", "guest-panic": "panic"}
            self.exit_reason = names.get(reasons[-1], "killed") if reasons else "died"
            if self.exit_reason == "reset" and "Triple fault" in tail(self.log("qemu"), 200):
                self.exit_reason = "triple-fault"
        return self.exit_reason

    def kill(self) -> None:
        """A power loss: QEMU dies at once. What the guest had not flushed may be on disk or not."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.exit_reason = "killed"
        if self.process:
            self.ended()

    def close(self) -> None:
        self.kill()
        for channel in (self.root, self.user, self.monitor, self.terminal):
            channel.close()
        if self.own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Guest:
        return self if self.process else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # -- console ----------------------------------------------------------------------------

    def console(self) -> str:
        return self.log("console").read_text(errors="replace").replace("\r", "")

    def wait_console(self, pattern: str, deadline: float = BOOT) -> re.Match[str]:
        """Wait for a line of the console; each call goes on behind what the last one found."""
        end = time.monotonic() + deadline
        while True:
            was_running = self.running
            found = re.compile(pattern, re.MULTILINE).search(self.console(), self.seen)
            if found:
                self.seen = found.end()
                return found
            if not was_running:
                raise self.error(f"went off ({self.ended()}) before the console said {pattern!r}")
            if time.monotonic() > end:
                raise self.error(f"the console did not say {pattern!r} in {deadline:.0f} s")
            time.sleep(0.1)

    def type(self, text: str) -> None:
        """Type on the terminal that is connected to the serial console."""
        self.terminal.socket.sendall(text.encode())

    def press(self, key: str) -> None:
        """Press a key of the keyboard, by QEMU's name for it (``esc``, ``y``)."""
        self.qmp("send-key", keys=[{"type": "qcode", "data": key}])

    def error(self, text: str) -> GuestError:
        said = tail(self.log("stderr"), 10)
        if self.emulator_failed():
            text += f"\n{EMULATOR_FAILED}"
        return GuestError(
            f"guest {self.folder.name}, power-on {self.boot}: {text}\n"
            f"--- end of console ---\n{tail(self.log('console'), 40)}"
            + (f"\n--- QEMU ---\n{said}" if said else "")
            + (f"\n--- processors ---\n{where}" if (where := self.processors()) else "")
        )

    def processors(self) -> str:
        """Where each processor of a machine that is on is, and whether it sleeps (HLT)."""
        if not self.running:
            return ""
        arguments = {"command-line": "info registers -a"}
        question = {"execute": "human-monitor-command", "arguments": arguments}
        answer = self.monitor.ask(question, 10) or {}
        lines = str(answer.get("return", "")).splitlines()
        return "\n".join(line for line in lines if line.startswith(("CPU#", "RIP", "EIP")))

    def emulator_failed(self) -> bool:
        """Whether this power-on ended by a defect of QEMU, not of anything in the guest.

        Two emulated processors, one running what the other has just patched: before QEMU 8.1 the
        first may see the breakpoint of the kernel's text_poke_bp() after it is gone, and dies of
        it.  Mended by QEMU's deba78709a ("accel/tcg: Always lock pages before translation").

        Or an ordinary kernel, before which there was nothing of ours, stands still before it has
        started a program: seen once with QEMU 10.0 in some fifty boots; why is not known.
        """
        if "Assertion `" in tail(self.log("stderr"), 10):
            return True  # QEMU itself gave up: 10.0 in iotlb_to_section(), once in a hundred boots
        if acceleration() != "tcg" or self.shape.cpus < 2:
            return False
        console = self.console()
        first = self.boot == 1 and self.snapshot is None
        return ("Oops: int3" in console and version_of(emulator()) < MENDED) or (
            first and "Linux version" in console and "Run /init" not in console
        )

    # -- agents -----------------------------------------------------------------------------

    def wait_ready(self, deadline: float = BOOT, *, user: bool = False) -> None:
        """Wait until an agent answers: after a power-on, be it a boot or a resume."""
        if user in self.ready:
            return
        channel = self.user if user else self.root
        end = time.monotonic() + deadline
        while not channel.ask({"op": "ping"}, 1):
            if not self.running:
                raise self.error(f"went off ({self.ended()}) before its agent answered")
            if time.monotonic() > end:
                raise self.error(f"{'user' if user else 'root'}'s agent is silent")
        self.ready.add(user)

    def ask(self, message: Message, *, user: bool = False, timeout: float = 60) -> Message:
        self.wait_ready(user=user)
        answer = (self.user if user else self.root).ask(message, timeout)
        if answer is None:
            gone = "" if self.running else f"; went off ({self.ended()})"
            raise self.error(f"no answer in {timeout:.0f} s{gone} to {str(message)[:200]}")
        if "error" in answer:
            raise self.error(f"{answer['error']}, asked for {str(message)[:200]}")
        return answer

    def run(
        self, script: str, *, user: bool = False, timeout: float = 60, stdin: str = ""
    ) -> Result:
        """Run a shell script as root, or as the user in her session. rc 124: it took too long."""
        message = {"op": "run", "argv": shell(script), "timeout": timeout, "stdin": stdin}
        answer = self.ask(message, user=user, timeout=timeout + 20)
        return Result(answer["rc"], answer["out"], answer["err"])

    def check(
        self, script: str, *, user: bool = False, timeout: float = 60, stdin: str = ""
    ) -> str:
        """The output of a script that must succeed."""
        result = self.run(script, user=user, timeout=timeout, stdin=stdin)
        if result.rc:
            raise self.error(f"status {result.rc} from {script!r}:\n{result.out}{result.err}")
        return result.out

    def spawn(self, script: str, *, user: bool = False) -> int:
        """Start a script without waiting, such as one that hibernates; `job` tells about it."""
        return int(self.ask({"op": "spawn", "argv": shell(script)}, user=user)["job"])

    def job(self, number: int, *, user: bool = False) -> Result | None:
        """The result of a spawned script; None while it runs. Works across a hibernation."""
        answer = self.ask({"op": "job", "job": number}, user=user)
        if answer["rc"] is None:
            return None
        return Result(answer["rc"], answer["out"], answer["err"])

    def put(self, data: bytes, path: str, *, mode: int = 0o644, user: bool = False) -> None:
        for offset in range(0, max(len(data), 1), CHUNK):
            part = base64.b64encode(data[offset : offset + CHUNK]).decode()
            message = {"op": "put", "path": path, "offset": offset, "data": part, "mode": mode}
            self.ask(message, user=user)

    def get(self, path: str, *, user: bool = False) -> bytes:
        data = b""
        while True:
            message = {"op": "get", "path": path, "offset": len(data), "size": CHUNK}
            part = base64.b64decode(self.ask(message, user=user)["data"])
            data += part
            if len(part) < CHUNK:
                return data

    def work(self, *, deadline: float = 180) -> Message:
        """What work.py finds of the user's work, by name: {ok, detail}."""
        program = "python3 /usr/local/lib/kjtest/work.py"
        result = self.run(f"{program} check --json", user=True, timeout=deadline)
        if not result.out:
            raise self.error(f"work.py check: {result.err}")
        answers: Message = json.loads(result.out)
        drift = answers["clock"]["detail"]["wall"] - time.time() - self.clock
        answers["clock"] = {"ok": abs(drift) < 5, "detail": f"{drift:+.1f} s"}
        return answers

    def start_work(self, mb: int = 100, *, deadline: float = 180) -> None:
        program = "python3 /usr/local/lib/kjtest/work.py"
        self.check(f"{program} start --mb {mb}", user=True, timeout=deadline)

    def fill(self, words: str, *, deadline: float = 900) -> Message:
        """What ``fill.py`` answers to ``check``, ``ping`` or ``start ...``; see there."""
        program = "python3 /usr/local/lib/kjtest/fill.py"
        result = self.run(f"{program} {words}", user=True, timeout=deadline)
        if result.err or not result.out:
            raise self.error(f"fill.py {words}: {result.err}")
        answer: Any = json.loads(result.out)
        return answer if isinstance(answer, dict) else {"blocks": answer}

    # -- QEMU -------------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        answer = self.monitor.ask({"execute": command, "arguments": named}, 30)
        if answer is None or "error" in answer:
            raise self.error(f"QEMU's {command}: {answer['error'] if answer else 'no answer'}")
        return answer["return"]

    def noted(self, message: Message) -> None:
        if "event" in message:
            self.events.append(message)

    def wait_event(self, name: str, deadline: float = 60) -> Message:
        """Wait for an event of QEMU, such as SUSPEND."""
        end = time.monotonic() + deadline
        while time.monotonic() < end and self.running:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            time.sleep(0.05)
        raise self.error(f"no {name} in {deadline:.0f} s")

    def fail_disk(self, errors: DiskErrors) -> None:
        """From now on the disk has these errors, in place of those it had."""
        node = f"errors{next(self.nodes)}"
        options = {"driver": "blkdebug", "image": "disk", "inject-error": errors.rules()}
        self.qmp("blockdev-add", **{"node_name": node, **options})
        self.qmp("qom-set", path="/machine/peripheral/hd", property="drive", value=node)

    def heal_disk(self) -> None:
        self.qmp("qom-set", path="/machine/peripheral/hd", property="drive", value="disk")

    def slow_disk(self, rate: int) -> None:
        """Limit the disk to `rate` bytes a second; 0 lifts the limit."""
        zero = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        # For virtio the disk is a part of the PCI device.
        path = "/machine/peripheral/hd" + ("/virtio-backend" if self.shape.bus == "virtio" else "")
        # These arguments are spelt with underscores.
        message = {"id": path, "bps": rate, **zero}
        answer = self.monitor.ask({"execute": "block_set_io_throttle", "arguments": message}, 30)
        if answer is None or "error" in answer:
            raise self.error(f"QEMU's throttle: {answer}")

    def screenshot(self, path: Path) -> None:
        self.qmp("screendump", filename=str(path), format="png")


def shell(script: str) -> list[str]:
    return ["bash", "-c", script]


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, without terminal escapes."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        text = file.read().decode(errors="replace").replace("\r", "")
    return "\n".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()[-lines:])


def create_overlay(backing: Path, overlay: Path) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing)]
    subprocess.run([*command, str(overlay)], check=True)

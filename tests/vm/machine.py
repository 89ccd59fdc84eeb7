# SPDX-License-Identifier: GPL-2.0-or-later
"""One power-on of a machine in QEMU: how it is put together, switched on, watched, and ends.

Runs on the host.  What runs in the guest and answers from there is guest.py's business.
"""

from __future__ import annotations

import atexit
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .channel import Channel, Message, Monitor
from .emulator import (
    EMULATOR_FAILED,
    MENDED,
    acceleration,
    emulator,
    give_up_kvm,
    version_of,
    version_text,
)
from .errors import EmulatorFailed, GuestError
from .image import Image
from .shape import DiskErrors, Shape

BOOT = 240.0  # seconds until the agents answer, at the slowest, in software emulation
SMBIOS_WORDS = 400

_running: set[subprocess.Popen[bytes]] = set()


@atexit.register
def _kill_all() -> None:
    for process in list(_running):
        process.kill()


class Machine:
    """One power-on of a machine."""

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
        self.accel = acceleration()
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
        self.monitor = Monitor(self.on_event, self.on_broken)
        self.broken = False  # QEMU has stopped the machine because it cannot go on
        # What the console says is in its log; this end of it only takes that, and types.
        self.terminal = Channel()
        self.ready: set[bool] = set()  # agents that have answered; True is the user's
        self.nodes = itertools.count(1)
        self.seen = 0

    # -- power ------------------------------------------------------------------------------

    def command(self) -> list[str]:
        shape = self.shape
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
        logged = "int,cpu_reset" if self.debug else "cpu_reset"  # resets name triple faults
        clock = moment if self.clock else "utc"
        slots = f",slots={shape.slots},maxmem=8G" if shape.slots else ""
        command = (
            f"-nodefaults -no-user-config -display none -vga std "
            f"-machine {shape.machine} -accel {self.accel} -cpu {shape.cpu(self.accel)} "
            f"-smp {shape.cpus} "
            f"-m {shape.memory}{slots} -rtc clock=host,base={clock} -device virtio-rng-pci "
            f"-d {logged} -action reboot=shutdown,shutdown=poweroff,panic=shutdown"
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
        for device in shape.devices():
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
        """Whether the machine stands still until QEMU's `cont`."""
        return bool(self.snapshot or self.errors or self.shape.prealloc)

    def start(self) -> Self:
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
        self.monitor.look()  # there were no events before this
        if self.snapshot:
            self.wait_status("paused")
        if self.errors:
            self.fail_disk(self.errors)
        if self.waits:
            self.powered_on = time.monotonic()
            self.qmp("cont")
        return self

    @staticmethod
    def version() -> str:
        return version_text(emulator())

    def wait_status(self, status: str, deadline: float = 120) -> None:
        """Wait for a state of QEMU's run state machine."""
        end = time.monotonic() + deadline
        while (found := self.qmp("query-status")["status"]) != status:
            if time.monotonic() > end:
                raise self.error(f"QEMU is {found}, not {status}")
            time.sleep(0.1)

    def wait_exit(self, deadline: float = 120) -> str:
        """Why the machine went off: poweroff, reset, triple-fault, panic, killed or died.

        Raises `GuestError`; `EmulatorFailed` if QEMU stopped it because it cannot go on.
        """
        assert self.process
        try:
            self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise self.error(f"still on after {deadline:.0f} s") from None
        if self.broken:
            raise self.error("QEMU stopped it with an internal error")
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

    def __enter__(self) -> Self:
        try:
            return self if self.process else self.start()
        except BaseException:
            self.close()
            raise

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

    # -- console and errors -----------------------------------------------------------------

    def console(self) -> str:
        return self.log("console").read_text(errors="replace").replace("\r", "")

    def error(self, text: str) -> GuestError:
        """The error to raise: this text, and all that helps to understand it."""
        said = tail(self.log("stderr"), 10)
        kind: type[GuestError] = GuestError
        if self.emulator_failed():
            kind = EmulatorFailed
            text += f"\n{EMULATOR_FAILED}"
            if self.accel == "kvm":
                give_up_kvm("the emulator failed" if self.failed() else "it never booted")
        return kind(
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
        started a program: seen once with QEMU 10.0 in some fifty boots; why is not known.  A KVM
        that cannot run a Linux kernel may even stand still in GRUB.
        """
        if self.failed():
            return True
        console = self.console()
        first = self.boot == 1 and self.snapshot is None
        stuck = first and "Run /init" not in console
        if self.accel == "kvm":
            return stuck
        if self.accel != "tcg" or self.shape.cpus < 2:
            return False
        return ("Oops: int3" in console and version_of(emulator()) < MENDED) or (
            stuck and "Linux version" in console
        )

    def failed(self) -> bool:
        """Whether QEMU itself gave up: 10.0 in iotlb_to_section(), once in a hundred boots."""
        return self.broken or "Assertion `" in tail(self.log("stderr"), 10)

    # -- QEMU's monitor ---------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        answer = self.monitor.ask({"execute": command, "arguments": named}, 30)
        if answer is None or "error" in answer:
            raise self.error(f"QEMU's {command}: {answer['error'] if answer else 'no answer'}")
        return answer["return"]

    def on_event(self, message: Message) -> None:
        self.events.append(message)

    def on_broken(self) -> None:
        """End what cannot go on, so that nobody waits for it until a deadline."""
        self.broken = True
        if self.accel == "kvm":
            give_up_kvm("internal error")
        if self.process:
            self.process.kill()

    def fail_disk(self, errors: DiskErrors) -> None:
        """From now on the disk has these errors, in place of those it had."""
        node = f"errors{next(self.nodes)}"
        options = {"driver": "blkdebug", "image": "disk", "inject-error": errors.rules()}
        self.qmp("blockdev-add", **{"node_name": node, **options})
        self.qmp("qom-set", path="/machine/peripheral/hd", property="drive", value=node)


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

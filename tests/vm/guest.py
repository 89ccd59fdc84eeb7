# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest in QEMU: one `Guest` is one power-on of the machine, and the agents that answer from it.

Runs on the host.  The guest's disk is an overlay in the guest's folder, so a power-off and power-on
is the end of one Guest and `guest.again()`.  QEMU has a QMP channel and two serial ports with an
agent behind each: root's, and one inside the ordinary user's own session (see agent.py).  Kernel
and systemd write to a third port, kept as a log file.  Every wait has a deadline, and an error
always shows the end of that log.

The thread that starts a guest must live as long as it: QEMU dies with that thread, so that nothing
is left running when a test is killed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from .cache import digest
from .channel import Message
from .emulator import acceleration
from .errors import GuestError
from .image import Image
from .machine import BOOT, Machine, tail
from .shape import DiskErrors, Shape

__all__ = ["DiskErrors", "Guest", "GuestError", "Message", "Result", "Shape", "tail"]

CHUNK = 24 * 1024  # of a file per message: the guest's tty buffers no more than 64 KiB


@dataclass(frozen=True)
class Result:
    rc: int
    out: str
    err: str


class Guest(Machine):
    """A machine with agents in it. Use it as a context manager: QEMU never outlives it."""

    # -- power ------------------------------------------------------------------------------

    def start(self) -> Self:
        super().start()
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
                Machine.command,
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

    # -- hands and eyes ---------------------------------------------------------------------

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

    def screenshot(self, path: Path) -> None:
        self.qmp("screendump", filename=str(path), format="png")

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
        """Start a script without waiting, such as one that hibernates; `job` returns its result."""
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


def shell(script: str) -> list[str]:
    return ["bash", "-c", script]

#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for qemu-system-x86_64 in tests/unit/test_emulator.py.

It boots nothing.  It writes to the console what a guest would write, speaks QMP on the monitor, and
answers as the agents do.  KJUMP_STAND_IN says what happens to a Linux kernel with ``-accel kvm``:

    works           it boots
    hangs           nothing is ever written
    dies            QEMU exits
    aborts          QEMU fails an assertion
    internal-error  QEMU stops the machine, as KVM does not know how to go on
    breaks-later    the same, but only once an agent has been asked to run something

Firmware alone always works, and so does everything with ``-accel tcg``.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

KERNEL = "Linux version 6.12.0\n"
NO_ROOT = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"


def options() -> dict[str, list[str]]:
    """The values of each option on the command line."""
    found: dict[str, list[str]] = {}
    for word, value in zip(sys.argv[1:], [*sys.argv[2:], "-"], strict=True):
        if word.startswith("-") and word != "-":
            found.setdefault(word, []).append(value)
    return found


class Machine:
    def __init__(self, given: dict[str, list[str]], fate: str) -> None:
        self.fate = fate
        self.status = "running"
        self.console = Path(os.devnull)
        self.lines: dict[str, socket.socket] = {}
        for text in given["-chardev"]:
            fields = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
            if fields["id"] == "console":
                self.console = Path(fields.get("logfile") or fields["path"])
            if "fd" in fields:
                self.lines[fields["id"]] = socket.socket(fileno=int(fields["fd"]))

    def send(self, line: str, message: dict[str, Any]) -> None:
        self.lines[line].sendall(json.dumps(message).encode() + b"\r\n")

    def give_up(self) -> None:
        """What QEMU does when KVM_RUN ends with KVM_EXIT_INTERNAL_ERROR."""
        print("KVM internal error. Suberror: 1", file=sys.stderr, flush=True)
        self.status = "internal-error"
        self.send("monitor", {"event": "STOP", "timestamp": {}})

    def execute(self, message: dict[str, Any]) -> None:
        answers = {"query-status": {"status": self.status, "running": self.status == "running"}}
        answer = answers.get(message["execute"], {})
        self.send("monitor", {"return": answer, "id": message["id"]})
        if message["execute"] == "quit":
            self.send("monitor", {"event": "SHUTDOWN", "data": {"reason": "host-qmp-quit"}})
            sys.exit()
        if message["execute"] == "qmp_capabilities" and self.fate == "internal-error":
            self.give_up()

    def answer(self, line: str, message: dict[str, Any]) -> None:
        if message["op"] == "run" and self.fate == "breaks-later":
            self.give_up()
        elif self.status == "running" and self.fate != "hangs":
            self.send(line, {"id": message["id"], "rc": 0, "out": "done\n", "err": ""})

    def run(self, text: str) -> None:
        self.send("monitor", {"QMP": {}})
        if self.fate in ("works", "breaks-later"):
            with self.console.open("a") as file:
                file.write(text)
        for line in self.lines.values():
            line.setblocking(False)
        while True:
            for name, line in self.lines.items():
                try:
                    data = line.recv(65536)
                except BlockingIOError:
                    continue
                if not data:
                    sys.exit()
                for part in re.findall(rb"\{.*\}", data):
                    message = json.loads(part)
                    self.execute(message) if name == "monitor" else self.answer(name, message)
            time.sleep(0.01)


def main() -> None:
    if "--version" in sys.argv:
        print("QEMU emulator version 99.1.0")
        return
    given = options()
    kvm = given["-accel"][0].startswith("kvm")
    fate = os.environ.get("KJUMP_STAND_IN", "works") if kvm else "works"
    alone = "-kernel" in given
    if not alone and "-blockdev" not in given:
        return  # the firmware finds nothing to boot, and resets
    if fate == "dies":
        sys.exit("qemu-system-x86_64: failed to set MSR 0x10a")
    if fate == "aborts":
        sys.exit("kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == nmsrs' failed.")
    Machine(given, fate).run(KERNEL + (NO_ROOT if alone else "Run /init as init process\n"))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host talks to a guest: JSON lines to an agent in it, or to QEMU's monitor.

Runs on the host.  Never starts or ends a guest.
"""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

AGAIN = 5.0  # seconds without an answer, after which an agent is asked again; then twice as many
STATUS = 30.0  # seconds until QEMU says what state the machine is in, at the slowest


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


class Monitor(Channel):
    """QEMU's machine protocol (QMP): commands with their answers, and events."""

    def __init__(self, event: Callable[[Message], None], broken: Callable[[], None]) -> None:
        """`event` gets each event.  `broken` is called when QEMU has stopped the machine because
        it cannot go on, as after a "KVM internal error"; in a thread of its own."""
        super().__init__(self.receive)
        self.event = event
        self.broken = broken

    def receive(self, message: Message) -> None:
        if "event" not in message:
            return
        self.event(message)
        if message["event"] == "STOP":
            # Only another thread can wait for an answer: this one reads it.
            threading.Thread(target=self.look, daemon=True).start()

    def look(self) -> None:
        """Find out whether QEMU has stopped the machine because it cannot go on."""
        answer = self.ask({"execute": "query-status"}, STATUS) or {}
        if answer.get("return", {}).get("status") == "internal-error":
            self.broken()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest: does what the host asks for over a serial port.

One JSON object a line in each direction.  The host sends {"id": N, "op": ...}; the answer has the
same id.  A line that is no such object is dropped: after a power loss or a resume either side may
see half a line.  Every answer starts with a newline of its own, so that junk before it stays a
line by itself.  Each request has its own thread: a command that hangs holds up nothing else.

Hibernation freezes this process and lets it go on under a new QEMU with a new socket; nothing
here has to notice.  But what comes while the machine is in another kernel is lost in part: the
session's driver clears the port's queues when it wakes up.  So the host sends a request again that
is not answered, and what was asked already is not done twice.

usage: agent.py DEVICE
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from typing import Any

Message = dict[str, Any]
KEPT = 8  # answers, for hosts that did not hear them


class Agent:
    def __init__(self, device: str) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.fd)
        attributes = termios.tcgetattr(self.fd)
        attributes[2] |= termios.CLOCAL
        attributes[4] = attributes[5] = termios.B115200
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)
        self.writing = threading.Lock()
        self.jobs: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
        self.lock = threading.Lock()
        self.answers: dict[int, bytes] = {}  # by the request's id; empty while it is worked on

    def serve(self) -> None:
        pending = b""
        while True:
            pending += os.read(self.fd, 65536)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self.accept(line)

    def accept(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            return
        if not isinstance(request, dict) or "id" not in request or "op" not in request:
            return
        with self.lock:
            answer = self.answers.get(request["id"])
            if answer is None:
                self.answers[request["id"]] = b""
        if answer is None:
            threading.Thread(target=self.handle, args=(request,), daemon=True).start()
        elif answer:
            # Not by this thread: the host may want to be read from before it reads on.
            threading.Thread(target=self.send, args=(answer,), daemon=True).start()

    def handle(self, request: Message) -> None:
        try:
            answer = getattr(self, "op_" + str(request["op"]))(request)
        except Exception as error:  # noqa: BLE001 (the host gets it; the agent lives on)
            answer = {"error": f"{type(error).__name__}: {error}"}
        line = b"\n" + json.dumps({"id": request["id"], **answer}).encode() + b"\n"
        with self.lock:
            self.answers[request["id"]] = line
            done = [number for number, answer in self.answers.items() if answer]
            for number in done[:-KEPT]:
                del self.answers[number]
        self.send(line)

    def send(self, line: bytes) -> None:
        with self.writing:
            while line:
                line = line[os.write(self.fd, line) :]

    def op_ping(self, _request: Message) -> Message:
        return {"pid": os.getpid(), "uid": os.getuid(), "time": time.time()}

    def op_run(self, request: Message) -> Message:
        """Run a command to its end; a time-out kills its whole process group (rc 124)."""
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stdin = str(request.get("stdin", "")).encode()
        try:
            out, err = process.communicate(stdin, timeout=request.get("timeout"))
            rc = process.returncode
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A grandchild in another process group may still hold the pipes: wait for it a little.
            try:
                out, err = process.communicate(timeout=2)
            except subprocess.TimeoutExpired:
                out, err = b"", b"(output lost: a child still holds the pipe)"
            rc = 124
        return {"rc": rc, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}

    def op_spawn(self, request: Message) -> Message:
        """Start a command and do not wait; its output goes to a file."""
        fd, path = tempfile.mkstemp(prefix="job-")
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(fd)
        self.jobs[process.pid] = (process, path)
        return {"job": process.pid}

    def op_job(self, request: Message) -> Message:
        """What a spawned command has said so far, and its exit status (None: it still runs)."""
        process, path = self.jobs[request["job"]]
        rc = process.poll()
        with open(path, errors="replace") as output:
            return {"rc": rc, "out": output.read(), "err": ""}

    def op_put(self, request: Message) -> Message:
        with open(request["path"], "ab" if request["offset"] else "wb") as file:
            file.write(base64.b64decode(request["data"]))
        if "mode" in request:
            os.chmod(request["path"], request["mode"])
        return {}

    def op_get(self, request: Message) -> Message:
        with open(request["path"], "rb") as file:
            file.seek(request["offset"])
            return {"data": base64.b64encode(file.read(request["size"])).decode()}


if __name__ == "__main__":
    Agent(sys.argv[1]).serve()

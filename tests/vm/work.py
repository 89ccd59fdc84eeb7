# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest: a user's work in progress, to be found unharmed after a hibernation.

`start`, as the user, in her session, leaves a process that holds what can be lost: memory,
a deleted file that is still open, a file on tmpfs, a TCP connection, a timer, and an editor in a
terminal multiplexer with text that nobody saved.  What each should look like is remembered in that
process alone, so it must come back too.  `check` asks it, and looks at the disk itself.

usage: work.py start [--mb N]
       work.py check [--json]
       work.py stop
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RUNTIME = Path(f"/run/user/{os.getuid()}")
SOCKET = RUNTIME / "kjtest-work"
LETTER = Path.home() / "letter.txt"
TEXT = "Dear Bob, nobody has saved this yet."
TMUX = ["tmux", "-L", "kjtest"]
BIG_FILE = Path(sys.executable).resolve()

Answer = dict[str, Any]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def cpus_online() -> str:
    return Path("/sys/devices/system/cpu/online").read_text().strip()


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def uncached(path: Path) -> bytes:
    """The file's content, from the disk as far as an ordinary user can ask for that."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def capture() -> str:
    """What the editor's terminal shows."""
    command = [*TMUX, "capture-pane", "-p", "-t", "editor"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class Work:
    """Lives in one process from `start` on; `answer` is all that anybody may ask of it."""

    def __init__(self, mb: int) -> None:
        self.boot_id = boot_id()
        self.cpus = cpus_online()
        self.program = digest(uncached(BIG_FILE))
        self.memory = bytearray()
        for _ in range(mb):
            self.memory += os.urandom(1 << 20)
        self.memory_digest = digest(self.memory)

        with tempfile.NamedTemporaryFile(dir=Path.home(), delete=False) as file:
            self.deleted = os.dup(file.fileno())
        os.unlink(file.name)
        self.deleted_content = os.urandom(1 << 20)
        os.pwrite(self.deleted, self.deleted_content, 0)

        self.tmpfs = RUNTIME / "kjtest-file"
        self.tmpfs.write_bytes(os.urandom(1 << 20))
        self.tmpfs_digest = digest(self.tmpfs.read_bytes())

        self.counter = 0
        self.echoed = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.server_pid = os.fork()
        if self.server_pid == 0:
            serve_echo(listener)
        self.connection = socket.create_connection(listener.getsockname())
        listener.close()
        self.port = self.connection.getsockname()[1]
        threading.Thread(target=self.talk, daemon=True).start()

        self.ticks = 0
        signal.signal(signal.SIGALRM, self.tick)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)

        LETTER.unlink(missing_ok=True)
        subprocess.run(
            [*TMUX, "new-session", "-d", "-s", "editor", "-x", "80", "-y", "24", "nano", LETTER],
            check=True,
        )
        # nano shows its help lines once it takes keys.
        deadline = time.monotonic() + 60
        while "Exit" not in capture() and time.monotonic() < deadline:
            time.sleep(0.2)
        subprocess.run([*TMUX, "send-keys", "-t", "editor", "-l", TEXT], check=True)
        while TEXT not in capture() and time.monotonic() < deadline:
            time.sleep(0.2)

    def tick(self, *_: object) -> None:
        self.ticks += 1

    def talk(self) -> None:
        with contextlib.suppress(OSError), self.connection.makefile("rw") as stream:
            while True:
                self.counter += 1
                stream.write(f"{self.counter}\n")
                stream.flush()
                line = stream.readline()
                if not line or int(line) != self.counter:
                    return
                self.echoed = self.counter
                time.sleep(0.1)

    def answer(self) -> Answer:
        def entry(ok: bool, detail: object) -> Answer:
            return {"ok": ok, "detail": detail}

        ticks, echoed = self.ticks, self.echoed
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (self.ticks < ticks + 3 or self.echoed < echoed + 3):
            time.sleep(0.1)
        answers = {
            "timer": entry(self.ticks >= ticks + 3, f"{ticks} then {self.ticks} ticks"),
            "tcp": entry(
                self.echoed >= echoed + 3
                and self.connection.getsockname()[1] == self.port
                and Path(f"/proc/{self.server_pid}/stat").exists(),
                f"port {self.port}, server {self.server_pid}, {echoed} then {self.echoed} echoed",
            ),
            "boot_id": entry(boot_id() == self.boot_id, f"{boot_id()}, was {self.boot_id}"),
            "cpus": entry(cpus_online() == self.cpus, f"{cpus_online()}, was {self.cpus}"),
            "memory": entry(
                digest(self.memory) == self.memory_digest, f"{len(self.memory) >> 20} MiB"
            ),
        }
        try:
            same = os.pread(self.deleted, len(self.deleted_content), 0) == self.deleted_content
            mark = os.urandom(64)
            end = os.fstat(self.deleted).st_size
            os.pwrite(self.deleted, mark, end)
            os.fsync(self.deleted)
            written = os.pread(self.deleted, 64, end) == mark
            answers["deleted_file"] = entry(same and written, f"{same=} {written=}")
        except OSError as error:
            answers["deleted_file"] = entry(False, str(error))
        try:
            same = digest(self.tmpfs.read_bytes()) == self.tmpfs_digest
            answers["tmpfs_file"] = entry(same, str(self.tmpfs))
        except OSError as error:
            answers["tmpfs_file"] = entry(False, str(error))
        screen = capture()
        # nano marks an unsaved buffer in its title: by a star where there is no room for the word.
        title = screen.partition("\n")[0]
        unsaved = TEXT in screen and re.search(r"(\*|Modified)$", title.rstrip()) is not None
        unsaved = unsaved and not LETTER.exists()
        answers["editor"] = entry(unsaved, "unsaved text" if unsaved else screen)
        try:
            page = os.urandom(1 << 20)
            probe = Path.home() / "disk-probe"
            with probe.open("wb") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            written = uncached(probe) == page
            same = digest(uncached(BIG_FILE)) == self.program
            answers["disk"] = entry(written and same, f"{written=} {same=}")
        except OSError as error:
            answers["disk"] = entry(False, str(error))
        return answers


def serve_echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    listener.close()
    with contextlib.suppress(OSError), connection.makefile("rw") as stream:
        for line in stream:
            stream.write(line)
            stream.flush()
    os._exit(0)


def start(mb: int) -> int:
    """Fork the holder; return once it has everything."""
    if ask("ping"):
        print("already started", file=sys.stderr)
        return 1
    SOCKET.unlink(missing_ok=True)
    ready, told = os.pipe()
    if os.fork() > 0:
        os.close(told)
        failure = os.read(ready, 4096)
        if failure != b"ready":
            print(failure.decode() or "the work died at its start", file=sys.stderr)
            return 1
        return 0
    os.close(ready)
    os.setsid()
    log = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(log, fd)
    try:
        work = Work(mb)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(SOCKET))
        listener.listen()
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}"[:4096].encode())
        raise
    os.write(told, b"ready")
    os.close(told)
    threading.Thread(target=answer_all, args=(work, listener), daemon=True).start()
    while True:
        signal.pause()  # Python runs the timer's handler in this thread


def answer_all(work: Work, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            question = connection.recv(16)
            if question == b"check":
                connection.sendall(json.dumps(work.answer()).encode())
            elif question == b"stop":
                subprocess.run([*TMUX, "kill-server"], check=False)
                os.kill(work.server_pid, signal.SIGTERM)
                os._exit(0)
            else:
                connection.sendall(b"{}")


def ask(question: str) -> str:
    """The holder's answer; empty where there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(300)
        try:
            connection.connect(str(SOCKET))
            connection.sendall(question.encode())
            with connection.makefile() as stream:
                return stream.read()
        except OSError:
            return ""


def check(as_json: bool) -> int:
    before = time.time()
    answers: dict[str, Answer] = json.loads(
        ask("check") or '{"work": {"ok": false, "detail": "the work is gone"}}'
    )
    # Whether the time is right, only the host can say.
    answers["clock"] = {"ok": time.time() >= before, "detail": {"wall": time.time()}}
    if as_json:
        print(json.dumps(answers))
    else:
        for name, answer in answers.items():
            print(f"{'ok  ' if answer['ok'] else 'LOST'} {name:12} {answer['detail']}")
    return 0 if all(answer["ok"] for answer in answers.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start").add_argument("--mb", type=int, default=100)
    commands.add_parser("check").add_argument("--json", action="store_true")
    commands.add_parser("stop")
    arguments = parser.parse_args()
    if arguments.command == "start":
        return start(arguments.mb)
    if arguments.command == "check":
        return check(arguments.json)
    ask("stop")
    return 0


if __name__ == "__main__":
    sys.exit(main())

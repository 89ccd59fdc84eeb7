# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest: fills memory with pages that are known, to be found unharmed later.

`start`, as the user, in her session, leaves a process that holds anonymous memory of a wanted size
and compressibility.  `check` has it compare every MiB with what it must be, and names the first
that is not; that takes hardly any memory, so it works where memory is full.  What each block must
hold is remembered in that process alone, so it must come back too.

Nothing is locked, and nothing is left on disk.

usage: fill.py start (--mib N | --until-available MIB) [--random SHARE] [--zeros SHARE]
       fill.py check | stop
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

MIB = 1 << 20
SOCKET = Path(f"/run/user/{os.getuid()}/kjtest-fill")
RANDOM, TEXT, ZEROS = "random", "text", "zeros"
BASES = {RANDOM: 64, TEXT: 16, ZEROS: 1}
"""MiB of what blocks are made of.  Random: nothing compresses it; blocks that lie near one another
show different parts of it.  Text: 3:1 with zstd -1.  Zeros: all of a block but its first bytes."""
SHIFT = 8 * 4099
"""Bytes by which a base is turned each time it is used up: no two pages of all blocks are alike."""
STAMP = 16
NEAR = 96
"""MiB from the goal where available memory is asked for at each block."""

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def available() -> int:
    """MemAvailable in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    raise OSError("/proc/meminfo has no MemAvailable")


def text(size: int) -> bytes:
    """Words as they come in prose: few of them often, most of them rarely."""
    letters = b"etaoinshrdlucmfwypvbgkjqxzetaoinshrdluetaoinshreta"
    seed = os.urandom(8 * 2048)
    vocabulary = [
        bytes(letters[b % len(letters)] for b in seed[8 * n : 8 * n + 2 + n % 7]) + b" "
        for n in range(2048)
    ]
    # 65536 draws: word n has a share like 1/(n+1), as Zipf found it.
    total = sum(1 / (n + 1) for n in range(2048))
    draws: list[bytes] = []
    for n, word in enumerate(vocabulary):
        draws += [word] * max(1, round(65536 / (n + 1) / total))
    draws += [vocabulary[0]] * (65536 - len(draws))
    out = bytearray()
    while len(out) < size:
        out += b"".join(map(draws.__getitem__, array.array("H", os.urandom(256 << 10))))
    return bytes(out[:size])


def is_one(number: int, share: float) -> bool:
    """Whether this block is one of `share` of all, evenly spread."""
    return int((number + 1) * share) > int(number * share)


def kind_of(number: int, random: float, zeros: float) -> str:
    """What a block is made of; ``random``: the share of those that are not of zeros."""
    if is_one(number, zeros):
        return ZEROS
    return RANDOM if is_one(number - int(number * zeros), random) else TEXT


def part(number: int, size: int) -> tuple[int, int]:
    """Where a block's content begins in its base of `size` MiB, and how much comes from there;
    the rest comes from the base's start.  Bytes."""
    turn, place = divmod(number, size)
    begin = (place * MIB + turn * SHIFT) % (size * MIB)
    return begin, min(MIB, size * MIB - begin)


def stamp(number: int) -> bytes:
    """The first bytes of a block."""
    return b"kjump%011d" % number


class Fill:
    """The blocks, in one process from `start` on."""

    def __init__(self, random: float, zeros: float) -> None:
        self.shares = (random, zeros)
        self.blocks = 0
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.room = total // MIB
        self.memory = anonymous(self.room)
        self.bases: dict[str, mmap.mmap] = {}
        used = {kind_of(number, *self.shares) for number in range(1000)}
        made = {RANDOM: os.urandom, TEXT: text, ZEROS: bytes}
        for kind in used:
            base = anonymous(BASES[kind])
            for at in range(0, len(base), MIB):
                base[at : at + MIB] = made[kind](MIB)
            self.bases[kind] = base
        self.sums = {kind: zlib.crc32(base) for kind, base in self.bases.items()}

    def base_of(self, number: int) -> tuple[str, int, int]:
        """What a block is made of, and what `part` says."""
        kind = kind_of(number, *self.shares)
        return kind, *part(number, BASES[kind])

    def add(self) -> None:
        """One block more."""
        kind, begin, first = self.base_of(self.blocks)
        at = self.blocks * MIB
        with memoryview(self.bases[kind]) as view:
            self.memory[at : at + first] = view[begin : begin + first]
            if first < MIB:
                self.memory[at + first : at + MIB] = view[: MIB - first]
        self.memory[at : at + STAMP] = stamp(self.blocks)
        self.blocks += 1

    def grow(self, mib: int) -> None:
        while self.blocks < mib:
            self.add()

    def grow_until(self, left: int) -> None:
        """Until no more than `left` MiB are available."""
        while self.blocks < self.room:
            spare = available() - left
            if spare <= 0:
                break
            for _ in range(min(16 if spare > NEAR else 1, self.room - self.blocks)):
                self.add()

    def wrong(self) -> str | None:
        """The first thing that is not as it must be, or None."""
        for kind, base in self.bases.items():
            if zlib.crc32(base) != self.sums[kind]:
                return f"the base of {kind} is damaged"
        ours = address(self.memory)
        starts = {kind: address(base) for kind, base in self.bases.items()}
        for number in range(self.blocks):
            kind, begin, first = self.base_of(number)
            at_base = starts[kind]
            at = ours + number * MIB
            same = (
                ctypes.string_at(at, STAMP) == stamp(number)
                and _memcmp(at + STAMP, at_base + begin + STAMP, first - STAMP) == 0
                and (first == MIB or _memcmp(at + first, at_base, MIB - first) == 0)
            )
            if not same:
                return f"block {number} of {self.blocks} is damaged"
        return None

    def answer(self) -> dict[str, Any]:
        wrong = self.wrong()
        return {"ok": wrong is None, "blocks": self.blocks, "wrong": wrong}


def anonymous(size: int) -> mmap.mmap:
    """So many MiB, of which each page takes memory once it is written to."""
    return mmap.mmap(-1, size * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address(area: mmap.mmap) -> int:
    """Where it lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def serve(fill: Fill, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            question = connection.recv(16)
            if question == b"stop":
                SOCKET.unlink(missing_ok=True)
                os._exit(0)
            answer = fill.answer() if question == b"check" else {"blocks": fill.blocks}
            connection.sendall(json.dumps(answer).encode())


def start(options: argparse.Namespace) -> int:
    """Fork the holder; return once memory is full."""
    if ask("ping"):
        print("already started", file=sys.stderr)
        return 1
    SOCKET.unlink(missing_ok=True)
    ready, told = os.pipe()
    if os.fork() > 0:
        os.close(told)
        failure = os.read(ready, 4096)
        if failure.startswith(b"ready"):
            print(failure.split()[1].decode())
            return 0
        print(failure.decode() or "the fill died at its start", file=sys.stderr)
        return 1
    os.close(ready)
    os.setsid()
    log = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(log, fd)
    try:
        fill = Fill(options.random, options.zeros)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(SOCKET))
        listener.listen()
        threading.Thread(target=serve, args=(fill, listener), daemon=True).start()
        if options.mib is None:
            fill.grow_until(options.until_available)
        else:
            fill.grow(options.mib)
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}"[:4096].encode())
        raise
    os.write(told, b"ready %d" % fill.blocks)
    os.close(told)
    while True:
        signal.pause()


def ask(question: str) -> str:
    """The holder's answer; empty where there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(600)
        try:
            connection.connect(str(SOCKET))
            connection.sendall(question.encode())
            with connection.makefile() as stream:
                return stream.read()
        except OSError:
            return ""


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    starter = commands.add_parser("start")
    amount = starter.add_mutually_exclusive_group(required=True)
    amount.add_argument("--mib", type=int)
    amount.add_argument("--until-available", type=int)
    starter.add_argument("--random", type=float, default=1.0, help="share of what is random")
    starter.add_argument("--zeros", type=float, default=0.0, help="share of what is zeros")
    for name in ("check", "ping", "stop"):
        commands.add_parser(name)
    options = parser.parse_args()
    if options.command == "start":
        return start(options)
    said = ask(options.command)
    if options.command == "stop":
        return 0
    print(said or '{"ok": false, "wrong": "the fill is gone"}')
    return 0 if said and json.loads(said).get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Which keys are pressed, and what is no key."""

from __future__ import annotations

import os
import pty
import termios
from pathlib import Path

import pytest

from kjump.console import keys, lines
from kjump.console.keys import ESC, POWER, Keys


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x1b", [ESC]),
        (b"\x1b\x1b", [ESC, ESC]),
        (b"y", ["y"]),
        (b"x\x1b", ["x", ESC]),
        (b"\x1b[A", []),
        (b"\x1b[A\x1b", [ESC]),
        (b"\x1b[1;5C", []),
        (b"\x1bOP", []),
        (b"\x1b[15~r", ["r"]),
        (b"\x1by", []),  # Alt and y
        (b"\xc3\xa9", []),
        (b"", []),
    ],
)
def test_esc_is_a_byte_by_itself(data: bytes, found: list[str]) -> None:
    assert keys.typed(data) == found


def event(kind: int, code: int, value: int) -> bytes:
    return keys.EVENT.pack(1, 2, kind, code, value)


def test_input_events() -> None:
    assert keys.EVENT.size == 24
    down, up, repeated = event(1, 1, 1), event(1, 1, 0), event(1, 1, 2)
    synced = event(0, 0, 0)
    assert keys.pressed(down + synced + repeated + up) == [ESC]
    assert keys.pressed(event(1, 116, 1) + synced) == [POWER]
    assert keys.pressed(event(1, 30, 1) + event(3, 1, 1)) == []  # the letter a; an axis
    assert keys.pressed(down[:20]) == []


def test_the_foreground_terminal_and_every_serial_console() -> None:
    active = [Path("/dev/ttyS0"), Path("/dev/tty0"), Path("/dev/hvc0"), Path("/dev/tty1")]
    assert keys.terminals(active) == [Path("/dev/tty0"), Path("/dev/ttyS0"), Path("/dev/hvc0")]
    assert keys.terminals([Path("/dev/console")]) == [Path("/dev/tty0")]


def test_it_listens_raw_and_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    (tmp_path / "dev/input").mkdir(parents=True)
    (tmp_path / "dev/ttyS0").symlink_to(os.ttyname(slave))
    os.mkfifo(tmp_path / "dev/input/event0")
    writer = os.open(tmp_path / "dev/input/event0", os.O_RDWR)
    monkeypatch.setattr(lines, "consoles", lambda: [Path("/dev/ttyS0")])
    before = termios.tcgetattr(slave)
    listens = Keys(root=tmp_path)
    assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert listens.read(0) == []
    os.write(master, b"\x1b")
    assert listens.read(2) == [ESC]
    os.write(master, b"\x1b[A")
    assert listens.read(0.2) == []
    os.write(master, b"\x03y")
    assert listens.read(2) == ["\x03", "y"]
    os.write(writer, event(1, 116, 1))
    assert listens.read(2) == [POWER]
    listens.close()
    assert termios.tcgetattr(slave) == before
    for fd in (master, slave, writer):
        os.close(fd)


@pytest.mark.parametrize("earlier", [False, True])
def test_what_was_typed_before_counts_if_so_wished(
    earlier: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ttyS0").symlink_to(os.ttyname(slave))
    monkeypatch.setattr(lines, "consoles", lambda: [Path("/dev/ttyS0")])
    os.write(master, b"\x1b[A\x1b")  # an arrow key, and Esc; the terminal waits for a whole line
    listens = Keys(earlier=earlier, root=tmp_path)
    assert listens.read(0.5) == ([ESC] if earlier else [])
    os.write(master, b"\x1b")
    assert listens.read(2) == [ESC]
    listens.close()
    os.close(master)
    os.close(slave)


def test_a_terminal_that_another_program_has_set_is_raw_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ttyS0").symlink_to(os.ttyname(slave))
    monkeypatch.setattr(lines, "consoles", lambda: [Path("/dev/ttyS0")])
    monkeypatch.setattr(keys, "LOOK_AGAIN", 0.3)
    before = termios.tcgetattr(slave)
    listens = Keys(root=tmp_path)
    termios.tcsetattr(slave, termios.TCSANOW, before)
    os.write(master, b"y")
    assert listens.read(0.1) == []
    assert listens.read(2) == ["y"]
    listens.close()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_devices_that_come_later_and_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "consoles", lambda: [])
    monkeypatch.setattr(keys, "LOOK_AGAIN", 0.05)
    (tmp_path / "dev/input").mkdir(parents=True)
    listens = Keys(root=tmp_path)
    assert listens.read(0.1) == []
    os.mkfifo(tmp_path / "dev/input/event7")
    writer = os.open(tmp_path / "dev/input/event7", os.O_RDWR)
    os.write(writer, event(1, 1, 1))
    assert listens.read(2) == [ESC]
    (tmp_path / "dev/input/event7").unlink()
    os.close(writer)
    assert listens.read(0.2) == []  # its end is no reason to spin, nor to fail
    listens.close()

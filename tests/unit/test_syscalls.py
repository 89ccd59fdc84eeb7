# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel is asked with kexec_load(2) and reboot(2); none of it arrives there."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import KexecDisabled, KjumpError, Lockdown, NoKexecJump, NotPrivileged
from kjump.machine import syscalls
from kjump.machine.ranges import PAGE
from kjump.machine.syscalls import Segment

SEGMENT = struct.Struct("<QQQQ")
"""struct kexec_segment of uapi/linux/kexec.h: buf, bufsz, mem, memsz."""


class Kernel:
    """Notes each call; ``answers``: the errno that it fails with."""

    def __init__(self) -> None:
        self.fails = 0
        self.calls: list[tuple[int, ...]] = []
        self.loaded: list[tuple[bytes, int, int]] = []

    def syscall(self, number: Any, *arguments: Any) -> int:
        values = tuple(getattr(value, "value", 0) or 0 for value in arguments)
        self.calls.append((number.value, *values))
        if number.value == syscalls.SYS_KEXEC_LOAD:
            count = values[1]
            rows = SEGMENT.iter_unpack(bytes(arguments[2])[: count * SEGMENT.size])
            self.loaded = [
                (ctypes.string_at(at, size) if size else b"", to, room)
                for at, size, to, room in rows
            ]
        if self.fails:
            ctypes.set_errno(self.fails)
            return -1
        return 0


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    played = Kernel()
    monkeypatch.setattr(syscalls, "_libc", played)
    monkeypatch.setattr(syscalls, "kexec_loaded", lambda: False)
    return played


def test_an_image_is_given_as_the_kernel_reads_it(kernel: Kernel) -> None:
    view = mmap.mmap(-1, PAGE)
    view[:4] = b"mmap"
    segments = [
        Segment(b"bytes", 0x1000, PAGE),
        Segment(bytearray(b"array"), 0x2000, 2 * PAGE),
        Segment(view, 0x4000, PAGE),
        Segment(memoryview(bytearray(b"view of it"))[5:], 0x5000, PAGE),
        Segment(b"", 0x6000, 3 * PAGE),
    ]
    syscalls.kexec_load(0x1234, segments, preserve_context=True)
    assert kernel.loaded == [
        (b"bytes", 0x1000, PAGE),
        (b"array", 0x2000, 2 * PAGE),
        (bytes(view), 0x4000, PAGE),
        (b"of it", 0x5000, PAGE),
        (b"", 0x6000, 3 * PAGE),
    ]
    ((number, entry, count, _, flags),) = kernel.calls
    assert (number, entry, count) == (246, 0x1234, 5)
    assert flags == 62 << 16 | 2  # KEXEC_ARCH_X86_64, KEXEC_PRESERVE_CONTEXT


def test_unloading_gives_an_empty_image(kernel: Kernel) -> None:
    syscalls.kexec_unload()
    assert kernel.calls == [(246, 0, 0, 0, 62 << 16)]


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (syscalls.reboot_kexec, 0x45584543),
        (syscalls.power_off, 0x4321FEDC),
        (syscalls.restart, 0x01234567),
    ],
)
def test_each_way_to_leave_is_its_own(
    kernel: Kernel, call: Callable[[], None], command: int
) -> None:
    call()
    assert kernel.calls == [(169, 0xFEE1DEAD, 672274793, command, 0)]
    kernel.fails = errno.EPERM
    with pytest.raises(PermissionError):
        call()


@pytest.mark.parametrize(
    ("number", "disabled", "capable", "error"),
    [
        (0, "0", True, None),
        (errno.EPERM, "1", True, KexecDisabled),
        (errno.EPERM, "0", False, NotPrivileged),
        (errno.EPERM, "0", True, Lockdown),
        (errno.EPERM, "", True, Lockdown),
        (errno.ENOSYS, "", True, NoKexecJump),
        (errno.EINVAL, "0", True, NoKexecJump),
    ],
)
def test_why_a_kernel_cannot_jump(
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    disabled: str,
    capable: bool,
    error: type[KjumpError] | None,
) -> None:
    kernel.fails = number
    monkeypatch.setattr(syscalls, "_sysctl", lambda _name: disabled)
    monkeypatch.setattr(syscalls, "has_capability", lambda _number: capable)
    found = syscalls.probe_kexec_jump()
    assert (None if found is None else type(found)) is error
    assert kernel.calls[0][-1] & syscalls.KEXEC_PRESERVE_CONTEXT


def test_asking_does_not_unload_what_somebody_staged(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "kexec_loaded", lambda: True)
    assert syscalls.probe_kexec_jump() is None
    assert not kernel.calls


def test_capabilities_are_those_in_effect() -> None:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff:")
    )
    mask = int(line.split()[1], 16)
    for number in range(41):
        assert syscalls.has_capability(number) == bool(mask >> number & 1)


def test_a_lock_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_libc", ctypes.CDLL(None, use_errno=True))
    with pytest.raises(OSError):
        syscalls.mlock(0, PAGE)  # nothing lies there

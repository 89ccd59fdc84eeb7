# SPDX-License-Identifier: GPL-2.0-or-later
"""The system calls that kjump is built on: kexec_load(2), reboot(2), mlock(2).

Runs in all three kernels.  Numbers and flags are those of x86_64 (``uapi/linux/kexec.h``,
``uapi/linux/reboot.h``).  kexec_file_load would not do: no version of the kernel has a preserve
flag for it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import KexecDisabled, KjumpError, Lockdown, NoKexecJump, NotPrivileged

SYS_KEXEC_LOAD = 246
SYS_REBOOT = 169
SYS_BPF = 321
CAP_SYS_BOOT = 22
KEXEC_PRESERVE_CONTEXT = 0x2
KEXEC_ARCH_X86_64 = 62 << 16
REBOOT_MAGIC1, REBOOT_MAGIC2 = 0xFEE1DEAD, 672274793
REBOOT_KEXEC = 0x45584543
REBOOT_POWER_OFF = 0x4321FEDC
REBOOT_RESTART = 0x01234567

_libc = ctypes.CDLL(None, use_errno=True)


class _Segment(ctypes.Structure):
    """``struct kexec_segment``."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class Segment:
    """What the jump puts at ``memory`` (physical, page aligned).

    ``size`` bytes, whole pages: ``data`` comes first, zeros fill the rest.
    """

    data: bytes | bytearray | mmap.mmap | memoryview
    memory: int
    size: int


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def kexec_load(entry: int, segments: Sequence[Segment], *, preserve_context: bool) -> None:
    """Stage an image.  ``entry``: physical address of its first instruction.  Raises OSError."""
    array = (_Segment * max(1, len(segments)))()
    keep: list[object] = []
    for slot, segment in zip(array, segments, strict=False):
        size = len(segment.data)
        if size:
            view: ctypes.Array[ctypes.c_char]
            if isinstance(segment.data, bytes):
                view = ctypes.create_string_buffer(segment.data, size)
            else:
                view = (ctypes.c_char * size).from_buffer(segment.data)
            keep.append(view)
            slot.buf = ctypes.addressof(view)
        slot.bufsz = size
        slot.mem = segment.memory
        slot.memsz = segment.size
    flags = KEXEC_ARCH_X86_64 | (KEXEC_PRESERVE_CONTEXT if preserve_context else 0)
    _call(
        SYS_KEXEC_LOAD,
        ctypes.c_ulong(entry),
        ctypes.c_ulong(len(segments)),
        array,
        ctypes.c_ulong(flags),
    )


def kexec_unload() -> None:
    """Drop whatever is staged.  Raises OSError."""
    kexec_load(0, (), preserve_context=False)


def kexec_loaded() -> bool:
    """Whether any image is staged, by us or by anyone."""
    try:
        return Path("/sys/kernel/kexec_loaded").read_text().strip() == "1"
    except OSError:
        return False


def probe_kexec_jump() -> KjumpError | None:
    """Why this kernel cannot stage a context-preserving image, or None if it can.

    It makes an empty load with the preserve flag: a kernel without CONFIG_KEXEC_JUMP does not know
    the flag and answers EINVAL (kernel/kexec.c, kexec_load_check).  This would also unload a staged
    image, so if any image is staged, the answer is yes without trying.
    """
    if kexec_loaded():
        return None
    try:
        kexec_load(0, (), preserve_context=True)
    except OSError as error:
        if error.errno == errno.EPERM:
            if _sysctl("kernel/kexec_load_disabled") == "1":
                return KexecDisabled("Loading kernels with kexec is switched off on this system.")
            if not has_capability(CAP_SYS_BOOT):
                return NotPrivileged("kexec_load is not permitted: CAP_SYS_BOOT is missing.")
            return Lockdown("The kernel forbids kexec_load.")
        if error.errno == errno.ENOSYS:
            return NoKexecJump("The running kernel has no kexec at all.")
        return NoKexecJump("The running kernel is built without CONFIG_KEXEC_JUMP.")
    return None


def has_capability(number: int) -> bool:
    """Whether this process has an effective capability (capabilities(7))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _reboot(command: int) -> None:
    _call(
        SYS_REBOOT,
        ctypes.c_ulong(REBOOT_MAGIC1),
        ctypes.c_ulong(REBOOT_MAGIC2),
        ctypes.c_ulong(command),
        None,
    )


def reboot_kexec() -> None:
    """Jump into the staged image.

    With a context-preserving image it returns when the session runs again, either after a jump
    back or after a restore from disk; it does not show which.  With a plain image it does not
    return.  Raises OSError if the kernel refused; nothing has changed then.
    """
    _reboot(REBOOT_KEXEC)


def power_off() -> None:
    """Switch the machine off, at once: no sync, no services stopped."""
    _reboot(REBOOT_POWER_OFF)


def restart() -> None:
    """Restart the machine, at once."""
    _reboot(REBOOT_RESTART)


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2), with a ``union bpf_attr``; the kernel treats the missing end as zeros, the defaults.
    Raises OSError."""
    attr = ctypes.create_string_buffer(attributes, len(attributes))
    return _call(SYS_BPF, ctypes.c_int(command), attr, ctypes.c_uint(len(attributes)))


def mlock(address: int, size: int) -> None:
    """Keep ``size`` bytes at the virtual ``address`` in memory.  Raises OSError."""
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

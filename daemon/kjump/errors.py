# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way a cycle can fail, in one table.

Runs in all three kernels, so it imports nothing.  Each error has a name (the last part of its
D-Bus name ``org.kjump1.Error.<name>``), an exit code, and a sentence that says what to do.
``availability`` is what ``CanHibernate`` answers if the error is a readiness reason: ``na`` (this
machine or kernel cannot), ``no`` (not now).

Errors travel between kernels as ``error`` (the name), ``what`` and ``todo`` in a report;
`from_report` makes the same exception again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

DBUS_PREFIX = "org.kjump1.Error."


class KjumpError(Exception):
    """Base of all errors.  ``str(error)`` is the sentence; ``advice`` is what to do about it."""

    exit_code: ClassVar[int] = 1
    availability: ClassVar[str] = "no"
    advice: ClassVar[str] = "See the journal: journalctl -u kjumpd."

    def __init__(self, what: str, *, advice: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.todo = self.advice if advice is None else advice

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def dbus_name(self) -> str:
        return DBUS_PREFIX + self.name

    @property
    def sentence(self) -> str:
        """What happened and what to do, for a person."""
        return sentence(self.what, self.todo)

    @property
    def message(self) -> str:
        """The D-Bus error's message: what happened, and what to do on the lines after it."""
        what = " ".join(self.what.splitlines())
        return f"{what}\n{self.todo}" if self.todo else what

    def report(self) -> dict[str, str]:
        """The form in which the error travels between kernels and into an image."""
        return {"error": self.name, "what": self.what, "todo": self.todo}


def sentence(what: str, todo: str) -> str:
    """Both as one text for a person.  ``todo`` may be empty."""
    return f"{what}  {todo}" if todo else what


def split_message(message: str) -> tuple[str, str]:
    """What happened and what to do, of a `KjumpError.message`; the second may be empty."""
    what, _, todo = message.partition("\n")
    return what, todo


# -- asking for a cycle ---------------------------------------------------------------------


class Internal(KjumpError):
    exit_code = 70
    advice = "This is a defect in kjump; please report it with the journal of kjumpd."


class ServiceUnreachable(KjumpError):
    exit_code = 69
    advice = "Start it with: systemctl start kjumpd."


class NotAuthorized(KjumpError):
    exit_code = 4
    advice = "Ask from an active local session, or as an administrator."


class Busy(KjumpError):
    exit_code = 5
    advice = "Wait for the running cycle to end; see kjumpctl status."


class Interrupted(KjumpError):
    exit_code = 6
    advice = "Nothing is left staged; try again."


class Cancelled(KjumpError):
    exit_code = 7
    advice = "Nothing is lost and the session continues; try again at any time."


class BadRequest(KjumpError):
    exit_code = 2
    advice = "See kjumpctl(1)."


class BadConfiguration(KjumpError):
    exit_code = 78
    advice = "Correct the named line; see kjump.conf(5)."


class Inhibited(KjumpError):
    exit_code = 8
    advice = (
        "Wait until that program ends, or override it as administrator with --ignore-inhibitors."
    )


# -- readiness: this kernel or machine cannot -------------------------------------------------


class UnsupportedMachine(KjumpError):
    exit_code = 20
    availability = "na"
    advice = "kjump runs on x86_64 only."


class NoKexecJump(KjumpError):
    exit_code = 21
    availability = "na"
    advice = "Boot a kernel with CONFIG_KEXEC_JUMP=y; docs/building.md shows how to build one."


class Lockdown(KjumpError):
    exit_code = 22
    availability = "na"
    advice = (
        "Kernel lockdown, which usually comes with Secure Boot, forbids kexec; kjump needs it off."
    )


class KexecDisabled(KjumpError):
    exit_code = 23
    availability = "na"
    advice = (
        "The sysctl kernel.kexec_load_disabled stays 1 until the next boot; remove what sets it,"
        " and restart."
    )


class NoSnapshotDevice(KjumpError):
    exit_code = 24
    availability = "na"
    advice = (
        "Boot a kernel with CONFIG_HIBERNATION and CONFIG_HIBERNATION_SNAPSHOT_DEV, and"
        " without nohibernate on its command line."
    )


class PagePoison(KjumpError):
    exit_code = 25
    availability = "na"
    advice = "Remove page_poison from the kernel command line, and restart."


class NotPrivileged(KjumpError):
    exit_code = 26
    availability = "na"
    advice = "Find out what takes the capability away: systemctl cat kjumpd.service."


# -- readiness: not now ------------------------------------------------------------------------


class NoTarget(KjumpError):
    exit_code = 30
    advice = (
        "Name a partition, a swap area or a file in /etc/kjump/kjump.conf ([Target] Path=), or"
        " make a file: kjumpctl setup --file PATH."
    )


class TargetMissing(KjumpError):
    exit_code = 31
    advice = "Attach the device, or name another target in /etc/kjump/kjump.conf."


class TargetInUse(KjumpError):
    exit_code = 32
    advice = "Unmount it, or name another target; an image overwrites everything on it."


class TargetTooSmall(KjumpError):
    exit_code = 33
    advice = "Use a larger target, or close programs that hold much memory."


class TargetHoldsData(KjumpError):
    exit_code = 34
    advice = (
        "Name another target, or, if you need nothing that is on it, clear it with: wipefs --all"
        " DEVICE."
    )


class NoHelperKernel(KjumpError):
    exit_code = 35
    advice = "Install the running kernel's image under /boot, or set [Helper] Kernel=."


class NoHelperInitrd(KjumpError):
    exit_code = 36
    advice = "Build it with: kjumpctl update-initrd."


class TooLittleMemory(KjumpError):
    exit_code = 37
    advice = "Close programs until that much memory is available, then try again."


class NoWindow(KjumpError):
    exit_code = 38
    advice = "The kernel's own memory is scattered too widely; restart the machine."


class ForeignKexecImage(KjumpError):
    exit_code = 39
    advice = "Another program has loaded it; unload it with: kexec -u."


class NoBootResume(KjumpError):
    exit_code = 40
    advice = "Rebuild the boot initrd with: kjumpctl update-initrd."


class TargetMapped(KjumpError):
    exit_code = 41
    advice = (
        "The helper and the boot initrd cannot open it; name a target on a plain partition, see"
        " kjump.conf(5)."
    )


class UnsuitableFile(KjumpError):
    exit_code = 42
    advice = "Make a suitable file with: kjumpctl setup --file PATH."


class NoWarmHelper(KjumpError):
    exit_code = 48
    advice = (
        "Use a helper kernel with CONFIG_KEXEC_JUMP=y ([Helper] Kernel=), or set Warm=no in"
        " [Helper]."
    )


class StaleHelper(KjumpError):
    exit_code = 49
    advice = "Nothing was written; kjumpctl stage --warm starts a new one."


class HooksFailed(KjumpError):
    exit_code = 47
    advice = "See: systemctl status kjump-hooks@pre.service."


# -- the jump and the helper ---------------------------------------------------------------------


class StagingFailed(KjumpError):
    exit_code = 50


class JumpFailed(KjumpError):
    exit_code = 51
    advice = (
        "See the kernel log (dmesg) for the process that did not freeze, or the device that did not"
        " suspend."
    )


class HelperSilent(KjumpError):
    exit_code = 52
    advice = "The helper came back without a report; see its lines on the console."


class DamagedHandoff(KjumpError):
    exit_code = 53
    advice = "Nothing was written; try again, and report it if it happens twice."


class WrongHandoffVersion(KjumpError):
    exit_code = 54
    advice = (
        "The session and the helper initrd have different versions; run: kjumpctl update-initrd."
    )


class TargetWriteFailed(KjumpError):
    exit_code = 55
    advice = "Check the device (smartctl, kernel log), or name another target."


class HelperDeadline(KjumpError):
    exit_code = 56
    advice = "The target is too slow for [Helper] DeadlineSec=; raise it, or use a faster target."


class MemoryUnreadable(KjumpError):
    exit_code = 57


class HelperFailed(KjumpError):
    exit_code = 58


class HelperHung(KjumpError):
    exit_code = 80
    advice = (
        "Check the device (smartctl, kernel log); if it is only slow, raise [Helper] WatchdogSec=."
    )


class WrongTarget(KjumpError):
    exit_code = 59
    advice = (
        "The helper found another device than the one that the session prepared; nothing was"
        " written."
    )


# -- the image and the way back --------------------------------------------------------------------


class NoImage(KjumpError):
    exit_code = 60
    advice = ""


class ImageIncomplete(KjumpError):
    exit_code = 61
    advice = "The machine lost power or was reset while saving; that session is lost."


class ImageDamaged(KjumpError):
    exit_code = 62
    advice = "The target did not return what was written to it; check the device."


class ImageVersion(KjumpError):
    exit_code = 63
    advice = "Another version of kjump wrote it; boot with that version."


class ImageSpent(KjumpError):
    exit_code = 64
    advice = "An image can be used only once."


class OtherMachine(KjumpError):
    exit_code = 65
    advice = "The image belongs to another machine."


class MemoryMapChanged(KjumpError):
    exit_code = 66
    advice = "Firmware settings or memory modules have changed; that session cannot be resumed."


class PagingModeDiffers(KjumpError):
    exit_code = 67
    advice = "Boot with the same no5lvl setting as the saved session."


class FileSystemChanged(KjumpError):
    exit_code = 68
    advice = "Another system has mounted it since; resuming would destroy it."


class RestoreFailed(KjumpError):
    exit_code = 71


class RestoreNoMemory(KjumpError):
    exit_code = 72
    advice = "The image does not fit beside the boot kernel."


class ResumeSkipped(KjumpError):
    exit_code = 73
    advice = "This boot was asked not to resume, with kjump.noresume or with a key."


class ExportFailed(KjumpError):
    exit_code = 74
    advice = (
        "The partial file was removed. Choose a file system with enough space that supports sparse"
        " files."
    )


def table() -> dict[str, type[KjumpError]]:
    """All errors by name, for the manual and for `from_report`."""
    return {cls.__name__: cls for cls in KjumpError.__subclasses__()}


def from_report(report: Mapping[str, object]) -> KjumpError:
    """The exception a report's error stands for; an unknown name becomes `HelperFailed`."""
    name = str(report.get("error", ""))
    what = str(report.get("what", "")) or f"unnamed failure ({name})"
    cls = table().get(name)
    if cls is None:
        return HelperFailed(f"{name}: {what}", advice=str(report.get("todo", "")))
    return cls(what, advice=str(report.get("todo", cls.advice)))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's settings: ``/etc/kjump/kjump.conf`` and its drop-ins, in systemd's style.

Runs in the session and in the boot initrd, so it imports little.  It never refuses to start:
a line that it cannot use becomes a `Complaint` with file and line number, and the rest still works.

Order, later files win: ``/etc/kjump/kjump.conf``, then all ``*.conf`` of
``/usr/lib/kjump/kjump.conf.d`` and ``/etc/kjump/kjump.conf.d`` sorted by name.  A file in ``/etc``
replaces a file of the same name in ``/usr/lib`` (an empty file or a link to ``/dev/null`` masks
it).  ``Key=`` without a value restores the default.  See kjump.conf(5).

``python3 -Im kjump.settings dump`` prints the settings in force, ``... fingerprint`` the checksum
of the settings in the boot initrd, ``... check`` the warnings (exit code 78 if there are any).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from kjump.machine import udev

MAIN = Path("etc/kjump/kjump.conf")
DROP_INS = (Path("usr/lib/kjump/kjump.conf.d"), Path("etc/kjump/kjump.conf.d"))
"""Least important first; relative to the root directory."""
KERNEL_HIBERNATION, NONE = "stock", "none"
"""``Fallback=``: the kernel's own hibernation, or nothing."""
HELPER_INITRD = "/var/lib/kjump/helper-{release}.img"


@dataclass(frozen=True)
class Target:
    """``[Target]``: where the image goes."""

    path: str = ""
    """``PARTUUID=...``, ``PARTLABEL=...``, ``UUID=...``, ``LABEL=...``, ``ID=...`` or the absolute
    path of a device or a file; empty: none."""

    @property
    def names_a_file(self) -> bool:
        """Whether the path names a file rather than a device."""
        return udev.names_a_file(self.path)


@dataclass(frozen=True)
class Helper:
    """``[Helper]``: the kernel that copies, and its resources."""

    window_size: int = 0
    """Bytes (``WindowSizeMiB=``); 0: computed from what the helper needs."""
    kernel: str = ""
    """Path of the helper's bzImage; empty: the running kernel's own image."""
    initrd: str = ""
    """Path of the helper's initrd; empty: see `initrd_of`."""
    command_line: str = ""
    """Words added to the helper's command line."""
    console: str = ""
    """``console=`` values for the helper, blank-separated; empty: the running kernel's own."""
    deadline: int = 0
    """Seconds that the helper may take; 0: computed from the size of memory."""
    watchdog: int = 120
    """Seconds without progress after which the helper counts as hung; 0: never."""
    cpu_count: int = 0
    """Processors that the helper uses; 0: all, but at most four."""
    warm: bool = False
    """Whether a helper is started ahead of time and rests until it is needed."""
    plymouth: bool = False
    """Whether the helper's initrd gets Plymouth, if that is installed."""

    def initrd_of(self, release: str) -> Path:
        """The helper initrd for a kernel release."""
        return Path(self.initrd or HELPER_INITRD.format(release=release))


@dataclass(frozen=True)
class Image:
    """``[Image]``: how the image is written."""

    compression: str = "auto"
    """``auto``, ``zstd``, ``lz4`` or ``none``."""
    compression_level: int = 1
    """zstd level, 1 to 19."""


@dataclass(frozen=True)
class Session:
    """``[Session]``: what happens around the jump."""

    hook_timeout: int = 30
    """Seconds that the system-sleep hooks may take, each time."""
    fallback: str = KERNEL_HIBERNATION
    """``stock`` or ``none``: what happens if a jump is not possible."""


@dataclass(frozen=True)
class Resume:
    """``[Resume]``: the boot side."""

    wait: int = 10
    """Seconds to wait for the target to appear at boot."""
    skip_wait: int = 1
    """Least number of seconds in which Esc is accepted before the session is resumed."""


class Complaint(NamedTuple):
    """A line that was not used, and why."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Settings:
    """All settings in force; ``warnings`` lists the lines that were not used."""

    target: Target = field(default_factory=Target)
    helper: Helper = field(default_factory=Helper)
    image: Image = field(default_factory=Image)
    session: Session = field(default_factory=Session)
    resume: Resume = field(default_factory=Resume)
    warnings: tuple[Complaint, ...] = field(default=(), compare=False)


# -- what a value may be -----------------------------------------------------------------------


def _whole(low: int, high: int, unit: int = 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"not a whole number: {text!r}")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text) * unit

    return read


def _seconds(low: int, high: int) -> Callable[[str], int]:
    whole = _whole(low, high)

    def read(text: str) -> int:
        return whole(text.removesuffix("s").rstrip())

    return read


def _target(text: str) -> str:
    kind, equals, value = text.partition("=")
    if equals and kind in udev.FOLDERS:
        if not value:
            raise ValueError(f"{kind}= needs a value")
        if not udev.paths(text):
            raise ValueError(f"no device can have that name: {text!r}")
        return text
    if text.startswith("/") and ".." not in text.split("/"):
        return text
    kinds = ", ".join(f"{name}=" for name in udev.FOLDERS)
    raise ValueError(f"not {kinds} or an absolute path: {text!r}")


def _file(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"not an absolute path: {text!r}")
    return text


def _yes_or_no(text: str) -> bool:
    """Read a boolean as systemd does (systemd.syntax(7))."""
    word = text.lower()
    if word in ("1", "yes", "y", "true", "t", "on"):
        return True
    if word in ("0", "no", "n", "false", "f", "off"):
        return False
    raise ValueError(f"neither yes nor no: {text!r}")


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"not {', '.join(words[:-1])} or {words[-1]}: {text!r}")
        return text

    return read


def _consoles(text: str) -> str:
    return " ".join(word.removeprefix("console=") for word in text.split())


class Key(NamedTuple):
    """One key of the configuration: where its value goes, and how it is read and written back."""

    section: str
    name: str
    attribute: str
    read: Callable[[str], Any]
    unit: int = 1


KEYS = (
    Key("Target", "Path", "path", _target),
    Key("Helper", "WindowSizeMiB", "window_size", _whole(0, 4096, 1 << 20), 1 << 20),
    Key("Helper", "Kernel", "kernel", _file),
    Key("Helper", "Initrd", "initrd", _file),
    Key("Helper", "CommandLine", "command_line", str),
    Key("Helper", "Console", "console", _consoles),
    Key("Helper", "DeadlineSec", "deadline", _seconds(0, 86400)),
    Key("Helper", "WatchdogSec", "watchdog", _seconds(0, 86400)),
    Key("Helper", "CpuCount", "cpu_count", _whole(0, 4096)),
    Key("Helper", "Warm", "warm", _yes_or_no),
    Key("Helper", "Plymouth", "plymouth", _yes_or_no),
    Key("Image", "Compression", "compression", _one_of("auto", "zstd", "lz4", "none")),
    Key("Image", "CompressionLevel", "compression_level", _whole(1, 19)),
    Key("Session", "HookTimeoutSec", "hook_timeout", _seconds(1, 3600)),
    Key("Session", "Fallback", "fallback", _one_of(KERNEL_HIBERNATION, NONE)),
    Key("Resume", "WaitSec", "wait", _seconds(0, 3600)),
    Key("Resume", "SkipWaitSec", "skip_wait", _seconds(0, 60)),
)
"""The whole configuration, in the order of kjump.conf(5)."""

BOOT_SECTIONS = ("Target", "Resume")
"""The sections that the boot side reads: a change makes its initrd outdated."""


# -- reading -----------------------------------------------------------------------------------


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Logical lines with their first line number: a backslash at the end joins lines."""
    start, whole = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        stripped = raw.strip()
        if stripped.startswith(("#", ";")):
            continue  # also between continued lines, as in systemd
        if not whole:
            start = number
        if stripped.endswith("\\"):
            whole += stripped[:-1] + " "
            continue
        yield start, (whole + stripped).strip()
        whole = ""
    if whole:
        yield start, whole.strip()


def parse(settings: Settings, path: str, text: str) -> Settings:
    """``settings``, changed by the lines of one file.  Pure; adds warnings, raises none."""
    values = {name: getattr(settings, name.lower()) for name in _sections()}
    keys = {(key.section, key.name): key for key in KEYS}
    warnings = list(settings.warnings)
    section: str | None = None
    skipping = False
    for number, line in _lines(text):
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            # X- sections belong to other programs (systemd.syntax(7)).
            skipping = section.startswith("X-") or section not in values
            if section not in values and not section.startswith("X-"):
                warnings.append(Complaint(path, number, f"unknown section [{section}], ignored"))
            continue
        if skipping:
            continue
        name, equals, value = line.partition("=")
        name, value = name.rstrip(), value.strip()
        if not equals:
            warnings.append(Complaint(path, number, f"missing '=', ignored: {line!r}"))
            continue
        if section is None:
            warnings.append(Complaint(path, number, f"{name}= stands before any section, ignored"))
            continue
        key = keys.get((section, name))
        if key is None:
            warnings.append(Complaint(path, number, f"unknown key {name}= in [{section}], ignored"))
            continue
        default = {f.name: f.default for f in fields(values[section])}[key.attribute]
        try:
            read = key.read(value) if value else default
        except ValueError as error:
            warnings.append(Complaint(path, number, f"bad value for {name}=, ignored: {error}"))
            continue
        values[section] = replace(values[section], **{key.attribute: read})
    laid = {name.lower(): value for name, value in values.items()}
    return replace(settings, **laid, warnings=tuple(warnings))


def _sections() -> tuple[str, ...]:
    return tuple(dict.fromkeys(key.section for key in KEYS))


def files(root: Path = Path("/")) -> list[Path]:
    """The configuration files to read, least important first."""
    named: dict[str, Path] = {}
    for folder in DROP_INS:
        if (root / folder).is_dir():
            for path in (root / folder).glob("*.conf"):
                named[path.name] = path
    main = root / MAIN
    return [*([main] if main.exists() else []), *(named[name] for name in sorted(named))]


def load(root: Path = Path("/")) -> Settings:
    """Read the configuration below ``root``.  A file that cannot be read becomes a warning."""
    settings = Settings()
    for path in files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            unread = Complaint(str(path), 0, f"cannot be read: {error}")
            settings = replace(settings, warnings=(*settings.warnings, unread))
            continue
        settings = parse(settings, str(path), text)
    return settings


# -- writing back ------------------------------------------------------------------------------


def dump(settings: Settings, sections: Sequence[str] | None = None) -> str:
    """The settings in force as a configuration file with every key."""
    out: list[str] = []
    for section in _sections():
        if sections is not None and section not in sections:
            continue
        out.append(f"[{section}]")
        for key in KEYS:
            if key.section == section:
                value = getattr(getattr(settings, section.lower()), key.attribute)
                if isinstance(value, bool):
                    value = "yes" if value else "no"
                out.append(f"{key.name}={value // key.unit if key.unit > 1 else value}")
    return "\n".join(out) + "\n"


def fingerprint(settings: Settings, place: str = "") -> str:
    """SHA-256 (hex) of the settings that the boot side reads.

    ``place``: device and byte offset of the first block of a target that is a file; the boot initrd
    contains this, too.  `kjump.initrd.update` stores the checksum in ``/var/lib/kjump/boot.json``
    when it builds the boot initrd; if it differs from that of the current configuration, the initrd
    would look for another image.
    """
    return hashlib.sha256((dump(settings, BOOT_SECTIONS) + place).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """``dump``, ``fingerprint`` or ``check``, for scripts."""
    words = sys.argv[1:] if arguments is None else arguments
    settings = load()
    match list(words):
        case ["dump"]:
            sys.stdout.write(dump(settings))
        case ["fingerprint"]:
            print(fingerprint(settings))
        case ["check"]:
            for warning in settings.warnings:
                print(warning)
            return 78 if settings.warnings else 0
        case _:
            print("usage: python3 -Im kjump.settings dump|fingerprint|check", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``kjumpctl setup --file``: a file to hibernate to.

Runs in the session, as root.  The file's blocks are only allocated, never written through the file
system: what the image puts there is read and written underneath, and whoever reads the file sees
zeros.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from kjump import settings as configuration
from kjump.errors import BadConfiguration, BadRequest, TargetTooSmall, UnsuitableFile
from kjump.image.layout import BLOCK
from kjump.machine.ranges import align_up
from kjump.session import areas, files
from kjump.session.readiness import SMALLEST_TARGET

DROP_IN = Path("/etc/kjump/kjump.conf.d/90-target.conf")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Made:
    """The file; ``size`` in bytes."""

    path: Path
    size: int


def parse_size(text: str | None) -> int:
    """Bytes, in whole blocks, of ``16G`` and the like; None: enough for any image of this machine.

    Raises `BadRequest`.
    """
    if text is None:
        return align_up(areas.enough(), BLOCK)
    number = text.rstrip("KMGTkmgt")
    unit = text[len(number) :].upper()
    if not (number.isascii() and number.isdigit()) or unit not in UNITS:
        raise BadRequest(f"{text!r} is no size.", advice="Write it like 16G or 800M.")
    size = int(number) * UNITS[unit] // BLOCK * BLOCK
    if size < SMALLEST_TARGET:
        raise BadRequest(f"{text} is too little for any image.", advice="RAM's size will do.")
    return size


def make(path: Path, size: int) -> Made:
    """Make the file, of ``size`` bytes, and see that an image can be written to it.

    Where it cannot, nothing is left behind.  Raises `BadRequest`, `TargetTooSmall`,
    `UnsuitableFile`, `TargetMapped`.
    """
    if os.geteuid():
        raise BadRequest("Only root can make such a file.", advice="Do it as root.")
    if not path.is_absolute() or path.is_relative_to("/dev"):
        raise BadRequest(f"{path} is no absolute path of a file.", advice="See kjumpctl(1).")
    path = Path(os.path.realpath(path.parent), path.name)
    if path.is_relative_to("/var/lib/kjump"):
        raise BadRequest(
            f"{path} would stand in the way when the package is removed.",
            advice="Name a file in another directory.",
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(
            f"{path} cannot be made: {error.strerror}.", advice="Name another file."
        ) from error
    try:
        try:
            _allocate(fd, path, size)
        finally:
            os.close(fd)
        found = files.blocks_of(path)
        if found.written or found.size < size:
            raise UnsuitableFile(
                f"The file system of {path} does not keep blocks for later.",
                advice="Name a file on ext4, xfs or btrfs.",
            )
        _protect(path)
    except BaseException:
        path.unlink()
        raise
    return Made(path, size)


def _allocate(fd: int, path: Path, size: int) -> None:
    try:
        kind = files.file_system(fd)
        if kind not in files.NAMES:
            raise UnsuitableFile(
                f"{path} lies neither on ext4 nor xfs nor btrfs.", advice="Name a file that does."
            )
        if kind == files.BTRFS:
            # While it has no blocks yet; without, its blocks would move at each write.
            files.set_flags(fd, files.NOCOW)
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TargetTooSmall(
                f"There is no room for {size >> 20} MiB on the file system of {path}.",
                advice="Name a file on another one, or a smaller --size.",
            ) from error
        raise UnsuitableFile(f"{path} cannot be made: {error.strerror}.") from error


def _protect(path: Path) -> None:
    """Nobody writes to it, moves or removes it; programs that defragment leave it alone."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.set_flags(fd, files.IMMUTABLE)
        os.fsync(fd)
    except OSError as error:
        raise UnsuitableFile(f"{path} cannot be protected: {error.strerror}.") from error
    finally:
        os.close(fd)


def configure(path: Path, drop_in: Path = DROP_IN) -> Path:
    """Name the file in a drop-in of the configuration; that drop-in.

    Raises `BadConfiguration` where another one, read later, names something else.
    """
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    fresh = drop_in.with_suffix(".new")
    fresh.write_text(f"# Written by kjumpctl setup.\n[Target]\nPath={path}\n")
    fresh.replace(drop_in)
    if configuration.load().target.path != str(path):
        raise BadConfiguration(
            f"A configuration file that is read after {drop_in} names another target.",
            advice="Remove its Path= of [Target], then: kjumpctl update-initrd.",
        )
    return drop_in

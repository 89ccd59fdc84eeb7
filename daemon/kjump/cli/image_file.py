# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a file that an image can be written to.

Runs in the session, as root.  The file's blocks are only allocated, never written through the file
system: the image is written and read underneath it, and a program that reads the file sees zeros.

The file is opened once, when it is created, and its name is never looked up again: nobody can put
another file in its place and have that one allocated or made immutable.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import BadRequest, KjumpError, TargetTooSmall, UnsuitableFile
from kjump.session.target import files

OWNERS = {0}
"""Users who may own the directories that lead to the file."""


@dataclass(frozen=True)
class Made:
    """The file; ``size`` in bytes."""

    path: Path
    size: int


def changeable(folder: Path) -> Path | None:
    """The first directory on the way to ``folder`` that somebody else than root can change.

    A user who can rename or replace such a directory decides which file the configured path leads
    to.  In a directory with the sticky bit, like /tmp, users cannot move root's files.  ``folder``:
    absolute and without symbolic links; a link on the way counts as changeable.  Raises OSError.
    """
    for step in (*reversed(folder.parents), folder):
        status = step.lstat()
        others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in OWNERS or others_write:
            return step
    return None


def make(path: Path, size: int) -> Made:
    """Make the file, of ``size`` bytes, and check that an image can be written to it.

    If anything fails, the file is removed.  Raises `BadRequest`, `TargetTooSmall`,
    `UnsuitableFile`, `TargetMapped`.
    """
    if os.geteuid():
        raise BadRequest("Only root can make such a file.", advice="Do it as root.")
    if not path.is_absolute() or path.is_relative_to("/dev"):
        raise BadRequest(f"{path} is not the absolute path of a file.", advice="See kjumpctl(1).")
    path = Path(os.path.realpath(path.parent), path.name)
    if path.is_relative_to("/var/lib/kjump"):
        raise BadRequest(
            f"{path} would prevent the package from being removed.",
            advice="Choose a file in another directory.",
        )
    try:
        _refuse_changeable(path.parent)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_make(path, error) from error
    try:
        return _make_in(folder, path, size)
    finally:
        os.close(folder)


def _refuse_changeable(folder: Path) -> None:
    found = changeable(folder)
    if found is not None:
        raise UnsuitableFile(
            f"Others than root can change {found}, and so replace a file below it.",
            advice="Choose a file in a directory that only root can write to.",
        )


def _cannot_make(path: Path, error: OSError) -> BadRequest:
    return BadRequest(f"{path} cannot be made: {error.strerror}.", advice="Choose another file.")


def _make_in(folder: int, path: Path, size: int) -> Made:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path.name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise _cannot_make(path, error) from error
    try:
        _allocate(fd, folder, path, size)
        found = files.blocks_of_open(fd, str(path))
        if found.written or found.size < size:
            raise UnsuitableFile(
                f"The file system of {path} does not keep blocks for later.",
                advice="Choose a file on ext4, xfs or btrfs.",
            )
        _protect(fd, path)
    except BaseException as error:
        _remove(fd, folder, path, error)
        raise
    finally:
        os.close(fd)
    return Made(path, size)


def _allocate(fd: int, folder: int, path: Path, size: int) -> None:
    try:
        kind = files.file_system(fd)
        if kind not in files.NAMES:
            raise UnsuitableFile(
                f"{path} is on neither ext4 nor xfs nor btrfs.",
                advice="Choose a file on one of these.",
            )
        if kind == files.BTRFS:
            # Only a file without blocks accepts this, and without it its blocks would move at each
            # write.
            files.set_flags(fd, files.NOCOW)
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
        os.fsync(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise TargetTooSmall(
                f"The file system of {path} has no room for {size >> 20} MiB.",
                advice="Choose a file on another one, or a smaller --size.",
            ) from error
        raise UnsuitableFile(f"{path} cannot be made: {error.strerror}.") from error


def _protect(fd: int, path: Path) -> None:
    """Let nobody write to it, move or remove it; defragmentation leaves such a file alone, too."""
    try:
        files.set_flags(fd, files.IMMUTABLE)
        os.fsync(fd)
    except OSError as error:
        raise UnsuitableFile(f"{path} cannot be protected: {error.strerror}.") from error


def _remove(fd: int, folder: int, path: Path, error: BaseException) -> None:
    """Remove the file after an ``error``; if that fails, raise an error of its kind that says so.

    An immutable file cannot be removed, so that flag is cleared first.
    """
    try:
        files.clear_flags(fd, files.IMMUTABLE)
    except OSError:
        pass  # not every file system has flags; if it was set, unlink fails and is reported
    try:
        os.unlink(path.name, dir_fd=folder)
    except OSError as left:
        if isinstance(error, KjumpError):
            raise type(error)(
                f"{error.what}  The file could not be removed: {left.strerror}.",
                advice=f"Remove it with: chattr -i {path}; rm {path}.",
            ) from error

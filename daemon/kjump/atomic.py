# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing a file so that it is there whole, or as it was before, whenever the power goes.

Runs in the session, also while the initrds are made.  Needs room for both the old and the new
file.  Never changes a file in place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A new file to write to; it takes the place of ``path`` when the block ends without an error.

    It gets ``mode`` whatever the umask is.  The content is on the disk before the name is, and the
    name before this returns (rename(2) promises neither).  On an error nothing is left of the new
    file.  Raises OSError.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def write(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace the file's content.  Text is UTF-8.  Raises OSError."""
    with replacing(path, mode=mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk.  Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path, *, mode: int = 0o755) -> None:
    """Make the directory, and those above it that are missing, with ``mode`` whatever the umask is.

    A directory that exists stays as it is.  Raises OSError.
    """
    if path.is_dir():
        return
    make_folder(path.parent, mode=mode)
    path.mkdir(exist_ok=True)
    path.chmod(mode)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a helper initrd, written when it is made, and whether the files still match it.

Runs in the session: `kjump.initrd.helper` writes the record, kjumpd reads it.  The record is a JSON
object in the file beside the initrd, ``helper-RELEASE.json``.  A file that does not match must not
be staged: the helper might stop halfway, with the session in its memory.  Nothing here repairs it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from io import BufferedReader
from pathlib import Path
from typing import Any

from kjump import atomic
from kjump.errors import KjumpError, NoHelperInitrd, NoHelperKernel

REBUILD = "Build it again with: kjumpctl update-initrd."

Missing = type[NoHelperInitrd] | type[NoHelperKernel]
"""The error to raise if a file cannot be used."""
NAMES: Mapping[Missing, str] = {NoHelperInitrd: "initrd", NoHelperKernel: "kernel"}


@dataclass(frozen=True)
class HelperRecord:
    """The content of a helper initrd.  Fields that were not recorded have their default."""

    release: str = ""
    """Release of the kernel whose modules are in it."""
    version: str = ""
    """Version of the kjump that made it."""
    size: int = 0
    """Bytes of the file."""
    unpacked: int = 0
    """Bytes of the unpacked archive."""
    sha256: str = ""
    """SHA-256 of the file, hexadecimal."""
    kernel_sha256: str = ""
    """The same for the kernel's copy beside it; empty if there is none."""
    drivers: tuple[str, ...] = ()
    """Kernel modules in it that drive hardware."""
    plymouth: bool = False
    """Whether Plymouth was requested."""
    splash: int = 0
    """Bytes of memory that its splash screen takes; 0: it has none."""
    displays: tuple[str, ...] = ()
    """The drivers in it that drive displays."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> HelperRecord:
        """Ignores unknown keys.  Raises ValueError."""
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        return cls(**_checked(document))


def _checked(document: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that `HelperRecord` has.  Raises ValueError if one has another type, or
    is negative."""
    values: dict[str, Any] = {}
    for item in fields(HelperRecord):
        if item.name not in document:
            continue
        value = document[item.name]
        if isinstance(item.default, tuple) and isinstance(value, list):
            value = tuple(str(text) for text in value)
        negative = isinstance(value, int) and value < 0
        if type(value) is not type(item.default) or negative:
            raise ValueError(f"{item.name} is {value!r}")
        values[item.name] = value
    return values


def path_beside(file: Path) -> Path:
    """The path of the record for an initrd, or for a kernel's copy beside an initrd."""
    return file.with_suffix(".json")


def write(initrd: Path, record: HelperRecord) -> None:
    """Write the record beside its initrd.  Raises OSError."""
    atomic.write(path_beside(initrd), record.to_json())


def read(file: Path) -> HelperRecord:
    """The record beside an initrd, or beside a kernel's copy; an empty one if there is none.

    Raises `NoHelperInitrd` if it cannot be read, because then the initrd cannot be trusted either.
    """
    path = path_beside(file)
    try:
        return HelperRecord.from_json(path.read_text())
    except FileNotFoundError:
        return HelperRecord()
    except (OSError, ValueError, RecursionError) as error:
        raise NoHelperInitrd(
            f"The record of the helper initrd, {path}, is damaged: {error}.", advice=REBUILD
        ) from error


# -- comparing with the files ----------------------------------------------------------------------

SETTLED = 1.0
"""Seconds.  File times have the resolution of a clock tick: until a change is this old, another
change may leave the same times."""
_digests: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Known SHA-256 of files, with the identity that each file had."""


def digest_of(file: BufferedReader) -> str:
    """SHA-256 of an open file, hexadecimal.  Raises OSError."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(file: BufferedReader) -> tuple[int, ...]:
    """The file's identity: it changes if the file is replaced or written to."""
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def known_digest(path: Path) -> str:
    """SHA-256 of a file, which is hashed again only if it was replaced or written to.

    Raises OSError.
    """
    with path.open("rb") as file:
        # Taken before hashing: if somebody writes meanwhile, the file is hashed again next time.
        identity, now = _identity(file), time.time()
        known = _digests.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        digest = digest_of(file)
        if now - os.fstat(file.fileno()).st_ctime > SETTLED:
            _digests[path] = identity, digest
        return digest


def check(file: Path, sha256: str, error: Missing) -> None:
    """Check that this is the file that was made.  An empty ``sha256`` was not recorded.

    Raises ``error``.  A file that was hashed before is hashed again only if it has changed.
    """
    try:
        matches = not sha256 or known_digest(file) == sha256
        if not matches or not file.stat().st_size:
            raise error(
                f"The helper {NAMES[error]} {file} is damaged: its content has changed.",
                advice=REBUILD,
            )
    except OSError as found:
        raise _unreadable(error, found) from found


def map_file(file: Path, sha256: str, error: Missing) -> mmap.mmap:
    """The content of a file for staging; always hashed, even if it was hashed before.

    It maps the same file that it hashed, even if the name belongs to another file by then.  Raises
    ``error``.
    """
    try:
        with file.open("rb") as stream:
            before = _identity(stream)
            # Read it, do not hash the mapping: there a disk error would raise a signal.
            if sha256 and digest_of(stream) != sha256:
                raise error(
                    f"The helper {NAMES[error]} {file} is damaged, or was replaced just now.",
                    advice=f"Try again.  If that does not help: {REBUILD}",
                )
            # Copy-on-write: the system call needs addresses of writable memory.
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            if _identity(stream) != before:
                content.close()
                raise error(f"{file} was written to while it was read.", advice="Try again.")
            return content
    except ValueError as found:
        raise error(f"The helper {NAMES[error]} {file} is empty.", advice=REBUILD) from found
    except OSError as found:
        raise _unreadable(error, found) from found


def _unreadable(error: Missing, found: OSError) -> KjumpError:
    return error(f"The helper {NAMES[error]} cannot be read: {found}.", advice=REBUILD)

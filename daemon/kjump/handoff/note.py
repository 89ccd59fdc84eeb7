# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``KJUMP`` note, which carries the session's order to the helper.

It is an ELF note in the core header (``elfcorehdr=``), so the helper finds it in ``/proc/vmcore``
beside VMCOREINFO.  Its descriptor is a fixed header and a JSON document, little-endian:

====== ==== ================================================================================
offset size field
====== ==== ================================================================================
0      8    magic ``KJUMPHND``
8      2    major version; a reader refuses any other
10     2    minor version; a higher one only adds JSON keys
12     4    length of the JSON document in bytes
16     8    jump-back address (physical), 0 until the entry stub writes it at the jump
24     4    CRC-32 of bytes 0-15 and of the JSON document (the address is not covered)
28     4    zero
32     ..   JSON document, UTF-8, one object
====== ==== ================================================================================

Unknown keys are ignored.  See docs/kjump-handoff.5.md.

The session writes it, the helper reads it.  Pure: never touches memory or a file.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass

from kjump.errors import DamagedHandoff, WrongHandoffVersion
from kjump.handoff.fields import JsonObject, decode
from kjump.machine.elf import pack_note

OWNER = b"KJUMP"
TYPE = 1
MAGIC = b"KJUMPHND"
MAJOR, MINOR = 1, 1
HEADER = struct.Struct("<8sHHIQI4x")
JUMP_BACK_OFFSET = 16
"""Offset of the jump-back address in the descriptor; the entry stub writes it there."""
CHECKED = 16
"""The checksum covers this many bytes of the header."""
LARGEST = 128 << 10
"""Bytes of the longest descriptor."""


@dataclass(frozen=True)
class Note:
    """A note that was read: the jump-back address (physical) and the JSON document, whose fields
    are not checked yet (`kjump.handoff.documents`)."""

    jump_back: int
    document: JsonObject


def descriptor(document: JsonObject) -> bytes:
    """A descriptor with jump-back address 0.  Raises ValueError if it would be too long."""
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    if HEADER.size + len(text) > LARGEST:
        raise ValueError(f"handoff of {len(text)} bytes")
    head = HEADER.pack(MAGIC, MAJOR, MINOR, len(text), 0, 0)
    checksum = zlib.crc32(text, zlib.crc32(head[:CHECKED]))
    head = HEADER.pack(MAGIC, MAJOR, MINOR, len(text), 0, checksum)
    return head + text


def pack(document: JsonObject) -> bytes:
    """The whole note with jump-back address 0, ready for the core header."""
    return pack_note(OWNER, TYPE, descriptor(document))


def unpack(descriptor: bytes) -> Note:
    """Read a descriptor.

    Raises `DamagedHandoff` or `WrongHandoffVersion`; never anything else, whatever the bytes.
    """
    if len(descriptor) < HEADER.size:
        raise DamagedHandoff(f"The handoff note has {len(descriptor)} bytes.")
    magic, major, _minor, length, jump_back, checksum = HEADER.unpack_from(descriptor)
    if magic != MAGIC:
        raise DamagedHandoff("The handoff note has a wrong magic.")
    if major != MAJOR:
        raise WrongHandoffVersion(
            f"The handoff note is of version {major}, this helper reads {MAJOR}."
        )
    text = descriptor[HEADER.size : HEADER.size + length]
    if len(text) != length:
        raise DamagedHandoff("The handoff note is cut short.")
    if zlib.crc32(text, zlib.crc32(descriptor[:CHECKED])) != checksum:
        raise DamagedHandoff("The handoff note's checksum is wrong.")
    return Note(jump_back, decode(text, "handoff note", DamagedHandoff))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The report page: what the helper and the boot side tell the session.

A page of the session's memory, locked by `kjump.session`, whose physical address and nonce go
with the handoff.  The helper writes its report there; the boot side replaces the page in the
restored memory.  Little-endian:

====== ==== =====================================================
offset size field
====== ==== =====================================================
0      8    magic ``KJUMPREP``
8      4    version, 1
12     4    length of the JSON document; 0 while nobody reported
16     16   nonce, chosen by the session for this cycle
32     4    CRC-32 of the JSON document
36     4    zero
40     ..   JSON document, UTF-8, one object
====== ==== =====================================================

A writer checks magic, version and nonce first, and leaves a page that differs alone.
The document: ``by`` ("helper" or "resume"), ``result`` ("ok" or "failed"), on failure ``error``,
``what``, ``todo`` (see `kjump.errors`), ``phases`` (name to seconds), and figures: `FIGURES`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

SIZE = 4096
MAGIC = b"KJUMPREP"
VERSION = 1
NONCE_SIZE = 16
HEADER = struct.Struct("<8sII16sI4x")
ROOM = SIZE - HEADER.size
"""Largest JSON document, bytes."""
FIGURES = ("pages", "image", "memory", "map", "codecs", "profile")
"""What the helper found out about the copy, and the boot side hands on: each an object."""


def blank(nonce: bytes) -> bytes:
    """The page (4,096 bytes) as the session prepares it."""
    return HEADER.pack(MAGIC, VERSION, 0, nonce, 0).ljust(SIZE, b"\0")


def pack(nonce: bytes, document: Mapping[str, Any]) -> bytes:
    """A filled page.  What does not fit is shortened: first the figures go, then the text."""
    text = json.dumps(document, separators=(",", ":")).encode()
    if len(text) > ROOM:
        short = {k: document[k] for k in ("by", "result", "error", "todo") if k in document}
        short["what"] = str(document.get("what", ""))[:1000]
        short["shortened"] = True
        text = json.dumps(short, separators=(",", ":")).encode()[:ROOM]
    head = HEADER.pack(MAGIC, VERSION, len(text), nonce, zlib.crc32(text))
    return (head + text).ljust(SIZE, b"\0")


def is_for(page: bytes, nonce: bytes) -> bool:
    """Whether this page is the one the nonce was chosen for."""
    if len(page) < HEADER.size:
        return False
    magic, version, _length, found, _crc = HEADER.unpack_from(page)
    return bool(magic == MAGIC and version == VERSION and found == nonce)


def unpack(page: bytes, nonce: bytes) -> dict[str, Any] | None:
    """The report on the page, or None where there is none (blank, other nonce, damaged)."""
    if not is_for(page, nonce):
        return None
    _magic, _version, length, _nonce, checksum = HEADER.unpack_from(page)
    text = page[HEADER.size : HEADER.size + length]
    if length == 0 or length > ROOM or zlib.crc32(text) != checksum:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None

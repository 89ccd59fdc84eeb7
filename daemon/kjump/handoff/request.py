# SPDX-License-Identifier: GPL-2.0-or-later
"""The request page: the session's order to a helper that is already running.

The note lies in the window, so it contains only what was known when the helper was started.  A warm
helper (docs/kjump-handoff.5.md) reads the rest when it is entered again, from pages of the
session: one request page, whose address is in the note, lists the pages that hold the request.
A request has the form of a note's descriptor (`kjump.handoff.note`) and is checked like one.
The request page is little-endian, addresses are physical:

====== ==== ==========================================================================
offset size field
====== ==== ==========================================================================
0      8    magic ``KJUMPREQ``
8      4    version, 1
12     4    number of pages that hold the request; 0: there is no request
16     16   nonce, the same as that of the report page
32     4    length of the request in bytes
36     4    CRC-32 of bytes 0-35 and of the list
40     8    address of the first page, page aligned; and so on for each, in order
====== ==== ==========================================================================

Pure.  Only the session writes it, and only the helper reads it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kjump.errors import DamagedHandoff, StaleHelper, WrongHandoffVersion
from kjump.handoff import documents, note
from kjump.handoff.documents import MachineFacts
from kjump.handoff.fields import JsonObject
from kjump.machine.ranges import PAGE, Range, overlaps

MAGIC = b"KJUMPREQ"
VERSION = 1
HEADER = struct.Struct("<8sII16sII")
CHECKED = 36
"""The checksum covers this many bytes of the header, and the list."""
PAGES = -(-note.LARGEST // PAGE)
"""Pages for the longest request."""


@dataclass(frozen=True)
class Listing:
    """The content of a request page: where the request lies (physical), and how long it is."""

    pages: tuple[int, ...]
    length: int


def pack(document: JsonObject) -> bytes:
    """The request itself: header and JSON document.  Raises ValueError if it is too long."""
    return note.descriptor(document)


def blank(nonce: bytes) -> bytes:
    """A request page without a request."""
    return pack_page(nonce, (), 0)


def pack_page(nonce: bytes, pages: Sequence[int], length: int) -> bytes:
    """The request page (4,096 bytes) for a request of ``length`` bytes in ``pages``."""
    if len(pages) > PAGES:
        raise ValueError(f"a request of {len(pages)} pages")
    addresses = struct.pack(f"<{len(pages)}Q", *pages)
    head = HEADER.pack(MAGIC, VERSION, len(pages), nonce, length, 0)[:CHECKED]
    checksum = zlib.crc32(addresses, zlib.crc32(head))
    return (head + struct.pack("<I", checksum) + addresses).ljust(PAGE, b"\0")


def unpack_page(page: bytes, nonce: bytes, hidden: Iterable[Range] = ()) -> Listing:
    """Read a request page.  ``hidden``: physical ranges that may not contain a page (the window).

    Raises `DamagedHandoff` or `WrongHandoffVersion`; never anything else, whatever the bytes.
    """
    if len(page) < PAGE or page[:8] != MAGIC:
        raise DamagedHandoff("There is no request page at the address in the handoff note.")
    _magic, version, count, found, length, checksum = HEADER.unpack_from(page)
    if version != VERSION:
        raise WrongHandoffVersion(
            f"The request page is of version {version}, this helper reads {VERSION}."
        )
    if found != nonce:
        raise DamagedHandoff("The request page has another nonce.")
    if count > PAGES:
        raise DamagedHandoff(f"The request page lists {count} pages.")
    listed = page[HEADER.size : HEADER.size + 8 * count]
    if zlib.crc32(listed, zlib.crc32(page[:CHECKED])) != checksum:
        raise DamagedHandoff("The request page's checksum is wrong.")
    pages = struct.unpack(f"<{count}Q", listed)
    if not (count - 1) * PAGE < length <= count * PAGE:
        raise DamagedHandoff(f"The request has {length} bytes in {count} pages.")
    away = tuple(hidden)
    for address in pages:
        if address == 0 or address % PAGE or overlaps((address, address + PAGE), away):
            raise DamagedHandoff(f"The request cannot lie at {address:#x}.")
    return Listing(pages, length)


def read(page: bytes, nonce: bytes, get: Callable[[int], bytes], hidden: Iterable[Range]) -> bytes:
    """The request's bytes; ``get`` returns the page at an address.  Raises the errors of
    `unpack_page`."""
    found = unpack_page(page, nonce, hidden)
    return b"".join(get(address) for address in found.pages)[: found.length]


def check(noted: MachineFacts, asked: MachineFacts) -> None:
    """Compare the machine's facts in the request with those in the note.  If they differ, the
    helper is useless, because its core header, its memory map or its way back are wrong.

    Raises `StaleHelper`, which names them.
    """
    names = documents.differing(noted, asked)
    if names:
        raise StaleHelper(f"The warm helper was started with different facts: {', '.join(names)}.")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The locator and the map: where an image without a partition of its own lies.

Runs in all three kernels.  Packing, unpacking and laying out are pure; `read_map`, `write_map`,
`leave` and `clear` work on an open device without spans.  Everything is checked before it is used.
See docs/kjump-image.5.md; all integers are little-endian, offsets in bytes from the device's start.

Locator: the first 1,024 bytes of a block; the rest of the block does not belong to kjump (in a swap
area it is the swap header):

====== ==== =======================================================================
offset size field
====== ==== =======================================================================
0      8    magic ``KJUMPLOC``
8      4    version, 1
12     4    CRC-32 of the 1,024 bytes with this field zero
16     16   cycle id (UUID)
32     8    offset of the first block of the map; 0: there is no image
40     8    size of the target: sum of the map's lengths
48     4    blocks of the map
52     4    kind: 1 file, 2 swap
56     8    time of this write: seconds since the epoch
64     4    length of the outcome
68     60   zero
128    896  outcome: JSON, then zeros
====== ==== =======================================================================

A block of the map:

====== ==== =======================================================================
offset size field
====== ==== =======================================================================
0      8    magic ``KJUMPMAP``
8      16   cycle id
24     4    CRC-32 of the block with this field zero
28     4    number of this block, from 0
32     8    offset of the next block, 0: this is the last
40     4    number of entries, 1 to 253
44     4    zero
48     ..   entries: u64 offset, u64 length
====== ==== =======================================================================
"""

from __future__ import annotations

import struct
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kjump.errors import ImageDamaged, ImageVersion, TargetTooSmall
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.image.device import ByteSpan, DirectDevice
from kjump.image.layout import BLOCK

MAGIC = b"KJUMPLOC"
MAP_MAGIC = b"KJUMPMAP"
VERSION = 1
SIZE = 1024
FILE, SWAP = 1, 2
LOCATOR = struct.Struct("<8sII16sQQIIdI60x")
OUTCOME_OFFSET = LOCATOR.size
OUTCOME_ROOM = SIZE - OUTCOME_OFFSET
MAP = struct.Struct("<8s16sIIQI4x")
ENTRY = struct.Struct("<QQ")
ENTRIES = (BLOCK - MAP.size) // ENTRY.size
CRC_OFFSET, MAP_CRC_OFFSET = 12, 24
MOST_SPANS = 1 << 16
"""Entries of a map at most: a bound on a reader's memory."""
MOST_BLOCKS = -(-MOST_SPANS // ENTRIES)
SWAP_SIGNATURE_OFFSET = BLOCK - 10
SWAP_SIGNATURE = b"SWAPSPACE2"
"""``union swap_header`` (include/linux/swap.h): swapon looks for it.  The kernel's own hibernation
writes another signature while the area contains its image."""

assert OUTCOME_OFFSET == 128
assert MAP.size == 48


@dataclass(frozen=True)
class Locator:
    """See the table above; ``map_offset`` and ``size`` in bytes."""

    cycle: uuid.UUID
    kind: int
    map_offset: int = 0
    size: int = 0
    blocks: int = 0
    changed: float = 0.0
    outcome: Report = field(default_factory=Report)

    def pack(self) -> bytes:
        """The 1,024 bytes.  An outcome that does not fit is shortened, see
        `kjump.handoff.report.fit`."""
        outcome = reports.fit(self.outcome, OUTCOME_ROOM)
        head = LOCATOR.pack(
            MAGIC,
            VERSION,
            0,
            self.cycle.bytes,
            self.map_offset,
            self.size,
            self.blocks,
            self.kind,
            self.changed,
            len(outcome),
        )
        return _sealed((head + outcome).ljust(SIZE, b"\0"), CRC_OFFSET)


def _sealed(data: bytes, at: int) -> bytes:
    """The bytes with their checksum written at ``at``, where they have zeros."""
    return data[:at] + struct.pack("<I", zlib.crc32(data)) + data[at + 4 :]


def _is_sealed(data: bytes, at: int) -> bool:
    return _sealed(data[:at] + bytes(4) + data[at + 4 :], at) == data


def is_locator(block: bytes) -> bool:
    """Whether a block begins with a locator's magic."""
    return block[: len(MAGIC)] == MAGIC


def is_swap(block: bytes) -> bool:
    """Whether a block is the header of a swap area that swapon would accept."""
    return block[SWAP_SIGNATURE_OFFSET:BLOCK] == SWAP_SIGNATURE


def unpack(block: bytes) -> Locator | None:
    """The locator at a block's start, or None if there is none.

    Raises `ImageVersion`, `ImageDamaged`.
    """
    if not is_locator(block):
        return None
    data = bytes(block[:SIZE])
    if len(data) < SIZE or not _is_sealed(data, CRC_OFFSET):
        raise ImageDamaged("The image's locator has a wrong checksum.")
    (
        _magic,
        version,
        _crc,
        cycle,
        map_offset,
        size,
        blocks,
        kind,
        changed,
        length,
    ) = LOCATOR.unpack_from(data)
    if version != VERSION:
        raise ImageVersion(f"The locator is of version {version}, this kjump reads {VERSION}.")
    if kind not in (FILE, SWAP) or length > OUTCOME_ROOM:
        raise ImageDamaged("The image's locator makes no sense.")
    if kind == SWAP and not is_swap(block):
        raise ImageDamaged("The image's locator lies in what is no longer a swap area.")
    return Locator(
        cycle=uuid.UUID(bytes=cycle),
        kind=kind,
        map_offset=map_offset,
        size=size,
        blocks=blocks,
        changed=changed,
        outcome=reports.read_outcome(data[OUTCOME_OFFSET : OUTCOME_OFFSET + length]),
    )


def put_in(block: bytes, locator: bytes) -> bytes:
    """The block with its first 1,024 bytes replaced; the rest stays."""
    if len(block) != BLOCK or len(locator) != SIZE:
        raise ValueError("not a block, or not a locator")
    return locator + block[SIZE:]


# -- laying out ------------------------------------------------------------------------------------


def merged(spans: Sequence[ByteSpan]) -> list[ByteSpan]:
    """Spans in ascending order, neighbours joined; they do not overlap."""
    out: list[ByteSpan] = []
    for offset, length in sorted(spans):
        if out and out[-1][0] + out[-1][1] == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return out


def lay_out(spans: Sequence[ByteSpan]) -> tuple[list[int], list[ByteSpan]]:
    """(offsets of the map's blocks, spans of the image) in these spans, all in whole blocks.

    If there are more spans than a map can hold, it takes the largest.  The map lies in the first
    blocks.  Raises `TargetTooSmall` if nothing is left.
    """
    chosen = list(spans)
    if len(chosen) > MOST_SPANS:
        largest = sorted(range(len(chosen)), key=lambda i: chosen[i][1], reverse=True)
        chosen = [chosen[i] for i in sorted(largest[:MOST_SPANS])]
    # Taking blocks from the front can only make the list of spans shorter.
    owed = -(-len(chosen) // ENTRIES)
    blocks: list[int] = []
    rest: list[ByteSpan] = []
    for offset, length in chosen:
        taken = min(owed - len(blocks), length // BLOCK)
        blocks += range(offset, offset + taken * BLOCK, BLOCK)
        if length > taken * BLOCK:
            rest.append((offset + taken * BLOCK, length - taken * BLOCK))
    if not rest:
        raise TargetTooSmall("The target has no room for an image.")
    return blocks[: -(-len(rest) // ENTRIES)], rest


def pack_map(cycle: uuid.UUID, blocks: Sequence[int], spans: Sequence[ByteSpan]) -> Iterator[bytes]:
    """The blocks of a map, in order; ``blocks``: where each will lie."""
    for number, first in enumerate(range(0, len(spans), ENTRIES)):
        part = spans[first : first + ENTRIES]
        following = blocks[number + 1] if number + 1 < len(blocks) else 0
        head = MAP.pack(MAP_MAGIC, cycle.bytes, 0, number, following, len(part))
        entries = b"".join(ENTRY.pack(*span) for span in part)
        yield _sealed((head + entries).ljust(BLOCK, b"\0"), MAP_CRC_OFFSET)


def unpack_map(block: bytes, cycle: uuid.UUID, number: int) -> tuple[int, list[ByteSpan]]:
    """(offset of the next block, spans) of a block of the map.  Raises `ImageDamaged`."""
    if len(block) != BLOCK or block[:8] != MAP_MAGIC or not _is_sealed(block, MAP_CRC_OFFSET):
        raise ImageDamaged(f"Block {number} of the image's map is not there.")
    _magic, owner, _crc, found, following, count = MAP.unpack_from(block)
    if owner != cycle.bytes or found != number:
        raise ImageDamaged(f"Block {number} of the image's map belongs to another image.")
    if not 0 < count <= ENTRIES:
        raise ImageDamaged(f"Block {number} of the image's map is damaged.")
    end = MAP.size + count * ENTRY.size
    return following, list(ENTRY.iter_unpack(block[MAP.size : end]))


def check_spans(
    spans: Sequence[ByteSpan], locator: Locator, at: int, blocks: Sequence[int], device_size: int
) -> None:
    """Check that every span is on the device and in whole blocks, and that no block is used twice:
    by the spans, the map, or the locator at byte ``at``.  Raises `ImageDamaged`.
    """
    taken = [(at, BLOCK), *((offset, BLOCK) for offset in blocks), *spans]
    end = 0
    for offset, length in sorted(taken):
        if offset < end or length <= 0 or (offset | length) % BLOCK or offset > device_size:
            raise ImageDamaged("The image's map is damaged.")
        end = offset + length
    if end > device_size or sum(length for _, length in spans) != locator.size:
        raise ImageDamaged("The image's map is damaged.")


# -- on a device -----------------------------------------------------------------------------------


def read(device: DirectDevice, at: int) -> tuple[bytes, Locator | None]:
    """The block and the locator at a byte offset.  Raises `ImageVersion`, `ImageDamaged`."""
    if at % BLOCK or not 0 <= at <= device.whole_size - BLOCK:
        raise ImageDamaged(f"There is no block {at} on {device.path}.")
    block = _read_block(device, at)
    return block, unpack(block)


def _read_block(device: DirectDevice, at: int) -> bytes:
    try:
        block = device.read(at, BLOCK)
    except OSError as error:
        raise ImageDamaged(f"{device.path} cannot be read: {error.strerror}.") from error
    if len(block) != BLOCK:
        raise ImageDamaged(f"{device.path} ends at byte {at + len(block)}.")
    return block


def read_map(device: DirectDevice, locator: Locator, at: int) -> list[ByteSpan]:
    """The spans that the locator at byte ``at`` leads to, all checked.

    Raises `ImageDamaged`; takes memory for at most `MOST_SPANS` of them.
    """
    if not 0 < locator.blocks <= MOST_BLOCKS:
        raise ImageDamaged("The image's locator makes no sense.")
    spans: list[ByteSpan] = []
    blocks: list[int] = []
    following = locator.map_offset
    for number in range(locator.blocks):
        if following % BLOCK or not 0 < following <= device.whole_size - BLOCK:
            raise ImageDamaged(f"Block {number} of the image's map is not there.")
        blocks.append(following)
        following, part = unpack_map(_read_block(device, following), locator.cycle, number)
        spans += part
    if following:
        raise ImageDamaged("The image's map does not end.")
    check_spans(spans, locator, at, blocks, device.whole_size)
    return spans


def write_map(
    device: DirectDevice,
    at: int,
    locator: Locator,
    blocks: Sequence[int],
    spans: Sequence[ByteSpan],
) -> Locator:
    """Write the map and flush, and only then write the locator that leads to it, and flush again.
    Returns the locator.

    Raises `TargetWriteFailed`, OSError.
    """
    for offset, block in zip(blocks, pack_map(locator.cycle, blocks, spans), strict=True):
        device.write(offset, block)
    device.flush()
    written = replace(
        locator,
        map_offset=blocks[0],
        size=sum(length for _, length in spans),
        blocks=len(blocks),
        changed=time.time(),
    )
    _put(device, at, written.pack())
    return written


def leave(device: DirectDevice, at: int, locator: Locator, outcome: Report) -> None:
    """Put an outcome into the locator: in a swap area nothing else survives swapon.

    Raises `TargetWriteFailed`, OSError.
    """
    _put(device, at, replace(locator, outcome=outcome, changed=time.time()).pack())


def clear(device: DirectDevice, at: int) -> None:
    """Remove any locator, even a damaged one.

    Raises `TargetWriteFailed`, OSError.
    """
    if is_locator(device.read(at, BLOCK)):
        _put(device, at, bytes(SIZE))


def _put(device: DirectDevice, at: int, data: bytes) -> None:
    device.write(at, put_in(device.read(at, BLOCK), data))
    device.flush()

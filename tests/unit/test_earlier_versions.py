# SPDX-License-Identifier: GPL-2.0-or-later
"""The three kernels may hold different versions of kjump: an initrd is older than the session until
it is rebuilt.  What version 0.1.0 wrote, as it wrote it, is read here.
"""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from typing import Any

import pytest

from kjump.handoff import documents, note, report, request
from kjump.handoff.documents import SaveOrder, WarmOrder
from kjump.image import description, layout, locator

CYCLE = "00000000-0000-0000-0000-000000000005"
MACHINE: dict[str, Any] = {
    "machine": "c0ffee",
    "release": "6.1.0",
    "levels": 4,
    "window": [1 << 30, 5 << 28],
    "low": [],
    "ram": [[0x1000, 0x9F000], [1 << 20, 1 << 32]],
    "firmware_map": [[0, 0x9FC00, 1], [0xFFFC0000, 1 << 32, 2], [0, 1 << 64, 0xEFFFFFFF]],
    "page_count": 1048000,
    "page_offset": 0,
    "report_page": 1 << 21,
    "nonce": "00" * 16,
}
CYCLE_KEYS: dict[str, Any] = {
    "kjump": "0.1.0",
    "cycle": CYCLE,
    "requested": 1796012062.2688336,
    "hostname": "h\u00f6st",
    "free_pages": "skip",
    "target": {"spec": "/dev/sda2", "links": ["/dev/disk/by-partuuid/5"], "size": 1 << 33},
    "level": 1,
    "compression": "auto",
    "deadline": 529,
    "watchdog": 0,
    "file_systems": [{"type": "ext4", "links": ["/dev/disk/by-uuid/7"]}],
}
FIGURES: dict[str, Any] = {
    "phases": {"helper boot": 2.5, "copy": 9},
    "pages": {"data": 5},
    "map": {"cell_pages": 3, "data": "0aZ"},
    "memory": {"total": 1, "available": 1},
    "codecs": {"zstd": 1},
    "profile": {"pack": 1.0},
    "image": {"size": 1, "data": 2},
}


@pytest.mark.parametrize("locator_at", [None, 0, 4096])
def test_an_order_to_save_is_read(locator_at: int | None) -> None:
    where = {} if locator_at is None else {"locator": locator_at}
    written = MACHINE | CYCLE_KEYS | {"target": CYCLE_KEYS["target"] | where}
    order = documents.read(note.unpack(note.descriptor(written)).document)
    assert isinstance(order, SaveOrder)
    assert (order.target.locator, order.deadline, order.facts.page_offset) == (locator_at, 529, 0)
    # What a session writes now is what a helper of that version compares with its note.
    assert {key: order.facts.to_json()[key] for key in MACHINE} == MACHINE
    assert order.to_json() == written


def test_an_order_to_rest_is_read_and_a_request_fits_it() -> None:
    written = MACHINE | {"mode": "warm", "request_page": 4096, "devices": ["/dev/disk/by-id/x"]}
    order = documents.read(note.unpack(note.descriptor(written)).document)
    assert isinstance(order, WarmOrder)
    assert order.to_json() == written
    request.check(order.facts, SaveOrder.from_json(MACHINE | CYCLE_KEYS).facts)


def test_a_description_is_read() -> None:
    kept = {key: x for key, x in CYCLE_KEYS.items() if key in ("cycle", "hostname", "requested")}
    systems = [{**system, "fingerprint": None} for system in CYCLE_KEYS["file_systems"]]
    written = {
        **MACHINE,
        **kept,
        "kjump": "0.1.0",
        "jump_back": 0x123000,
        "file_systems": systems,
        "vmcoreinfo": "OSRELEASE=6.1.0\n",
        "saved": 1796012062.5,
        "watchdog": "softdog, 90 s",
    }
    found = description.unpack(json.dumps(written).encode())
    assert found.jump_back == 0x123000
    assert found.file_systems[0].fingerprint is None
    now = found.to_json()
    assert {key: now[key] for key in written if key != "watchdog"} == {
        key: x for key, x in written.items() if key != "watchdog"
    }


def test_an_outcome_is_read_and_handed_on() -> None:
    written = {"by": "helper", "result": "ok", "processors": 2, "rate": 5, "tries": 1, **FIGURES}
    block = bytearray(layout.Superblock(layout.COMPLETE, 1, uuid.UUID(CYCLE)).pack())
    text = json.dumps(written, separators=(",", ":")).encode()
    _put(block, text)
    found = layout.unpack_superblock(bytes(block))
    assert found is not None
    assert found.outcome.to_json() == written
    page = report.pack(bytes(16), report.restored(found.outcome, "snapshot", 1.0, {"check": 0.5}))
    there = report.unpack(page, bytes(16))
    assert there is not None
    assert {name: there.to_json()[name] for name in FIGURES if name != "phases"} == {
        name: figures for name, figures in FIGURES.items() if name != "phases"
    }
    assert there.phases == {"helper boot": 2.5, "copy": 9, "check": 0.5}


def _put(block: bytearray, outcome: bytes) -> None:
    """Put an outcome into a superblock, sealed anew."""
    blank = len(b"{}")
    at = layout.OUTCOME_OFFSET
    head = layout.SUPERBLOCK.unpack_from(block)
    number = 19  # of the field that says how long the outcome is
    assert head[number] == blank
    layout.SUPERBLOCK.pack_into(block, 0, *head[:number], len(outcome), *head[number + 1 :])
    block[at : at + len(outcome)] = outcome
    struct.pack_into("<I", block, len(block) - 4, zlib.crc32(block[:-4]))


def test_a_reason_that_was_cut_is_read() -> None:
    found = report.read_outcome(b'{"error":"ImageDamaged","what":"' + b"w" * 100 + b'"}')
    assert (found.cause.name, found.cause.what) == ("ImageDamaged", "w" * 100)
    assert found.cause.todo == type(found.cause).advice
    assert locator.Locator(uuid.UUID(CYCLE), locator.FILE).outcome.is_blank

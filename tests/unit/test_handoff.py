# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel between the kernels: what is written is read, and nothing damaged is believed."""

from __future__ import annotations

import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import DamagedHandoff, WrongHandoffVersion
from kjump.handoff import cell, note, report
from kjump.handoff.report import Report
from kjump.machine import elf

DOCUMENTS = st.dictionaries(
    st.text(max_size=10),
    st.one_of(st.integers(), st.text(), st.booleans(), st.lists(st.integers())),
    max_size=8,
)


def descriptor(packed: bytes) -> bytes:
    ((owner, kind, found),) = elf.iterate_notes(packed)
    assert (owner, kind) == (note.OWNER, note.TYPE)
    return found


@given(DOCUMENTS, st.integers(0, 2**64 - 1))
def test_note_round_trip_with_the_address_patched_in(
    document: dict[str, Any], address: int
) -> None:
    packed = bytearray(note.pack(document))
    struct.pack_into(
        "<Q", packed, elf.descriptor_offset(note.OWNER) + note.JUMP_BACK_OFFSET, address
    )
    found = note.unpack(descriptor(bytes(packed)))
    assert found == note.Note(address, document)


@given(DOCUMENTS, st.data())
def test_any_flipped_bit_of_the_note_is_refused(
    document: dict[str, Any], data: st.DataObject
) -> None:
    found = bytearray(descriptor(note.pack(document)))
    at = data.draw(st.integers(0, len(found) - 1))
    if 16 <= at < 24 or 28 <= at < 32:  # the address is not covered, the last word not used
        return
    found[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((DamagedHandoff, WrongHandoffVersion)):
        note.unpack(bytes(found))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises((DamagedHandoff, WrongHandoffVersion)):
        note.unpack(data)
    with pytest.raises(DamagedHandoff):
        cell.unpack(data)
    list(elf.iterate_notes(data))


def test_another_version_is_refused_as_such() -> None:
    found = bytearray(descriptor(note.pack({})))
    struct.pack_into("<H", found, 8, note.MAJOR + 1)
    with pytest.raises(WrongHandoffVersion):
        note.unpack(bytes(found))


def test_unknown_keys_and_a_higher_minor_version_do_not_matter() -> None:
    assert note.unpack(descriptor(note.pack({"from the future": [1]}))).document


def test_notes_stand_beside_others() -> None:
    data = elf.pack_note(b"VMCOREINFO", 0, b"A=1\n") + note.pack({"a": 1})
    assert [owner for owner, _, _ in elf.iterate_notes(data)] == [b"VMCOREINFO", b"KJUMP"]


@given(st.integers(0, 2**52), st.binary(min_size=16, max_size=16), st.integers(0, 2**52), st.data())
def test_cell_round_trip_and_damage(
    page: int, nonce: bytes, start: int, data: st.DataObject
) -> None:
    made = cell.Cell(page, nonce, start, 192 << 20)
    packed = bytearray(made.pack())
    assert len(packed) == 64
    struct.pack_into("<Q", packed, cell.JUMP_BACK_OFFSET, 0x1234000)
    assert cell.unpack(bytes(packed)) == cell.Cell(page, nonce, start, 192 << 20, 0x1234000)
    at = data.draw(st.sampled_from([x for x in range(64) if not 8 <= x < 16]))
    packed[at] ^= 0x10
    with pytest.raises(DamagedHandoff):
        cell.unpack(bytes(packed))


def test_report_page_is_only_for_its_nonce() -> None:
    nonce, other = uuid.uuid4().bytes, uuid.uuid4().bytes
    page = report.pack(nonce, Report("helper", "ok"))
    assert len(page) == report.SIZE
    assert report.unpack(page, nonce) == Report("helper", "ok")
    assert report.unpack(page, other) is None
    assert report.unpack(report.blank(nonce), nonce) is None
    assert report.is_for(report.blank(nonce), nonce)
    assert not report.is_for(report.blank(nonce), other)


def test_a_long_report_keeps_its_error() -> None:
    nonce = bytes(16)
    found = report.unpack(
        report.pack(
            nonce,
            Report("helper", "failed", "X", "y" * 9000, "z"),
        ),
        nonce,
    )
    assert found is not None
    assert found.error == "X" and found.shortened


@given(st.integers(40, 4095), st.integers(0, 7))
def test_a_damaged_report_is_no_report(at: int, bit: int) -> None:
    nonce = bytes(16)
    page = bytearray(report.pack(nonce, Report(what="w" * (report.ROOM - 20))))
    page[at] ^= 1 << bit
    found = report.unpack(bytes(page), nonce)
    assert found is None or found == Report(what="w" * (report.ROOM - 20))

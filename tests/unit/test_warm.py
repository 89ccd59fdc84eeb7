# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm helper: its request is checked as a note is, and a helper that does not fit is stale."""

from __future__ import annotations

import signal
import struct
import uuid
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import (
    DamagedHandoff,
    KjumpError,
    MemoryUnreadable,
    StaleHelper,
    TargetMissing,
    TargetWriteFailed,
    WrongHandoffVersion,
    WrongTarget,
)
from kjump.handoff import documents, note, request
from kjump.handoff.cell import Cell
from kjump.handoff.documents import FileSystem, MachineFacts, SaveOrder, TargetPlace
from kjump.handoff.note import Note
from kjump.helper import copy
from kjump.helper import warm as rests
from kjump.helper.completion import Completion
from kjump.helper.screen import Screen
from kjump.helper.watch import Watch
from kjump.machine.ranges import PAGE
from kjump.session.staging import warm
from kjump.session.staging.warm import Disk, Seen

from . import samples

NONCE = bytes(range(16))
WINDOW = (0x10000000, 0x18000000)
ADDRESSES = st.integers(1, 2**40 // PAGE).map(lambda pfn: pfn * PAGE)
OUTSIDE = ADDRESSES.filter(lambda at: at + PAGE <= WINDOW[0] or at >= WINDOW[1])
OTHER = MachineFacts(
    machine="another",
    release="another",
    levels=5,
    window=(0x1000, 0x2000),
    low=((0x1000, 0x2000),),
    ram=(),
    firmware_map=(),
    page_count=1,
    page_offset=1,
    report_page=0x1000,
    nonce=bytes([1]) * 16,
)
REFUSED = (DamagedHandoff, WrongHandoffVersion)


def packed(pages: list[int], length: int) -> bytes:
    return request.pack_page(NONCE, pages, length)


# -- the request page


@given(st.lists(OUTSIDE, min_size=1, max_size=request.PAGES), st.data())
def test_a_request_page_says_what_was_written(pages: list[int], data: st.DataObject) -> None:
    length = data.draw(st.integers((len(pages) - 1) * PAGE + 1, len(pages) * PAGE))
    found = request.unpack_page(packed(pages, length), NONCE, [WINDOW])
    assert found == request.Listing(tuple(pages), length)


@given(st.lists(OUTSIDE, min_size=1, max_size=request.PAGES), st.data())
def test_any_flipped_bit_of_the_request_page_is_refused(
    pages: list[int], data: st.DataObject
) -> None:
    page = bytearray(packed(pages, len(pages) * PAGE))
    at = data.draw(st.integers(0, request.HEADER.size + 8 * len(pages) - 1))
    page[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(REFUSED):
        request.unpack_page(bytes(page), NONCE, [WINDOW])


@given(st.binary(max_size=2 * PAGE))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(REFUSED):
        request.unpack_page(data, NONCE)


def with_checksum(page: bytearray) -> bytes:
    (count,) = struct.unpack_from("<I", page, 12)
    listed = page[request.HEADER.size : request.HEADER.size + 8 * count]
    struct.pack_into("<I", page, 36, zlib.crc32(listed, zlib.crc32(page[: request.CHECKED])))
    return bytes(page)


@pytest.mark.parametrize(
    ("offset", "form", "value", "error"),
    [
        (8, "<I", 2, WrongHandoffVersion),
        (12, "<I", 0xFFFFFFFF, DamagedHandoff),
        (12, "<I", request.PAGES + 1, DamagedHandoff),
        (12, "<I", 1, DamagedHandoff),
        (16, "<B", 1, DamagedHandoff),
        (32, "<I", 0, DamagedHandoff),
        (32, "<I", PAGE, DamagedHandoff),
        (32, "<I", 2 * PAGE + 1, DamagedHandoff),
        (40, "<Q", 0, DamagedHandoff),
        (40, "<Q", 0x1001, DamagedHandoff),
        (40, "<Q", WINDOW[0], DamagedHandoff),
        (48, "<Q", WINDOW[1] - PAGE, DamagedHandoff),
    ],
)
def test_what_a_right_checksum_does_not_excuse(
    offset: int, form: str, value: int, error: type[Exception]
) -> None:
    page = bytearray(packed([0x1000, 0x2000], PAGE + 1))
    struct.pack_into(form, page, offset, value)
    with pytest.raises(error):
        request.unpack_page(with_checksum(page), NONCE, [WINDOW])


def test_a_page_that_asks_nothing_is_no_request() -> None:
    data = request.read(request.blank(NONCE), NONCE, lambda _: b"", [WINDOW])
    with pytest.raises(DamagedHandoff):
        note.unpack(data)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=3000), max_size=8))
def test_a_request_arrives_through_its_pages(document: dict[str, Any]) -> None:
    data = request.pack(document)
    count = -(-len(data) // PAGE)
    memory = {
        (7 + 3 * n) * PAGE: data[n * PAGE : (n + 1) * PAGE].ljust(PAGE, b"\xa5")
        for n in range(count)
    }
    page = request.pack_page(NONCE, list(memory), len(data))
    read = request.read(page, NONCE, memory.__getitem__, [WINDOW])
    assert note.unpack(read) == Note(0, document)


def test_a_request_that_is_too_long_is_not_made() -> None:
    with pytest.raises(ValueError, match="handoff"):
        request.pack({"x": "y" * note.LARGEST})
    with pytest.raises(ValueError, match="pages"):
        request.pack_page(NONCE, [PAGE] * (request.PAGES + 1), 1)


@pytest.mark.parametrize("key", [field.name for field in fields(MachineFacts)])
def test_a_request_for_another_machine_is_stale(key: str) -> None:
    request.check(samples.FACTS, samples.order(cycle=uuid.UUID(int=2)).facts)
    other = replace(samples.FACTS, **{key: getattr(OTHER, key)})
    with pytest.raises(StaleHelper, match=key):
        request.check(samples.FACTS, other)


# -- in the helper


def test_orders() -> None:
    document = samples.WARM_ORDER.to_json()
    assert documents.read(document) == samples.WARM_ORDER
    assert document["mode"] == "warm" and document["devices"] == ["/dev/disk/by-partuuid/x"]
    del document["request_page"]
    with pytest.raises(DamagedHandoff, match="request_page"):
        documents.read(document)
    for bad in (
        {"request_page": "x", "devices": []},
        {"request_page": 0, "devices": []},
        {"request_page": 0x5001, "devices": []},
        {"request_page": PAGE, "devices": 3},
    ):
        with pytest.raises(DamagedHandoff):
            documents.read({**document, **bad})


@pytest.mark.parametrize(
    ("flags", "online", "bad"),
    [("fpu monitor sse", 2, True), ("fpu monitor sse", 1, False), ("fpu sse", 2, False)],
)
def test_processors_that_would_wait_with_mwait(flags: str, online: int, bad: bool) -> None:
    assert rests.park_badly(f"processor\t: 0\nflags\t\t: {flags}\n", online) == bad


def test_a_warm_note_is_none_that_a_helper_before_could_save_with() -> None:
    """Version 1.0 knew no mode but dry-run: it must not take this for an order to save."""
    with pytest.raises(DamagedHandoff):
        SaveOrder.from_json(samples.WARM_ORDER.to_json())


def test_the_clock_of_a_second_entry_forgets_the_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 20.0
    monkeypatch.setattr("kjump.helper.copy.time.monotonic", lambda: now)
    clock = copy.Clock()
    clock.phase("warm-up")
    now = 21.0
    clock.phase("rest")
    now = 21.5
    clock.again()
    assert (clock.phases, clock.begun) == ({"helper resume": 0.5}, 21.5)
    clock.phase("scan")
    now = 22.0
    clock.phase("")
    assert clock.phases == {"helper resume": 0.5, "scan": 0.5}


class Core:
    """In place of /proc/vmcore."""

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Unwatched(Watch):
    """Listens to nothing."""

    def begin(self, seconds: int) -> None:
        pass


@pytest.mark.parametrize("error", [MemoryUnreadable, TargetMissing, WrongTarget, TargetWriteFailed])
@pytest.mark.parametrize("phase", ["scan", "find target", "copy"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_what_a_warm_helper_cannot_see_makes_it_stale(
    monkeypatch: pytest.MonkeyPatch, error: type[KjumpError], phase: str, is_warm: bool
) -> None:
    """Before anything is written, another helper can take over; later, or cold, it is an error."""
    order = samples.order(window=WINDOW)
    noted = (samples.WARM_ORDER if is_warm else order).to_json()

    def fail(
        _core: object,
        _info: object,
        _order: object,
        _jump_back: object,
        clock: copy.Clock,
        _watch: object,
        _completion: object,
    ) -> None:
        clock.phase(phase)
        raise error("It is so.")

    monkeypatch.setattr(copy, "Vmcore", Core)
    monkeypatch.setattr(copy, "read_notes", lambda _core: ({}, Note(1, noted)))
    monkeypatch.setattr(rests, "prepare", lambda *_: None)
    monkeypatch.setattr(rests, "rest", lambda *_: None)
    monkeypatch.setattr(rests, "asked", lambda *_: order)
    monkeypatch.setattr(copy, "save", fail)
    stale = is_warm and phase != "copy" and error is not TargetWriteFailed
    try:
        with pytest.raises(KjumpError) as raised:
            cell = Cell(0, NONCE, WINDOW[0], WINDOW[1] - WINDOW[0])
            copy.run(cell, copy.Clock(), Unwatched(), Screen([]), Completion())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert raised.type is (StaleHelper if stale else error)


def test_an_unknown_mode_is_no_order_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    order = samples.order(mode="hot").to_json()
    monkeypatch.setattr(copy, "Vmcore", Core)
    monkeypatch.setattr(copy, "read_notes", lambda _core: ({}, Note(1, order)))
    monkeypatch.setattr(copy, "save", lambda *_: pytest.fail("it saves"))
    try:
        with pytest.raises(WrongHandoffVersion):
            copy.run(Cell(0, NONCE, *WINDOW), copy.Clock(), Unwatched(), Screen([]), Completion())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


# -- in the session

ROOT = Disk(2048, 4096, frozenset({"/dev/disk/by-partuuid/root"}))
TARGET = Disk(8192, 4096, frozenset({"/dev/disk/by-partuuid/t", "/dev/disk/by-path/t"}))
SEEN = Seen(("kernel", "initrd"), samples.FACTS, "0-1", {"8:1": ROOT, "8:2": TARGET})


def test_a_machine_that_is_the_same_fits() -> None:
    assert warm.difference(SEEN, SEEN) is None
    # What came or went besides does not matter: only what is needed is in the second.
    assert warm.difference(SEEN, replace(SEEN, disks={"8:2": TARGET})) is None


@pytest.mark.parametrize(
    ("now", "word"),
    [
        (replace(SEEN, made_of=("kernel", "newer")), "initrd"),
        (replace(SEEN, machine=samples.order(ram=((0, PAGE),)).facts), "ram"),
        (replace(SEEN, machine=samples.order(report_page=PAGE).facts), "report_page"),
        (replace(SEEN, processors="0-3"), "processors"),
        (replace(SEEN, disks={"8:2": replace(TARGET, start=1)}), "by-part"),
        (replace(SEEN, disks={"8:2": replace(TARGET, size=1)}), "by-part"),
        (replace(SEEN, disks={"8:2": replace(TARGET, links=frozenset())}), "8:2"),
        (replace(SEEN, disks={"8:17": replace(ROOT)}), "by-partuuid/root"),
    ],
)
def test_what_makes_a_helper_stale(now: Seen, word: str) -> None:
    reason = warm.difference(SEEN, now)
    assert reason is not None and word in reason


def test_what_is_needed_is_what_the_helper_opens() -> None:
    order = samples.order(
        target=TargetPlace("", ("/dev/disk/by-path/t",), 0),
        file_systems=(FileSystem("ext4", ("/dev/disk/by-partuuid/root",)),),
    )
    assert warm.needed(SEEN.disks, order.links) == SEEN.disks
    assert warm.needed(SEEN.disks, replace(order, file_systems=()).links) == {"8:2": TARGET}


def test_reading_the_disks(tmp_path: Path) -> None:
    sys, udev = tmp_path / "sys", tmp_path / "udev"
    udev.mkdir()
    for name, number, start in (
        ("sda", "8:0", None),
        ("sda1", "8:1", 2048),
        ("dm-0", "252:0", None),
        ("loop0", "7:0", None),
        ("sdb", "8:16", None),
    ):
        folder = sys / name
        folder.mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (folder / "size").write_text("4096\n")
        if start is not None:
            (folder / "start").write_text(f"{start}\n")
        if name != "sdb":  # one that udev does not know yet
            (udev / f"b{number}").write_text("S:disk/by-partuuid/root\nS:other\nE:X=1\n")
    found = warm.disks(sys, udev)
    assert found == {"8:0": replace(ROOT, start=0), "8:1": ROOT}


def test_another_initrd_is_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "helper.img"
    path.write_bytes(b"one")
    before = warm.identity(path)
    assert warm.identity(path) == before
    fresh = tmp_path / "helper.new"
    fresh.write_bytes(b"two")
    fresh.replace(path)
    assert warm.identity(path) != before

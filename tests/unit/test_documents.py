# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents that pass between the kernels: what is written is read again, what makes no sense
is refused by name, and what is too long still says why."""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump import errors
from kjump.errors import DamagedHandoff, ImageDamaged, KjumpError, WrongHandoffVersion
from kjump.handoff import documents, fields, note, report
from kjump.handoff.documents import FileSystem, MachineFacts, SaveOrder, TargetPlace, WarmOrder
from kjump.handoff.report import Report
from kjump.image import description, layout, locator
from kjump.image.description import Description, SavedFileSystem
from kjump.machine.memory import Entry
from kjump.machine.ranges import PAGE, Range

from . import samples

CYCLE = uuid.UUID(int=1)
CLEAN = st.text(st.characters(codec="utf-8"), max_size=20)
ANY_TEXT = st.text(st.characters())
"""With surrogates on their own."""
SIZES = st.integers(0, (1 << 64) - 1)
PAGES = st.integers(1, (1 << 40) - 1)
RANGES: st.SearchStrategy[Range] = st.tuples(PAGES, PAGES).map(
    lambda pair: (min(pair) * PAGE, (max(pair) + 1) * PAGE)
)
SECONDS = st.floats(0, 1e9)
TEXTS = st.lists(CLEAN, max_size=3).map(tuple)
FACTS = st.builds(
    MachineFacts,
    machine=CLEAN,
    release=CLEAN,
    levels=st.sampled_from((4, 5)),
    window=RANGES,
    low=st.lists(RANGES, max_size=3).map(tuple),
    ram=st.lists(RANGES, max_size=3).map(tuple),
    firmware_map=st.lists(st.builds(Entry, SIZES, SIZES, SIZES), max_size=3).map(tuple),
    page_count=SIZES,
    page_offset=SIZES,
    report_page=PAGES.map(lambda pfn: pfn * PAGE),
    nonce=st.binary(min_size=16, max_size=16),
)
ORDERS = st.builds(
    SaveOrder,
    FACTS,
    cycle=st.uuids(),
    target=st.builds(TargetPlace, CLEAN, TEXTS, SIZES, st.none() | SIZES),
    deadline=SECONDS,
    watchdog=st.integers(0, 86400),
    level=st.integers(1, 22),
    compression=st.sampled_from(documents.COMPRESSIONS),
    free_pages=st.sampled_from(documents.FREE_PAGES),
    file_systems=st.lists(st.builds(FileSystem, CLEAN, TEXTS), max_size=2).map(tuple),
    kjump=CLEAN,
    requested=SECONDS,
    hostname=CLEAN,
    mode=st.sampled_from((documents.SAVE, documents.DRY_RUN)),
)
WARM_ORDERS = st.builds(WarmOrder, FACTS, PAGES.map(lambda pfn: pfn * PAGE), TEXTS)
DESCRIPTIONS = st.builds(
    Description,
    FACTS,
    jump_back=SIZES,
    cycle=CLEAN,
    hostname=CLEAN,
    kjump=CLEAN,
    requested=SECONDS,
    saved=SECONDS,
    vmcoreinfo=CLEAN,
    watchdog_device=CLEAN,
    file_systems=st.lists(
        st.builds(SavedFileSystem, CLEAN, TEXTS, st.none() | CLEAN), max_size=2
    ).map(tuple),
)
NAMES = st.sampled_from(["", *errors.table()])
COUNTS = st.dictionaries(CLEAN, st.integers(0, 1 << 40), max_size=4)
TIMES = st.dictionaries(CLEAN, st.floats(-1e9, 1e9), max_size=4)
REPORTS = st.builds(
    Report,
    by=st.sampled_from(("", "helper", "resume")),
    result=st.sampled_from(("", "ok", "failed", "warm", "returned")),
    error=NAMES,
    what=CLEAN,
    todo=st.none() | CLEAN,
    tries=st.integers(0, 9),
    hostname=CLEAN,
    phases=TIMES,
    pages=COUNTS,
    map=st.dictionaries(CLEAN, st.integers(0, 9) | CLEAN, max_size=4),
    image=COUNTS,
    memory=COUNTS,
    processors=st.integers(0, 9),
    codecs=COUNTS,
    profile=TIMES,
    rate=SIZES,
    jump_back=SIZES,
    way=CLEAN.map(lambda text: report.cut(text, report.MOST)),
    saved=SECONDS,
    resumed=SECONDS,
    boot_memory=COUNTS,
    shortened=st.booleans(),
    others=st.dictionaries(
        CLEAN.filter(lambda name: name not in report.NAMES),
        SIZES | CLEAN,
        max_size=2,
    ),
)


def sent(document: Any) -> Any:
    """As the other kernel reads it."""
    return json.loads(json.dumps(document.to_json()))


# -- round trips


@given(ORDERS)
def test_an_order_arrives(order: SaveOrder) -> None:
    assert documents.read(note.unpack(note.descriptor(order.to_json())).document) == order


@given(WARM_ORDERS)
def test_a_warm_order_arrives(order: WarmOrder) -> None:
    assert documents.read(sent(order)) == order


@given(DESCRIPTIONS)
def test_a_description_is_read_as_it_was_written(wanted: Description) -> None:
    assert description.unpack(wanted.pack()) == wanted


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(wanted: Report) -> None:
    assert Report.from_json(sent(wanted)) == wanted
    assert report.unpack(report.pack(bytes(16), wanted), bytes(16)) == wanted


@given(ORDERS, ORDERS)
def test_what_differs_is_named(one: SaveOrder, other: SaveOrder) -> None:
    names = documents.differing(one.facts, other.facts)
    assert bool(names) == (one.facts != other.facts)
    assert not documents.differing(one.facts, replace(other, facts=one.facts).facts)


def test_unknown_keys_do_not_matter() -> None:
    more = {"from the future": [float("inf"), "\ud800"]}
    assert SaveOrder.from_json({**samples.ORDER.to_json(), **more}) == samples.ORDER
    assert Description.from_json({**samples.DESCRIPTION.to_json(), **more}) == samples.DESCRIPTION


def test_a_name_that_is_no_utf_8_stops_nothing() -> None:
    """As Linux hands them out: Python has surrogates for such bytes."""
    found = documents.read(sent(samples.order(hostname="h\udcff", kjump="\ud800")))
    assert isinstance(found, SaveOrder) and (found.hostname, found.kjump) == ("h?", "?")
    about = samples.description(hostname="h\udcff", machine="\udcff")
    assert description.unpack(about.pack()).hostname == "h?"


# -- what makes no sense

DEEP = b"[" * 100_000 + b"]" * 100_000
STRANGE: list[object] = [
    None,
    True,
    -1,
    1 << 70,
    10**5000,
    0.5,
    float("nan"),
    float("inf"),
    "x",
    "\ud800",
    "\0",
    [],
    [[]],
    [1, 2],
    [-PAGE, PAGE],
    [PAGE, PAGE],
    [2 * PAGE, PAGE],
    [[1, PAGE]],
    [[0, 1 << 60]],
    [["a", "b"]],
    [[1, 2, 3, 4]],
    [None],
    ["\udfff"],
    {},
    {"links": 3},
    {"links": [3], "size": -1},
]
READERS: list[tuple[Any, type[KjumpError], Callable[[object], object]]] = [
    (samples.ORDER, DamagedHandoff, SaveOrder.from_json),
    (samples.WARM_ORDER, DamagedHandoff, WarmOrder.from_json),
    (samples.DESCRIPTION, ImageDamaged, Description.from_json),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["mode", "warm", "dry-run", "auto"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["links", "type", "size"]) | ANY_TEXT, children, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("document", "error", "read"), READERS)
@pytest.mark.parametrize("value", STRANGE, ids=range(len(STRANGE)))
def test_a_field_that_makes_no_sense_is_named(
    document: Any, error: type[KjumpError], read: Callable[[object], object], value: object
) -> None:
    for key in document.to_json():
        try:
            read({**document.to_json(), key: value})
        except error as found:
            assert f"`{key}`" in found.what, key
        except WrongHandoffVersion:
            assert key == "mode"


@given(st.data())
@pytest.mark.parametrize(("document", "error", "read"), READERS)
def test_any_json_is_the_document_or_the_named_error(
    document: Any, error: type[KjumpError], read: Callable[[object], object], data: st.DataObject
) -> None:
    whole = document.to_json()
    keys = st.sampled_from([*whole, "mode"])
    changed = {**whole, **data.draw(st.dictionaries(keys, JSON, max_size=3))}
    for strange in (changed, data.draw(JSON)):
        try:
            found = read(strange)
        except (error, WrongHandoffVersion):
            continue
        assert read(json.loads(json.dumps(found.to_json()))) == found  # type: ignore[attr-defined]


@given(JSON, st.dictionaries(st.sampled_from(report.NAMES), JSON, max_size=4))
def test_any_json_is_a_report_or_a_damaged_handoff(strange: object, changes: Any) -> None:
    for document in (strange, changes):
        try:
            found = Report.from_json(document)
        except DamagedHandoff:
            continue
        assert report.read(report.fit(found, 400)).error == found.error
        report.pack(bytes(16), found)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        b'{"a":' + DEEP + b"}",
        b'{"cycle":NaN}',
        b'{"cycle":' + b"9" * 5000 + b"}",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"[]",
        b"",
        b"nul",
    ],
)
def test_bytes_that_are_no_document(text: bytes) -> None:
    head = note.HEADER.pack(note.MAGIC, note.MAJOR, note.MINOR, len(text), 0, 0)
    checksum = zlib.crc32(text, zlib.crc32(head[: note.CHECKED]))
    with pytest.raises(DamagedHandoff):
        note.unpack(head[:24] + struct.pack("<II", checksum, 0) + text)
    with pytest.raises(ImageDamaged):
        description.unpack(text)
    assert description.owner(text) == description.Owner()
    assert report.read_outcome(text) == Report()
    with pytest.raises(DamagedHandoff):
        report.read(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_a_damaged_handoff(text: bytes) -> None:
    assert isinstance(report.read_outcome(text), Report)
    with pytest.raises(ImageDamaged):
        description.unpack(text)


def test_what_a_report_nests_too_deeply_is_left_out() -> None:
    """It goes into the history: nobody there is to fail on it."""
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    found = Report.from_json({"deep": deep, "far": 1e999, "lone": "\ud800"})
    assert len(json.dumps(found.more)) < 200
    assert found.more["far"] is None and found.more["lone"] == "?"


# -- making it fit


def everywhere(found: Report) -> list[Report]:
    """What becomes of it on the report page, in the superblock and in the locator."""
    page = report.unpack(report.pack(bytes(16), found), bytes(16))
    superblock = layout.unpack_superblock(
        layout.Superblock(layout.COMPLETE, 1, CYCLE, outcome=found).pack()
    )
    block = locator.Locator(CYCLE, locator.FILE, outcome=found).pack().ljust(layout.BLOCK, b"\0")
    located = locator.unpack(block)
    assert page is not None and superblock is not None and located is not None
    return [page, superblock.outcome, located.outcome]


FIGURES = {
    "phases": {f"phase {n}": 1.0 for n in range(9)},
    "map": {"data": "Z" * 128, "free": "0" * 128},
    "pages": {"data": 10**6},
}


@given(
    st.text(st.characters(), min_size=1, max_size=40).map(lambda text: text * 250),
    st.text(st.characters(), max_size=300),
    st.booleans(),
)
def test_any_text_of_an_error_gets_through(what: str, todo: str, has_figures: bool) -> None:
    error = errors.TargetWriteFailed(what, advice=todo)
    figures: dict[str, Any] = FIGURES if has_figures else {}
    wanted = replace(report.failed("helper", error), tries=2, **figures)
    for found in everywhere(wanted):
        assert (found.by, found.result) == ("helper", "failed")
        assert (found.error, found.tries) == ("TargetWriteFailed", 2)
        assert found.what and fields.clean(what).startswith(found.what)
        assert fields.clean(todo).startswith(found.todo or "")
        assert found.cause.name == error.name


@pytest.mark.parametrize("character", ["y", "ü", "語", "\U0001f600", "\0", '"', "\\"])
@pytest.mark.parametrize("room", [report.ROOM, layout.OUTCOME_ROOM, locator.OUTCOME_ROOM])
def test_the_room_is_used(character: str, room: int) -> None:
    wanted = Report("helper", "failed", "E", character * 10_000, "Try again.", tries=3)
    text = report.fit(wanted, room)
    assert room - 6 < len(text) <= room
    found = report.read(text)
    assert found.todo == "Try again." and found.shortened
    assert found.what == character * len(found.what)


def test_two_long_texts_share_the_room() -> None:
    found = report.read(report.fit(Report(error="E", what="w" * 9000, todo="t" * 9000), 1000))
    assert found.todo is not None and abs(len(found.what) - len(found.todo)) <= 1
    assert len(found.what) > 440


def test_what_fits_is_as_it_was() -> None:
    wanted = replace(report.failed("helper", errors.TargetTooSmall("It has 3 MiB.")), tries=1)
    assert everywhere(wanted) == [wanted] * 3


def test_figures_go_before_the_text_and_the_largest_first() -> None:
    what = "ü" * 1000
    wanted = Report(
        "helper",
        "failed",
        "E",
        what,
        "",
        phases={"copy": 1.0},
        map={"data": "Z" * 2000},
        pages={"data": 1},
    )
    found = report.read(report.fit(wanted, 3000))
    assert found == replace(wanted, map={}, shortened=True)
    found = report.read(report.fit(wanted, 1500))
    assert not found.map and not found.phases and not found.pages
    assert what.startswith(found.what) and found.what


def test_a_restored_session_gets_the_figures_of_all_kernels() -> None:
    outcome = Report("helper", "ok", tries=1, phases={"copy": 2.0}, pages={"data": 3}, rate=5)
    found = report.restored(outcome, report.IN_PLACE, 10.0, {"put back": 1.0})
    assert (found.by, found.result, found.way, found.tries) == ("resume", "ok", "in-place", 0)
    assert found.phases == {"copy": 2.0, "put back": 1.0} and found.figures["pages"] == {"data": 3}
    assert found.saved == 10.0 < found.resumed

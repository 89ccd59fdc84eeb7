# SPDX-License-Identifier: GPL-2.0-or-later
"""tests.bench: figures, phases and picture."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.bench import __main__ as bench
from tests.bench import figures, picture, spans
from tests.bench.figures import LZ4, LZO, MIB, OURS, WARM, Cell, Record

CELL = Cell(2048, 85, "random", 200)


def record(system: str = OURS, pair: int = 1, **fields: object) -> Record:
    base = Record(CELL, system, pair, off=30.0, running=40.0, written=100 * MIB, took=200.0)
    return replace(base, **fields)  # type: ignore[arg-type]


def test_a_ratio_is_taken_in_each_pair() -> None:
    ours = [record(pair=n, off=x) for n, x in ((1, 10.0), (2, 20.0), (3, 90.0))]
    stock = [record(LZO, n, off=x) for n, x in ((3, 100.0), (2, 20.0), (1, 20.0))]
    # 0.5, 1.0, 0.9: not the ratio of the medians, which is 1.
    assert figures.ratio(ours, stock, "off") == 0.9
    assert figures.ratio(ours, stock[:1], "off") == 0.9
    assert figures.ratio(ours, [], "off") is None


def test_ratios_are_reported_until_all_of_memory_is_back() -> None:
    records = [
        record(facts={"whole": 50.0}),
        record(LZO, off=60.0, running=30.0, facts={"whole": 100.0}),
        record(LZ4, off=20.0, running=80.0),  # measured before that was
    ]
    heading, row = figures.ratio_rows(records)
    assert heading[-2:] == [f"power on to all of memory: {w}" for w in ("cold", "warm")]
    assert row[1::2] == ["0.50, 1.50", "1.33, 0.50", "0.50, -"]
    assert row[2::2] == ["-, -"] * 3
    assert len(figures.ratio_rows(records[:1])) == 1


def test_goals_that_are_reached_and_missed() -> None:
    records = [record(off=29.0, running=90.0), record(LZO, off=60.0, running=80.0)]
    found = {g.what.partition(",")[0]: g for g in figures.goals(records)}
    assert found["request to power off"].reached
    assert found["request to power off"].limit == 0.5
    assert not found["power on to running"].reached


def test_the_goal_at_a_quarter_is_for_the_warm_helper() -> None:
    cell = Cell(2048, 25, "text", 0)
    records = [replace(record(system), cell=cell) for system in (OURS, WARM, LZO)]
    off = [g for g in figures.goals(records) if g.what.startswith("request to power off")]
    assert len(off) == 1
    assert "warm" in off[0].what
    assert off[0].limit == 1.0


def test_the_copy_is_compared_with_a_plain_write_only_if_the_disk_is_the_limit() -> None:
    at = record(image=180 * MIB, copy=1.0, plain=200.0 * MIB)
    found = [g for g in figures.goals([at]) if g.what.startswith("copy phase / plain")]
    assert [(round(g.found, 2), g.reached) for g in found] == [(0.9, True)]
    slow = replace(at, copy=1.2)
    assert not figures.goals([slow])[0].reached
    assert not figures.goals([replace(at, cell=replace(CELL, throttle=0))])


def test_growth_with_memory() -> None:
    sizes = {1024: 10.0, 2048: 21.0, 8192: 96.0}
    records = [
        replace(record(copy=seconds), cell=replace(CELL, memory=size))
        for size, seconds in sizes.items()
    ]
    found = figures.growth(records)
    assert [(round(g.found, 2), g.reached) for g in found] == [(1.05, True), (1.2, False)]


def test_results_are_read_as_they_were_written() -> None:
    one = record(saving=[("copy", 1.0, 2.5)], helper=5, facts={"agent": 3.0})
    records, about = figures.load(figures.dump([one], {"image": "guest-1"}))
    assert records == [one]
    assert about == {"image": "guest-1"}
    with pytest.raises((ValueError, KeyError)):
        figures.load("{}")


def test_report_has_a_row_for_each_system_and_says_what_is_missed() -> None:
    records = [record(n) for n in (OURS, LZO)]
    text = figures.report(records, {"image": "guest-1"})
    assert text.count("| kjump, cold ") == 3  # its figures, and its phases off and on
    assert "MISSED" in text
    widths = {line.count("|") for line in figures.markdown(figures.rows(records)).splitlines()}
    assert len(widths) == 1


def test_a_busy_host_is_reported() -> None:
    said = "the host had other work to do"
    assert said not in figures.report([record(others=0.05)], {})
    assert said in figures.report([record(others=0.05), record(LZO, others=0.4)], {})


STOCK_CONSOLE = [
    (0.5, "[   1.0] PM: hibernation: hibernation entry"),
    (0.6, "[   1.1] Filesystems sync: 0.010 seconds"),
    (1.0, "[   1.2] PM: hibernation: Preallocating image memory"),
    (4.0, "[   4.2] PM: hibernation: Allocated 101230 pages for snapshot"),
    (4.1, "[   4.2] PM: hibernation: Allocated 404920 kbytes in 3.00 seconds (134.97 MB/s)"),
    (5.0, "[   5.1] PM: hibernation: Creating image:"),
    (6.0, "[   5.1] PM: hibernation: Image created (98000 pages copied, 1200 zero pages)"),
    (7.0, "[   6.0] PM: Compressing and saving image data (98230 pages)..."),
    (9.0, "[   8.0] PM: Image saving done"),
    (9.0, "[   8.0] PM: hibernation: Wrote 392920 kbytes in 2.00 seconds (196.46 MB/s)"),
]


def test_phases_of_the_kernels_own_hibernation() -> None:
    found = spans.cut(STOCK_CONSOLE, spans.STOCK_SAVING, 10.0, "switch off")
    assert [(name, end) for name, _, end in found] == [
        ("request", 0.5),
        ("freeze", 1.0),
        ("make room in memory", 4.0),
        ("stop devices", 5.0),
        ("copy in memory", 6.0),
        ("start devices", 7.0),
        ("write", 9.0),
        ("switch off", 10.0),
    ]
    assert [begin for _, begin, _ in found[1:]] == [end for _, _, end in found[:-1]]
    assert spans.stock_image(STOCK_CONSOLE) == 392920 << 10


def test_a_mark_that_is_not_said_leaves_its_time_to_the_next() -> None:
    found = spans.cut(STOCK_CONSOLE[5:], spans.STOCK_SAVING, 10.0, "switch off")
    assert found[0] == ("stop devices", 0.0, 5.0)


def test_phases_of_ours_end_at_the_power_off() -> None:
    phases = {
        "check": 0.2,
        "stage": 1.0,
        "jump": 2.0,
        "helper boot": 5.0,
        "scan": 0.01,
        "copy": 10.0,
        "commit": 0.1,
        "boot kernel": 9.0,
        "put back": 5.0,
        "unload": 0.3,
    }
    found = spans.ours_saving([(9.0, "kjump: saving 700 MiB of guest to /dev/vda3")], phases, 20.5)
    assert found[0][0] == "request"
    begin = {name: begin for name, begin, _ in found}
    assert begin["copy"] == pytest.approx(9.0)
    assert found[-1][0] == "switch off"
    assert found[-1][2] == 20.5
    assert "put back" not in begin


def test_phases_of_the_way_back() -> None:
    begin = [(3.0, "[ 0.0] Linux version 6.12"), (9.0, "kjump: resuming the session of g, saved")]
    beside = [(11.0, "kjump: resuming g:  50 %"), (13.0, "kjump: resuming g: 100 %")]
    found = spans.ours_resuming([*begin, *beside], 20.0)
    assert [(name, end) for name, _, end in found] == [
        ("firmware, boot loader", 3.0),
        ("boot kernel", 9.0),
        ("load", 13.0),
        ("session wakes", 20.0),
    ]
    in_place = [
        (9.5, "kjump: restoring in place: the image does not fit"),
        (10.0, "[ 0.0] Linux version 6.12"),
        (15.0, "kjump: resuming g in place:  20 %"),
        (16.0, "kjump: resuming g in place:  90 %"),
        (17.0, "kjump: jumping into the session"),
    ]
    found = spans.ours_resuming([*begin, *in_place], 20.0)
    assert [(name, end) for name, _, end in found][2:] == [
        ("check", 9.5),
        ("jump", 10.0),
        ("restorer boot", 15.0),
        ("put back", 17.0),
        ("session wakes", 20.0),
    ]


def test_the_picture_is_svg_with_every_system() -> None:
    spans_of = [("copy", 0.0, 30.0), ("a <new> phase", 30.0, 31.0)]
    records = [record(n, saving=spans_of, resuming=[("load", 0.0, 40.0)]) for n in (OURS, LZ4)]
    text = picture.timeline(records)
    root = ElementTree.fromstring(text)
    said = "".join(root.itertext())
    assert figures.TITLES[OURS] in said
    assert figures.TITLES[LZ4] in said
    assert "a <new> phase" in said
    ElementTree.fromstring(picture.timeline([]))


@pytest.mark.parametrize(("longest", "wanted"), [(0.5, 0.1), (9.0, 1), (95.0, 10), (230.0, 50)])
def test_axis(longest: float, wanted: float) -> None:
    assert picture.step(longest) == pytest.approx(wanted)


def test_systems_take_turns_in_going_first() -> None:
    plan = bench.alternating([CELL], (OURS, LZO, LZ4), 3)
    assert [system for _, system, _ in plan] == [OURS, LZO, LZ4, LZO, LZ4, OURS, LZ4, OURS, LZO]
    assert len(set(plan)) == 9


def test_the_default_plan_has_three_pairs_and_every_goal() -> None:
    plan = bench.default_plan(3)
    assert len(plan) == len(set(plan))
    records = [
        replace(record(system, pair, image=10, copy=1.0, plain=10.0), cell=cell)
        for cell, system, pair in plan
    ]
    said = {g.what.split(",")[0].split(" /")[0] for g in figures.goals(records)}
    assert said == {
        "request to power off",
        "power on to running",
        "copy phase",
        "copy phase per GiB",
    }
    assert bench.minutes(plan, records) == pytest.approx(len(plan) * 200 / 60)

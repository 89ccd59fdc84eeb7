# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl history show and plot: one cycle is found by its id, and drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.cli import main as kjumpctl
from kjump.cli import plot
from kjump.helper import states
from kjump.session.cycle.history import History

SVG = "{http://www.w3.org/2000/svg}"
ENTRY: dict[str, Any] = {
    "cycle": "11111111-2222",
    "result": "ok",
    "where": "resume",
    "started": 1.8e9,
    "phases": {
        "check": 0.5,
        "jump": 1.0,
        "helper boot": 4.0,
        "copy": 8.0,
        "boot kernel": 5.0,
        "resume check": 0.25,
        "unload": 0.25,
    },
    "wall": {"check": 0.5, "jump": 60.0, "unload": 0.25},
    "pages": {"data": 1000},
    "image": {"size": 2048, "data": 4096},
    "map": {"cell_pages": 1024, "data": "Z0v0", "free": "00v0", "window": "0000"},
}


def test_the_helper_and_the_session_mean_the_same_digits_and_kinds() -> None:
    assert plot.SHARES == states.SHARES
    assert set(plot.KINDS) == set(states.NAMES) == set(plot.WORDS)


def test_phases_stand_in_the_lane_of_their_kernel_one_after_the_other() -> None:
    bars = plot.bars(ENTRY)
    assert [(bar.lane, bar.name) for bar in bars] == [
        ("session", "check"),
        ("session", "jump"),
        ("helper", "helper boot"),
        ("helper", "copy"),
        ("boot", "boot kernel"),
        ("boot", "resume check"),
        ("session", "unload"),
    ]
    assert [bar.start for bar in bars] == [0, 0.5, 1.5, 5.5, 13.5, 18.5, 18.75]
    only = plot.bars({"phases": {"check": 1.0, "stage": 2.0}, "wall": {"check": 1, "stage": 2}})
    assert {bar.lane for bar in only} == {"session"}


def test_the_map_of_memory() -> None:
    assert plot.cells(ENTRY["map"]) == [{"data": 1.0}, {}, {"data": 0.5, "free": 0.5}] or (
        plot.cells(ENTRY["map"])[2]["data"] == pytest.approx(31 / 62)
    )
    assert plot.cells({}) == [] and plot.cells({"data": "!?"}) == []


def test_scales() -> None:
    assert plot.ticks(0.35) == [0, 0.1, 0.2, 0.3]
    assert plot.ticks(23.6) == [0, 5, 10, 15, 20]
    assert plot.ticks(130) == [0, 20, 40, 60, 80, 100, 120]
    assert plot.ticks(1e6)[-1] == 1e6


def test_the_picture_stands_alone() -> None:
    text = plot.svg(ENTRY)
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg" and "prefers-color-scheme: dark" in text
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert "Cycle 11111111-2222: restored from disk" in words and "copy" in words
    assert "8.00 s" in words and "free, left out" in words
    assert "href" not in text and "<script" not in text and "@import" not in text
    boxes = list(root.iter(f"{SVG}rect"))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in boxes:
        assert 0 <= float(box.get("x", 0)) <= width and 0 <= float(box.get("width", 0)) <= width
        assert float(box.get("y", 0)) + float(box.get("height", 0)) <= height + 0.1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats(0, 1e5) | st.text(max_size=9),
    lambda inner: st.dictionaries(st.sampled_from(["data", "cell_pages", "jump", "size"]), inner),
    max_leaves=4,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "cycle": st.text(max_size=5).filter(str.isprintable),
            "started": st.none() | st.floats(0, 1e9),
            "phases": st.dictionaries(
                st.sampled_from(["check", "jump", "copy", "boot kernel"]), st.floats(-1, 1e5)
            ),
            "wall": st.dictionaries(st.sampled_from(["check", "jump"]), st.floats(0, 10)),
            "map": JSON,
            "error": st.sampled_from(["Busy"]),
            "what": st.text("ab ", max_size=300),
        },
    )
)
def test_an_entry_with_holes_is_drawn_all_the_same(entry: dict[str, Any]) -> None:
    ET.fromstring(plot.svg(entry))


def test_one_cycle_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    kept = History(path)
    kept.add(ENTRY)
    kept.add({**ENTRY, "cycle": "11112222-3333", "result": "returned"})
    file = ["--file", str(path)]
    assert kjumpctl.main(["history", "show", "11111", *file]) == 0
    assert "Cycle 11111111-2222: restored" in capsys.readouterr().out
    assert kjumpctl.main(["history", "show", "last", "--json", *file]) == 0
    assert json.loads(capsys.readouterr().out)["cycle"] == "11112222-3333"
    assert kjumpctl.main(["history", "--json", *file, "show", "last"]) == 0
    assert json.loads(capsys.readouterr().out)["cycle"] == "11112222-3333"
    assert kjumpctl.main(["history", "show", "1111", *file]) == 2
    assert "2 cycles begin" in capsys.readouterr().err
    assert kjumpctl.main(["history", "show", "9", *file]) == 2
    out = tmp_path / "cycle.svg"
    assert kjumpctl.main(["plot", "-o", str(out), *file]) == 0
    assert "11112222-3333" in out.read_text()
    assert kjumpctl.main(["plot", "11111", *file]) == 0
    assert capsys.readouterr().out == plot.svg(ENTRY)
    assert kjumpctl.main(["plot", "-o", str(tmp_path / "no/way"), *file]) == 2

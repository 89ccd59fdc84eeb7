# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.cycle.history: nothing is lost, nothing torn counts, and what images mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from kjump import errors
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.session import mark
from kjump.session.cycle import recovery
from kjump.session.cycle.history import History
from kjump.session.cycle.recovery import afterlife
from kjump.session.mark import Mark


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    kept = History(tmp_path / "lib" / "history.jsonl")
    assert kept.entries() == [] and kept.last() is None
    kept.add({"cycle": "1", "text": "a\nb"})
    kept.add({"cycle": "2"})
    assert [entry["cycle"] for entry in kept.entries()] == ["1", "2"]
    assert kept.last() == {"cycle": "2"}
    assert kept.entries()[0]["text"] == "a\nb"


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    kept = History(tmp_path / "h")
    kept.add({"cycle": "1"})
    with kept.path.open("ab") as stream:
        stream.write(b'{"cycle": "2", "phas')
    kept.add({"cycle": "3"})
    with kept.path.open("ab") as stream:
        stream.write(b"[1]\n\xff\xfe\n")
    assert [entry["cycle"] for entry in kept.entries()] == ["1", "3"]


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    kept = History(tmp_path / "h", keep=8)
    for number in range(100):
        kept.add({"cycle": number})
        assert kept.last() == {"cycle": number}
    assert [entry["cycle"] for entry in kept.entries()] == list(range(92, 100))
    assert len(kept.path.read_bytes().splitlines()) <= 10
    assert list(tmp_path.iterdir()) == [kept.path]


def test_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "run" / "staged"
    assert mark.read_mark(path) is None
    mark.write_mark(Mark("c", "/dev/vda3", hooks=True), path)
    assert mark.read_mark(path) == Mark("c", "/dev/vda3", hooks=True)
    path.write_text("{")
    found = mark.read_mark(path)
    assert found is not None and found.hooks  # in doubt, what may be owed is given
    mark.clear_mark(path)
    mark.clear_mark(path)
    assert mark.read_mark(path) is None


@pytest.mark.parametrize(
    ("state", "skipped", "error"),
    [
        ("empty", False, errors.ImageIncomplete),
        ("writing", False, errors.ImageIncomplete),
        ("complete", False, errors.NoBootResume),
        ("complete", True, errors.ResumeSkipped),
        ("restoring", False, errors.RestoreFailed),
        ("restoring", True, errors.RestoreFailed),
    ],
)
def test_what_an_image_at_start_means(
    state: str, skipped: bool, error: type[errors.KjumpError]
) -> None:
    after = afterlife(state, Report(hostname="h"), known=False, skipped=skipped)
    assert type(after.error) is error
    assert after.retire
    # Reported once, but never left usable.
    assert afterlife(state, Report(), known=True, skipped=skipped) == recovery.Afterlife(None, True)


def test_a_reason_on_the_image_is_the_reason() -> None:
    reason = reports.failed("resume", errors.MemoryMapChanged("It changed."))
    after = afterlife("spent", reason, known=False, skipped=False)
    assert isinstance(after.error, errors.MemoryMapChanged)
    assert not after.retire
    assert afterlife("spent", reason, known=True, skipped=False).error is None
    assert afterlife("spent", Report(), known=False, skipped=False) == recovery.Afterlife(
        None, False
    )

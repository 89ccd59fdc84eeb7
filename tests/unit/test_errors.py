# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.errors: one name, one code, one sentence each."""

from __future__ import annotations

import re

from kjump import errors


def test_names_and_exit_codes_are_unique() -> None:
    found = errors.table()
    codes = [cls.exit_code for cls in found.values()]
    assert len(codes) == len(set(codes))
    assert all(2 <= code <= 125 for code in codes)
    assert len({cls("").dbus_name for cls in found.values()}) == len(found)
    for name in found:
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name)


def test_availability_is_no_or_na() -> None:
    assert {cls.availability for cls in errors.table().values()} == {"no", "na"}


def test_an_error_travels() -> None:
    error = errors.TargetTooSmall("The target has 1 MiB.", advice="Buy another.")
    again = errors.from_report({"by": "helper", **error.report()})
    assert type(again) is errors.TargetTooSmall
    assert (again.what, again.todo) == (error.what, error.todo)
    assert again.sentence == "The target has 1 MiB.  Buy another."


def test_a_message_is_split_into_what_it_was_made_of() -> None:
    error = errors.TargetTooSmall("The target\nhas 1 MiB.", advice="Buy another.\nOr two.")
    assert errors.split_message(error.message) == ("The target has 1 MiB.", "Buy another.\nOr two.")
    assert errors.split_message(errors.NoImage("None.").message) == ("None.", "")


def test_an_unknown_error_keeps_its_name() -> None:
    error = errors.from_report({"error": "FluxGone", "what": "No flux."})
    assert isinstance(error, errors.HelperFailed)
    assert error.what == "FluxGone: No flux."
    assert isinstance(errors.from_report({}), errors.HelperFailed)


def test_advice_is_a_sentence_or_nothing() -> None:
    for name, cls in errors.table().items():
        if cls.advice:
            assert cls.advice.rstrip()[-1] in ".)=", name

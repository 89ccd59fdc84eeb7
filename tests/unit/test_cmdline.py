# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.machine.cmdline reads the command line as the kernel does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.machine import cmdline
from kjump.machine.cmdline import CommandLine, Word, parse


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n", []),
        ("quiet  root=/dev/sda2\n", [("quiet", None), ("root", "/dev/sda2")]),
        # Quotes keep blanks, and go if they are around the word or the value.
        ('kjump.target="PARTLABEL=a b"', [("kjump.target", "PARTLABEL=a b")]),
        ('"kjump.target=PARTLABEL=a b" x', [("kjump.target", "PARTLABEL=a b"), ("x", None)]),
        ('a=b"c d"e', [("a", 'b"c d"e')]),
        ('"quiet"', [("quiet", None)]),
        ('a="', [("a", "")]),
        ('a="b c', [("a", "b c")]),
        ("a= b", [("a", ""), ("b", None)]),
        ("=a=b", [("=a", "b")]),
        ("=a", [("=a", None)]),
        # The rest is for init.
        ("quiet -- noresume", [("quiet", None)]),
        ('quiet "--" noresume', [("quiet", None)]),
        ("quiet --=1 a", [("quiet", None), ("--", "1"), ("a", None)]),
        ("a\tb\x0bc\u00a0d", [("a", None), ("b", None), ("c\u00a0d", None)]),
    ],
)
def test_words(text: str, words: list[tuple[str, str | None]]) -> None:
    assert parse(text).words == tuple(Word(*word) for word in words)


def test_names_and_the_last_value() -> None:
    found = parse("init-on-free=1 kjump.target=/dev/a kjump.target=/dev/b kjump.target")
    assert found.has("init_on_free") and not found.has("init")
    assert found.value("kjump.target") == "/dev/b"
    assert found.value("kjump_target") is None and found.value("init_on_free") == "1"
    assert parse("kjump.skip_wait=2").value(cmdline.SKIP_WAIT) == "2"


@pytest.mark.parametrize("word", ["kjump.noresume", "noresume", '"noresume"', "noresume=1"])
def test_a_boot_without_resuming(word: str) -> None:
    assert parse(f"quiet {word}").skips_resume
    assert not parse(f"quiet -- {word}").skips_resume
    assert not parse(f"quiet x{word}").skips_resume


@pytest.mark.parametrize(
    ("value", "on"),
    [
        *((text, True) for text in ("1", "y", "Yes", "on", "ON", "onx", "t", "true", "enable")),
        *((text, False) for text in ("0", "n", "No", "off", "OFF", "of")),
        # Newer kernels read these as no, older ones ignore them; none reads these as yes.
        *((text, None) for text in ("f", "false", "disable", "", "o", "x", " 1")),
    ],
)
def test_switches(value: str, on: bool | None) -> None:
    assert cmdline.may_be_true(value) is on
    words = parse(f'a-b="{value}"')
    for default in (False, True):
        assert words.may_be_on("a_b", default=default) is (default if on is None else on)
    assert parse(f"a=0 a={value}").may_be_on("a") is bool(on and " " not in value)
    assert parse("a").may_be_on("a") is False


@given(
    st.lists(
        st.tuples(
            st.text("ab-_.", min_size=1).filter(lambda name: name != "--"),
            st.none() | st.text('ab =\t"').filter(lambda value: '"' not in value),
        )
    )
)
def test_what_is_written_is_read_again(pairs: list[tuple[str, str | None]]) -> None:
    words = tuple(Word(*pair) for pair in pairs)
    assert parse(" ".join(map(str, words))).words == words


@given(st.text('ab= "-\t\n'))
def test_no_text_is_an_error_and_no_letter_gets_lost(text: str) -> None:
    letters = "".join(word.name + (word.value or "") for word in cmdline.split(text))
    assert letters.count("a") == text.count("a") and letters.count("b") == text.count("b")


def test_the_kernels_own_hibernation() -> None:
    def words(function: Any, text: str) -> list[str]:
        return [str(word) for word in function(parse(text))]

    assert words(cmdline.hibernation_off, "hibernate=no hibernate=nope") == [
        "hibernate=no",
        "hibernate=nope",
    ]
    assert words(cmdline.hibernation_off, 'nohibernate hibernate="no"') == [
        "nohibernate",
        "hibernate=no",
    ]
    for text in ("hibernate=noresume", "hibernate=nocompress", "hibernate", "noresume"):
        assert words(cmdline.hibernation_off, text) == []
    assert words(cmdline.kernel_resume_off, "noresume") == ["noresume"]
    assert words(cmdline.kernel_resume_off, "hibernate=noresume") == ["hibernate=noresume"]
    assert words(cmdline.kernel_resume_off, "nohibernate") == ["nohibernate"]


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    assert cmdline.read(path) == CommandLine()
    path.write_bytes(b"label=\xff\xc3\xa4 quiet\n")
    assert cmdline.read(path).value("label") == "\udcffä" and cmdline.read(path).has("quiet")
    assert cmdline.read().words

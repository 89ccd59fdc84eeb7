# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth in the helper: nobody waits for it, whatever it does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kjump.console import lines as console
from kjump.console import splash
from kjump.helper import screen
from kjump.helper.screen import Screen

DAEMON = 'echo $$ >"{0}/pid"; printf "%s|" "$@" >"{0}/started"; exec sleep 60'
CLIENT = '{{ printf "%s|" "$@"; echo; }} >>"{0}/said"; [ "$1" != quit ] || kill $(cat "{0}/pid")'
AT_ONCE = 0.3


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "also", [])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def program(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + script.format(tmp_path) + "\n")
        path.chmod(0o755)
        return path

    def build(daemon: str = DAEMON, client: str = CLIENT) -> Screen:
        found = Screen([program("plymouthd", daemon)], [program("plymouth", client)])
        made.append(found)
        return found

    yield build
    for each in made:
        each.end()


def said(folder: Path) -> list[str]:
    try:
        return (folder / "said").read_text().splitlines()
    except OSError:
        return []


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def test_what_the_console_says_is_shown_until_the_end(
    make: Callable[..., Screen], tmp_path: Path
) -> None:
    shown = make()
    shown.begin("console=ttyS0 plymouth.debug splash=verbose")
    console.also[0]("saving 1 %")
    until(lambda: "display-message|--text=saving 1 %|" in said(tmp_path))
    console.also[0]("saving 2 %")
    until(lambda: "display-message|--text=saving 2 %|" in said(tmp_path))
    assert runs(tmp_path)
    time.sleep(0.3)
    assert said(tmp_path).count("display-message|--text=saving 2 %|") == 1
    shown.end()
    assert not runs(tmp_path)
    lines = said(tmp_path)
    assert lines[:2] == ["--ping|", "show-splash|"] and lines[-1] == "quit|"
    words = (tmp_path / "started").read_text()
    assert "--no-daemon|" in words
    told = "splash plymouth.ignore-serial-consoles plymouth.debug"
    assert f"--kernel-command-line={told}|" in words


def test_only_the_last_of_several_lines_is_shown(
    make: Callable[..., Screen], tmp_path: Path
) -> None:
    shown = make()
    shown.begin()
    for number in range(100):
        shown.show(f"saving {number} %")
    until(lambda: "display-message|--text=saving 99 %|" in said(tmp_path))
    assert len(said(tmp_path)) < 50


def test_without_plymouth_nothing_happens(tmp_path: Path) -> None:
    shown = Screen([tmp_path / "plymouthd"], [tmp_path / "plymouth"])
    shown.begin()
    assert console.also == []
    shown.show("saving 1 %")
    shown.end()


@pytest.mark.parametrize(
    ("daemon", "client"),
    [
        ("exit 1", CLIENT),  # it does not start
        (DAEMON, "exit 1"),  # it starts, and does not answer
        (DAEMON, "exec sleep 15"),
        (DAEMON, '[ "$1" = --ping ] || exec sleep 15'),  # it hangs later
        (
            "trap '' TERM; " + DAEMON.removesuffix("exec sleep 60") + "while :; do sleep 1; done",
            '[ "$1" != show-splash ] || exec sleep 15',
        ),
        ("sleep 0.5", CLIENT),  # it dies later
    ],
)
def test_nobody_waits_for_one_that_fails(
    make: Callable[..., Screen],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    daemon: str,
    client: str,
) -> None:
    monkeypatch.setattr(splash, "PATIENCE", 20)
    shown = make(daemon, client)
    begun = time.monotonic()
    shown.begin()
    shown.show("saving 1 %")
    assert time.monotonic() - begun < AT_ONCE
    time.sleep(1)
    begun = time.monotonic()
    shown.show("saving 2 %")
    assert time.monotonic() - begun < AT_ONCE
    shown.end()
    assert time.monotonic() - begun < screen.LEAVE + AT_ONCE
    until(lambda: not runs(tmp_path))


def test_for_a_question_it_goes_and_stays_away(make: Callable[..., Screen], tmp_path: Path) -> None:
    """The person who is asked sees the console, and Plymouth has none of her keys."""
    shown = make()
    shown.begin()
    console.also[0]("resuming 1 %")
    until(lambda: "display-message|--text=resuming 1 %|" in said(tmp_path))
    with shown.out_of_the_way():
        assert not runs(tmp_path)
    console.also[0]("resuming 2 %")
    assert said(tmp_path)[-1] == "quit|" and not runs(tmp_path)

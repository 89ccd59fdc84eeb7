# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl's commands that ask kjumpd, and what they share on the terminal."""

from __future__ import annotations

import io
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest

from kjump import errors
from kjump.cli import client, terminal
from kjump.cli import main as kjumpctl

REPORT = {"cycle": "c1", "result": "warm", "phases": {"helper boot": 2.0}}


class Kjumpd:
    """The daemon, as the command line sees it."""

    answer: tuple[str, list[tuple[str, str]]] = ("yes", [])
    staged: dict[str, Any] = {"json": json.dumps(REPORT)}  # noqa: RUF012
    warnings: list[str] = []  # noqa: RUF012

    def properties(self) -> dict[str, Any]:
        return {
            "Version": "9",
            "State": "idle",
            "Available": "yes",
            "Target": {"present": True, "spec": "UUID=1", "path": "/dev/sda2", "kind": "swap"},
            "LastCycle": {"json": json.dumps({**REPORT, "result": "ok"})},
        }

    def can_hibernate(self) -> tuple[str, list[tuple[str, str]]]:
        return self.answer

    def stage(self, *, warm: bool) -> dict[str, Any]:
        assert warm
        return self.staged

    def unstage(self) -> None:
        pass

    def reload(self) -> list[str]:
        return self.warnings


@pytest.fixture(autouse=True)
def kjumpd(monkeypatch: pytest.MonkeyPatch) -> type[Kjumpd]:
    monkeypatch.setattr(client, "Client", Kjumpd)
    return Kjumpd


def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert kjumpctl.main(["status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("kjump 9, idle\nCan hibernate: yes\n")
    assert "Target: swap partition UUID=1 (/dev/sda2), 0 B free" in text
    assert "Cycle c1: restored from disk" in text
    assert kjumpctl.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["LastCycle"]["phases"] == {"helper boot": 2.0}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (("yes", []), 0),
        (("challenge", []), 0),
        (("na", [("NoKexecJump", "None."), ("NoTarget", "None.")]), errors.NoKexecJump.exit_code),
        (("no", [("Unheard", "Of.")]), 1),
        (("no", []), 1),
    ],
)
def test_can_hibernate(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[str, list[tuple[str, str]]],
    code: int,
) -> None:
    monkeypatch.setattr(Kjumpd, "answer", answer)
    assert kjumpctl.main(["can-hibernate"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines == [answer[0], *(f"  {name}: {text}" for name, text in answer[1])]


def test_stage_and_unstage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kjumpctl.main(["stage"]) == errors.BadRequest.exit_code
    assert "--warm" in capsys.readouterr().err
    assert kjumpctl.main(["stage", "--warm"]) == 0
    assert "Helper c1: warm" in capsys.readouterr().out
    monkeypatch.setattr(Kjumpd, "staged", {})
    assert kjumpctl.main(["stage", "--warm"]) == 0
    assert capsys.readouterr().out == "A warm helper was running already.\n"
    assert kjumpctl.main(["unstage"]) == 0
    assert capsys.readouterr().out == "Nothing is staged.\n"


def test_reload(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert kjumpctl.main(["reload"]) == 0
    assert capsys.readouterr().out == "Configuration read.\n"
    monkeypatch.setattr(Kjumpd, "warnings", ["kjump.conf:3: Unknown key."])
    assert kjumpctl.main(["reload"]) == 0
    assert capsys.readouterr().out == "kjump.conf:3: Unknown key.\n"


@pytest.mark.parametrize(("ends", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_how_it_ends_when_it_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, ends: type[BaseException], code: int
) -> None:
    def cut_off(_self: Kjumpd) -> None:
        raise ends

    monkeypatch.setattr(Kjumpd, "unstage", cut_off)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert kjumpctl.main(["unstage"]) == code


# -- the terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)],
)
def test_only_a_yes_is_a_yes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    agreed: bool,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert terminal.ask("Do that?") is agreed
    assert capsys.readouterr().out.startswith("Do that? [y/N] ")


def test_somebody_can_be_asked_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not terminal.can_ask()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal.can_ask()


def options(**more: object) -> Namespace:
    return Namespace(**{"json": False, "quiet": False, **more})


def test_a_bar_for_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    draw = terminal.byte_progress(options(), 200)
    draw(50)
    draw(200)
    assert " 25 %" in shown.getvalue() and shown.getvalue().endswith("100 %\n")
    terminal.byte_progress(options(), 0)(0)
    for silent in (options(json=True), options(quiet=True)):
        monkeypatch.setattr(sys, "stderr", shown := Terminal())
        terminal.byte_progress(silent, 200)(50)
        assert shown.getvalue() == ""


def test_kjumpds_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    def watch(show: Callable[[int, str], None]) -> Callable[[], None]:
        show(40, "Saving")
        return lambda: stopped.append(True)

    monkeypatch.setattr(client, "watch", watch)
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with pytest.raises(errors.Busy), terminal.service_progress(options()):
        raise errors.Busy("Already.")
    assert " 40 %  Saving\x1b[K" in shown.getvalue() and stopped == [True]
    # The line is empty for what comes next.
    assert shown.getvalue().endswith("\r\x1b[K")
    with terminal.service_progress(options(json=True)):
        pass
    assert stopped == [True]


def test_an_error_is_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    assert kjumpctl.main(["stage"]) == errors.BadRequest.exit_code
    assert shown.getvalue().startswith("\x1b[31mkjumpctl:\x1b[0m Only a warm helper")

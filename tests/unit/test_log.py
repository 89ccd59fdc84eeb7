# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.log: what reaches the journal, byte by byte."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kjump.session import log


def test_the_journals_protocol() -> None:
    assert log.encode({"MESSAGE": "one", "A": ""}) == b"MESSAGE=one\nA=\n"
    assert log.encode({"MESSAGE": "a\nb"}) == b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"
    assert len(log.encode({"M": "x" * 1_000_000})) < 64 << 10


def test_fields() -> None:
    event = {"event": "hello", "level": "warning", "KJUMP_CYCLE": "c", "count": 3}
    assert log.journal_fields(event) == {
        "MESSAGE": "hello count=3",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "kjumpd",
        "KJUMP_CYCLE": "c",
    }


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "journal"))
    listener.settimeout(5)
    monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    return listener


def test_a_line_with_what_is_bound(journal: socket.socket) -> None:
    log.set_up()
    with log.bound(KJUMP_CYCLE="c1"), log.bound(KJUMP_PHASE="stage"):
        log.logger().error("it broke", KJUMP_ERROR="StagingFailed")
    log.logger().debug("not shown")
    log.logger().info("after")
    first = journal.recv(65536).decode().splitlines()
    assert first[0] == "MESSAGE=it broke"
    assert {
        "PRIORITY=3",
        "KJUMP_CYCLE=c1",
        "KJUMP_PHASE=stage",
        "KJUMP_ERROR=StagingFailed",
        "SYSLOG_IDENTIFIER=kjumpd",
    } <= set(first)
    second = journal.recv(65536).decode()
    assert "MESSAGE=after" in second and "KJUMP_CYCLE" not in second


def test_exceptions_are_logged(journal: socket.socket) -> None:
    log.set_up()
    try:
        raise ValueError("why")
    except ValueError:
        log.logger().exception("bad")
    text = journal.recv(65536)
    assert b"bad\nTraceback" in text and b"ValueError: why" in text


def test_a_journal_that_is_gone_raises_nothing(
    journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up()
    journal.close()
    log.logger().info("still here")
    assert "<6>still here" in capsys.readouterr().err


def test_without_a_journal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log.set_up()
    with log.bound(KJUMP_CYCLE="12345678-aaaa", KJUMP_PHASE="sync"):
        log.logger().info("hello")
    assert capsys.readouterr().err == "kjumpd [12345678 sync]: hello\n"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Check and DryRun on a bus."""

from __future__ import annotations

import pytest
from gi.repository import GLib

from kjump.cli.client import watch
from tests.bus.conftest import Client, Daemon, Refused


def test_check_names_every_check(client: Client, daemon: Daemon) -> None:
    (found,) = client.call("Check")
    states = {name: state for name, state, _error, _sentence, _advice in found}
    assert states["machine"] == states["target-there"] == "ok"
    daemon.set("reasons", "NoTarget NoBootResume")
    (found,) = client.call("Check")
    bad = [(error, bool(advice)) for _, state, error, _, advice in found if state == "failed"]
    assert bad[:2] == [("NoTarget", True), ("NoBootResume", True)]


def test_a_flood_of_checks_is_one_reading(client: Client, daemon: Daemon) -> None:
    client.call("Check")
    before = daemon.done.count("read")
    daemon.set("slow")
    boxes = [client.start("Check") for _ in range(60)]
    client.call(
        "Get",
        GLib.Variant("(ss)", ("org.kjump1.Manager", "State")),
        interface="org.freedesktop.DBus.Properties",
    )
    daemon.unset("slow")
    client.until(lambda: all(boxes))
    assert daemon.done.count("read") - before <= 3


def test_a_dry_run(client: Client, daemon: Daemon) -> None:
    client.call("CanHibernate")
    (report,) = client.call("DryRun")
    assert report["result"] == "returned" and report["phases"]["helper boot"] == 2.5
    words = [w for w in daemon.done if w in ("prepare", "stage-dry", "jump", "retire", "close")]
    assert words == ["stage-dry", "jump", "close"]  # the target was left alone
    assert client.get("LastCycle") == {} and client.get("Operation") == "none"
    assert not (daemon.folder / "history.jsonl").exists()
    assert not (daemon.folder / "staged").exists()


def test_a_dry_run_that_fails_has_its_name(client: Client, daemon: Daemon) -> None:
    daemon.set("fail", "JumpFailed")
    with pytest.raises(Refused) as refused:
        client.call("DryRun")
    assert refused.value.name == "org.kjump1.Error.JumpFailed"
    daemon.unset("fail")
    daemon.set("reasons", "NoTarget")
    with pytest.raises(Refused) as refused:
        client.call("DryRun")
    assert refused.value.name == "org.kjump1.Error.NoTarget"
    assert daemon.done.count("jump") == 1


def test_one_at_a_time(client: Client, daemon: Daemon) -> None:
    daemon.set("hold")
    box = client.start("DryRun")
    client.until(lambda: "jump" in daemon.done)
    assert client.get("Operation") == "dry-run"
    for method in ("DryRun", "Unstage"):
        with pytest.raises(Refused, match="dry run is under way") as refused:
            client.call(method)
        assert refused.value.name == "org.kjump1.Error.Busy"
    hibernate = client.hibernate()
    client.until(lambda: hibernate)
    assert "dry run is under way" in str(hibernate[0])
    daemon.unset("hold")
    client.until(lambda: box)
    assert box[0][0]["result"] == "returned"
    assert client.hibernate() is not None
    client.until(lambda: daemon.done.count("stage") == 1)


def test_a_daemon_killed_in_a_dry_run_cleans_up_and_records_no_lost_cycle(
    client: Client, daemon: Daemon
) -> None:
    daemon.set("hold")
    client.start("DryRun")
    client.until(lambda: "jump" in daemon.done)
    daemon.stop(9)
    daemon.unset("hold")
    assert (daemon.folder / "staged").exists()
    daemon.start()
    assert daemon.done[-1] != "jump" and "unload" in daemon.done and "post" in daemon.done
    assert not (daemon.folder / "staged").exists()
    assert not (daemon.folder / "history.jsonl").exists()


def test_progress_can_be_watched(client: Client, daemon: Daemon, address: str) -> None:
    heard: list[tuple[int, str]] = []
    stop = watch(lambda percent, message: heard.append((percent, message)), address)
    try:
        client.call("DryRun")
        client.until(lambda: any(percent >= 95 for percent, _ in heard))
    finally:
        stop()
    assert [percent for percent, _ in heard] == sorted(percent for percent, _ in heard)
    assert any("Jumping into the helper" in message for _, message in heard)
    watch(lambda *_: None, "unix:path=/nonexistent")()  # no bus is no error

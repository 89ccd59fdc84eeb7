# SPDX-License-Identifier: GPL-2.0-or-later
"""org.kjump1 on a bus: names, errors, the order of calls, and when signals are sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from gi.repository import Gio, GLib

from kjump import errors
from kjump.cli import main as kjumpctl
from kjump.session.service import manager as ours
from tests.bus.conftest import MANAGER, ROOT, Client, Daemon, Polkit, Refused

PROPERTIES = "org.freedesktop.DBus.Properties"
NOBODY = 65534


def changes(client: Client) -> list[tuple[str, Any]]:
    """All property changes heard, in order."""
    return [
        (key, value)
        for name, arguments in client.heard
        if name == "PropertiesChanged"
        for key, value in arguments[1].items()
    ]


# -- asking


def test_can_hibernate(client: Client, daemon: Daemon) -> None:
    assert client.call("CanHibernate") == ("yes", [])
    daemon.set("reasons", "NoTarget NoBootResume")
    answer, reasons = client.call("CanHibernate")
    assert answer == "no"
    assert [code for code, _ in reasons] == ["NoTarget", "NoBootResume"]
    assert reasons[0][1].startswith("No target is configured.  Name a partition")
    daemon.set("reasons", "NoKexecJump")
    assert client.call("CanHibernate")[0] == "na"
    assert client.get("Available") == "na"
    assert client.get("Reasons")[0][0] == "NoKexecJump"


def test_the_target_of_the_answers_is_shown(client: Client) -> None:
    client.call("CanHibernate")
    target = client.get("Target")
    assert target["present"] and target["path"] == "/dev/vda3" and target["size"] == 4096 << 20
    assert client.get("Window") == {"size": 160 << 20, "available_needed": 256 << 20}


def test_a_whole_cycle(client: Client, daemon: Daemon) -> None:
    client.call("CanHibernate")
    client.heard.clear()
    box = client.hibernate()
    (report,) = client.until(lambda: box)[0]
    assert report["result"] == "ok" and report["where"] == "resume"
    assert report["pages"] == {"data": 1000, "zero": 24, "free": 3072}
    assert report["image"]["size"] == 1024000
    assert report["phases"]["copy"] == 1.5 and report["phases"]["jump"] >= 0
    assert json.loads(report["json"])["cycle"] == report["cycle"]
    assert uuid.UUID(report["cycle"])
    assert client.get("LastCycle") == report
    assert client.get("State") == "idle" and client.get("Operation") == "none"
    assert daemon.done.count("jump") == 1
    assert [word for word in daemon.done if word in ("pre", "jump", "close", "post")] == [
        "pre",
        "jump",
        "close",
        "post",
    ]
    assert not (daemon.folder / "staged").exists()


def test_signals_and_properties_in_order(client: Client) -> None:
    client.call("CanHibernate")
    client.heard.clear()
    box = client.hibernate()
    client.until(lambda: box)
    names = [name for name, _ in client.heard]
    assert names.count("CycleStarted") == names.count("CycleFinished") == 1
    states = [value for key, value in changes(client) if key == "State"]
    assert states == ["checking", "staging", "hooks", "jumping", "hooks", "reporting", "idle"]
    assert [value for key, value in changes(client) if key == "Operation"] == ["hibernate", "none"]
    percents = [value[0] for key, value in changes(client) if key == "Progress"]
    assert percents == sorted(percents) and percents[-1] == 100
    started = names.index("CycleStarted")
    finished = names.index("CycleFinished")
    first_state = next(
        i
        for i, (name, arguments) in enumerate(client.heard)
        if name == "PropertiesChanged" and "State" in arguments[1]
    )
    assert started < first_state < finished
    # Whoever hears CycleFinished finds the daemon idle and the report in place.
    before = [
        arguments[1] for name, arguments in client.heard[:finished] if name == "PropertiesChanged"
    ]
    assert before[-1]["State"] == "idle" and before[-1]["LastCycle"]["result"] == "ok"
    cycle = client.heard[started][1][0]
    assert client.heard[finished][1][0] == cycle == box[0][0]["cycle"]


def test_a_failed_cycle_has_its_name(client: Client, daemon: Daemon) -> None:
    daemon.set("fail", "JumpFailed")
    with pytest.raises(Refused) as refused:
        client.call("Hibernate", GLib.Variant("(a{sv})", ({},)))
    assert refused.value.name == "org.kjump1.Error.JumpFailed"
    assert "The test wants it to fail." in str(refused.value)
    last = client.get("LastCycle")
    assert (last["result"], last["error"], last["where"]) == ("failed", "JumpFailed", "session")
    assert daemon.done[-1] != "jump" and "post" in daemon.done and "unload" in daemon.done
    daemon.unset("fail")
    assert client.call("Hibernate", GLib.Variant("(a{sv})", ({},)))[0]["result"] == "ok"


def test_reasons_refuse_with_the_same_name_and_stage_nothing(
    client: Client, daemon: Daemon
) -> None:
    daemon.set("reasons", "NoTarget NoBootResume")
    (code, sentence), *_ = client.call("CanHibernate")[1]
    with pytest.raises(Refused) as refused:
        client.call("Hibernate", GLib.Variant("(a{sv})", ({},)))
    assert refused.value.name == f"org.kjump1.Error.{code}"
    assert errors.sentence(*errors.split_message(refused.value.message)) == sentence
    assert "stage" not in daemon.done and "prepare" not in daemon.done


# -- nobody waits for another


def test_others_are_answered_while_a_cycle_runs(
    client: Client, daemon: Daemon, address: str
) -> None:
    daemon.set("hold")
    box = client.hibernate()
    client.until(lambda: "jump" in daemon.done)
    other = Client(address)
    begun = time.monotonic()
    assert other.get("State") == "jumping"
    assert other.get("Operation") == "hibernate"
    answer, reasons = other.call("CanHibernate")
    assert (answer, reasons[0][0]) == ("no", "Busy")
    with pytest.raises(Refused) as refused:
        other.call("Hibernate", GLib.Variant("(a{sv})", ({},)))
    assert refused.value.name == "org.kjump1.Error.Busy"
    assert time.monotonic() - begun < 5
    assert not box
    daemon.unset("hold")
    assert client.until(lambda: box)[0][0]["result"] == "ok"
    assert daemon.done.count("jump") == 1


def test_a_slow_machine_blocks_nobody_and_a_flood_is_cheap(
    client: Client, daemon: Daemon, address: str
) -> None:
    client.call("CanHibernate")
    daemon.set("slow")
    before = daemon.done.count("read")
    # The bus lets one client wait for 128 answers at most.
    flood = [Client(address) for _ in range(3)]
    boxes = [one.start("CanHibernate") for _ in range(100) for one in flood]
    begun = time.monotonic()
    for _ in range(50):
        assert client.get("State") == "idle"
    assert time.monotonic() - begun < 5
    assert not any(boxes)
    daemon.unset("slow")
    client.until(lambda: all(boxes))
    assert all(box[0] == ("yes", []) for box in boxes)
    assert daemon.done.count("read") - before <= 4


def test_a_caller_that_leaves_does_no_harm(client: Client, daemon: Daemon, address: str) -> None:
    daemon.set("hold")
    leaver = Client(address)
    leaver.hibernate()
    leaver.until(lambda: "jump" in daemon.done)
    leaver.connection.close_sync(None)
    daemon.unset("hold")
    client.until(lambda: client.get("State") == "idle")
    assert client.get("LastCycle")["result"] == "ok"


# -- a warm helper


def stage(client: Client) -> list[Any]:
    options = {"warm": GLib.Variant("b", True)}
    return client.start("Stage", GLib.Variant("(a{sv})", (options,)))


def staged(client: Client) -> Any:
    """What Stage answers: its results or its error."""
    box = stage(client)
    return client.until(lambda: box)[0]


def hibernated(client: Client) -> Any:
    """The report of a cycle."""
    box = client.hibernate()
    return client.until(lambda: box)[0][0]


def words(daemon: Daemon, *names: str) -> list[str]:
    return [word for word in daemon.done if word in names]


def test_staging_a_warm_helper_and_using_it(client: Client, daemon: Daemon) -> None:
    assert client.get("Staged") == "no"
    client.heard.clear()
    (report,) = staged(client)
    assert report["result"] == "warm" and report["phases"]["helper boot"] == 2.5
    assert client.get("Staged") == "warm"
    changed = [arguments[1] for name, arguments in client.heard if name == "PropertiesChanged"]
    assert {"Staged": "warm"} in [{k: c[k] for k in c if k == "Staged"} for c in changed]
    assert any(c.get("Operation") == "warm-up" for c in changed)
    assert not [name for name, _ in client.heard if name.startswith("Cycle")]
    # It is there already: nothing is done.
    assert staged(client) == ({},)
    assert daemon.done.count("stage-warm") == 1 and "close" not in daemon.done
    assert client.call("CanHibernate")[0] == "yes"
    # The cycle uses it, and then it is gone.
    assert hibernated(client)["result"] == "ok"
    assert words(daemon, "stage-warm", "stage", "ask", "close") == ["stage-warm", "ask", "close"]
    assert client.get("Staged") == "no"
    assert hibernated(client)["result"] == "ok"
    assert words(daemon, "stage", "ask") == ["ask", "stage"]


def test_unstaging(client: Client, daemon: Daemon) -> None:
    assert client.call("Unstage") == ()
    staged(client)
    assert client.call("Unstage") == ()
    assert client.get("Staged") == "no" and "close" in daemon.done
    assert not (daemon.folder / "staged").exists()


def test_a_helper_that_cannot_be_kept(client: Client, daemon: Daemon) -> None:
    daemon.set("cold")
    error = Refused(staged(client))
    assert error.name == "org.kjump1.Error.NoWarmHelper"
    assert client.get("Staged") == "no" and "unload" in daemon.done
    # Hibernation is still possible.
    assert hibernated(client)["result"] == "ok"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"warm": GLib.Variant("b", False)},
        {"warm": GLib.Variant("s", "yes")},
        {"warm": GLib.Variant("b", True), "hot": GLib.Variant("b", True)},
    ],
)
def test_malformed_staging(client: Client, daemon: Daemon, options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        client.call("Stage", GLib.Variant("(a{sv})", (options,)))
    assert refused.value.name == "org.kjump1.Error.BadRequest"
    assert "stage-warm" not in daemon.done


def test_staging_says_why_not(client: Client, daemon: Daemon) -> None:
    daemon.set("reasons", "NoBootResume")
    error = Refused(staged(client))
    assert error.name == "org.kjump1.Error.NoBootResume"
    assert "stage-warm" not in daemon.done


def test_staging_and_a_cycle_exclude_each_other(client: Client, daemon: Daemon) -> None:
    daemon.set("hold")
    box = client.hibernate()
    client.until(lambda: "jump" in daemon.done)
    for method, arguments in (
        ("Stage", GLib.Variant("(a{sv})", ({"warm": GLib.Variant("b", True)},))),
        ("Unstage", None),
    ):
        with pytest.raises(Refused) as refused:
            client.call(method, arguments)
        assert refused.value.name == "org.kjump1.Error.Busy"
    daemon.unset("hold")
    client.until(lambda: box)
    assert "stage-warm" not in daemon.done


def test_hibernating_while_a_helper_gets_warm(client: Client, daemon: Daemon) -> None:
    """The request is served when the helper is back, and by it."""
    daemon.set("warm-hold")
    warm = stage(client)
    client.until(lambda: "jump" in daemon.done)
    box = client.hibernate()
    client.until(lambda: client.get("Operation") == "warm-up")
    with pytest.raises(Refused) as refused:
        client.call("Unstage")
    assert refused.value.name == "org.kjump1.Error.Busy"
    assert not box
    daemon.unset("warm-hold")
    assert client.until(lambda: box)[0][0]["result"] == "ok"
    assert client.until(lambda: warm)[0][0]["result"] == "warm"
    assert words(daemon, "stage-warm", "stage", "ask") == ["stage-warm", "ask"]


def test_a_helper_that_does_not_fit_any_more_goes(client: Client, daemon: Daemon) -> None:
    staged(client)
    daemon.set("stale")
    client.call("CanHibernate")
    client.until(lambda: client.get("Staged") == "no")
    assert "close" in daemon.done


def test_the_settings_keep_a_helper_warm(client: Client, daemon: Daemon) -> None:
    daemon.set("kjump.conf", "[Target]\nPath=/dev/vda3\n[Helper]\nWarm=yes\n")
    client.call("Reload")
    client.until(lambda: client.get("Staged") == "warm")
    # Again after a cycle ...
    assert hibernated(client)["result"] == "ok"
    client.until(lambda: client.get("Staged") == "warm")
    assert daemon.done.count("stage-warm") == 2
    # ... and where the machine changed, but not in a loop where it cannot be kept.
    daemon.set("cold")
    daemon.set("stale")
    client.call("CanHibernate")
    client.until(lambda: client.get("Staged") == "no")
    daemon.unset("stale")
    client.until(lambda: daemon.done.count("stage-warm") == 3)
    for _ in range(3):
        client.call("CanHibernate")
        time.sleep(0.3)
    assert daemon.done.count("stage-warm") == 3
    # Asking to have it unstaged holds until something changes.
    daemon.unset("cold")
    client.call("Reload")
    client.until(lambda: client.get("Staged") == "warm")
    client.call("Unstage")
    time.sleep(0.5)
    assert client.get("Staged") == "no"


def test_stopping_unloads_a_warm_helper(client: Client, daemon: Daemon) -> None:
    staged(client)
    assert (daemon.folder / "staged").exists()
    assert daemon.stop() == 0
    assert "close" in daemon.done and not (daemon.folder / "staged").exists()


def test_a_killed_daemon_leaves_no_warm_helper(
    client: Client, daemon: Daemon, address: str
) -> None:
    staged(client)
    daemon.stop(signal.SIGKILL)
    assert (daemon.folder / "staged").exists()
    before = daemon.done.count("unload")
    daemon.start()
    assert daemon.done.count("unload") == before + 1
    assert not (daemon.folder / "staged").exists()
    # No cycle was lost with it.
    assert Client(address).get("LastCycle") == {}


# -- who may


def test_the_name_cannot_be_taken(client: Client, address: str, daemon: Daemon) -> None:
    arguments = GLib.Variant("(su)", ("org.kjump1", 2 | 4))  # replace, do not queue
    (answer,) = Client(address).call(
        "RequestName",
        arguments,
        name="org.freedesktop.DBus",
        path="/org/freedesktop/DBus",
        interface="org.freedesktop.DBus",
    )
    assert answer == 3  # exists
    second = Daemon(address, daemon.folder).start(wait=False)
    assert second.wait(20) == 1
    assert client.get("State") == "idle"


STRANGER = f"""
import sys
from gi.repository import Gio, GLib
flags = Gio.DBusConnectionFlags
bus = Gio.DBusConnection.new_for_address_sync(
    sys.argv[1], flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None)
method, interactive = sys.argv[2], sys.argv[3] == "1"
arguments = GLib.Variant("(a{{sv}})", ({{}},)) if method == "Hibernate" else None
if method == "Stage":
    arguments = GLib.Variant("(a{{sv}})", ({{"warm": GLib.Variant("b", True)}},))
if method == "RequestName":
    target = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    arguments = GLib.Variant("(su)", ("org.kjump1", 2))
else:
    target = ("org.kjump1", "/org/kjump1", "{MANAGER}")
try:
    print(bus.call_sync(*target, method, arguments, None,
                        Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION if interactive
                        else Gio.DBusCallFlags.NONE, 20000, None).unpack())
except GLib.Error as error:
    print(Gio.DBusError.get_remote_error(error))
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="plays another user, which takes root")


def stranger(address: str, method: str, *, interactive: bool = False) -> str:
    """What an unprivileged user gets; nothing of this checkout is needed for it."""
    # setpriv and not Popen(user=): that would fork a process that has GDBus's threads.
    done = subprocess.run(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "/usr/bin/python3",
            "-I",
            "-c",
            STRANGER,
            address,
            method,
            str(int(interactive)),
        ],
        cwd="/",
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    return done.stdout.strip()


@needs_root
def test_polkit_refuses_the_unprivileged(
    client: Client, daemon: Daemon, polkit: Polkit, address: str
) -> None:
    assert stranger(address, "Hibernate") == "org.kjump1.Error.NotAuthorized"
    assert polkit.asked() == [("org.kjump1.hibernate", 0)]
    for method in ("Reload", "Stage", "Unstage"):
        assert stranger(address, method) == "org.kjump1.Error.NotAuthorized"
        assert polkit.asked()[-1] == ("org.kjump1.manage", 0)
    assert polkit.asked()[-1] == ("org.kjump1.manage", 0)
    assert "NotAuthorized" in stranger(address, "CanHibernate")
    assert not {"stage", "stage-warm"} & set(daemon.done)
    # Root goes through without polkit.
    polkit.forget()
    assert client.call("Hibernate", GLib.Variant("(a{sv})", ({},)))[0]["result"] == "ok"
    assert polkit.asked() == []


@needs_root
def test_polkit_allows(client: Client, daemon: Daemon, polkit: Polkit, address: str) -> None:
    polkit.answer(authorized=True)
    assert stranger(address, "CanHibernate") == "('yes', [])"
    assert "'result': 'ok'" in stranger(address, "Hibernate")
    assert "jump" in daemon.done


@needs_root
def test_interactive_authorization_is_passed_on(
    client: Client, daemon: Daemon, polkit: Polkit, address: str
) -> None:
    polkit.answer(authorized=False, challenge=True)
    assert stranger(address, "CanHibernate") == "('challenge', [])"
    assert stranger(address, "Hibernate", interactive=True) == "org.kjump1.Error.NotAuthorized"
    assert [flags for _, flags in polkit.asked()] == [0, 1]


@needs_root
def test_without_polkit_only_root(client: Client, daemon: Daemon, address: str) -> None:
    assert stranger(address, "Hibernate") == "org.kjump1.Error.NotAuthorized"
    assert client.call("Reload") == ([],)


@needs_root
def test_the_bus_itself_lets_nobody_else_own_the_name(client: Client, address: str) -> None:
    assert stranger(address, "RequestName") == "org.freedesktop.DBus.Error.AccessDenied"


# -- malformed


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("Hibernate", None, "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Hibernate", GLib.Variant("(s)", ("now",)), "org.freedesktop.DBus.Error.InvalidArgs"),
        ("CanHibernate", GLib.Variant("(i)", (1,)), "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Explode", None, "org.freedesktop.DBus.Error.UnknownMethod"),
        (
            "Hibernate",
            GLib.Variant("(a{sv})", ({"fast": GLib.Variant("b", True)},)),
            "org.kjump1.Error.BadRequest",
        ),
    ],
)
def test_malformed_calls(
    client: Client, daemon: Daemon, method: str, arguments: Any, error: str
) -> None:
    with pytest.raises(Refused) as refused:
        client.call(method, arguments)
    assert refused.value.name == error
    assert client.get("State") == "idle"
    assert "stage" not in daemon.done


def test_malformed_properties(client: Client) -> None:
    for method, arguments in (
        ("Get", GLib.Variant("(ss)", (MANAGER, "Nope"))),
        ("Get", GLib.Variant("(ss)", ("org.kjump1.Nope", "State"))),
        ("GetAll", GLib.Variant("(s)", ("org.kjump1.Nope",))),
        ("Set", GLib.Variant("(ssv)", (MANAGER, "State", GLib.Variant("s", "x")))),
        ("Get", GLib.Variant("(s)", (MANAGER,))),
    ):
        with pytest.raises(Refused):
            client.call(method, arguments, interface=PROPERTIES)
    (values,) = client.call("GetAll", GLib.Variant("(s)", (MANAGER,)), interface=PROPERTIES)
    assert set(values) == documented()["property"]


# -- the document


def documented() -> dict[str, set[str]]:
    """Names in the introspection document, by kind."""
    tree = ElementTree.fromstring(ours.interface_xml())
    (interface,) = tree.findall("interface")
    assert interface.get("name") == MANAGER
    return {
        kind: {str(node.get("name")) for node in interface.findall(kind)}
        for kind in ("method", "signal", "property")
    }


def test_the_document_is_what_the_bus_shows(client: Client) -> None:
    (text,) = client.call("Introspect", interface="org.freedesktop.DBus.Introspectable")
    found = Gio.DBusNodeInfo.new_for_xml(text).lookup_interface(MANAGER)
    names = documented()
    assert {method.name for method in found.methods} == names["method"]
    assert {signal.name for signal in found.signals} == names["signal"]
    assert {prop.name for prop in found.properties} == names["property"]
    comments = ours.interface_xml()
    for name in set().union(*names.values()):
        assert f"{name}:" in comments, f"{name} is not documented"
    for prop in found.properties:
        # Nothing with a say in it may be a property: those have no caller.
        assert prop.flags == Gio.DBusPropertyInfoFlags.READABLE


def test_the_policy_lists_the_interface_and_the_actions_exist() -> None:
    policy = (ROOT / "config/dbus/org.kjump1.conf").read_text()
    assert f'send_interface="{MANAGER}"' in policy
    actions = ElementTree.parse(ROOT / "config/polkit/org.kjump1.policy").findall("action")
    assert {action.get("id") for action in actions} == {"org.kjump1.hibernate", "org.kjump1.manage"}


# -- the daemon's life


def test_reload(client: Client, daemon: Daemon) -> None:
    daemon.set("kjump.conf", "[Target]\nPath=/dev/vdb1\nBad=1\n")
    client.heard.clear()
    (warnings,) = client.call("Reload")
    assert warnings == ["kjump.conf:3: unknown key Bad= in [Target], ignored"]
    assert client.get("Warnings") == warnings
    client.until(lambda: client.get("Target").get("spec") == "/dev/vdb1")


def test_stopping_in_a_cycle_gives_back_first(client: Client, daemon: Daemon) -> None:
    daemon.set("hold")
    box = client.hibernate()
    client.until(lambda: "jump" in daemon.done)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert daemon.process.poll() is None
    daemon.unset("hold")
    assert daemon.process.wait(20) == 0
    assert [word for word in daemon.done if word in ("jump", "close", "post", "retire")] == [
        "jump",
        "close",
        "retire",
        "post",
    ]
    assert client.until(lambda: box)[0][0]["result"] == "ok"


def test_stopping_before_the_jump_ends_the_cycle(client: Client, daemon: Daemon) -> None:
    client.call("CanHibernate")
    daemon.set("slow")
    reads = daemon.done.count("read")
    box = client.hibernate()
    client.until(lambda: daemon.done.count("read") > reads)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    daemon.unset("slow")
    assert daemon.process.wait(20) == 0
    error = Refused(client.until(lambda: box)[0])
    assert error.name == "org.kjump1.Error.Interrupted"
    assert "jump" not in daemon.done


def test_stopping_in_a_warm_up_starts_no_cycle(client: Client, daemon: Daemon) -> None:
    """systemd stops kjumpd for an upgrade or at shutdown, and a request waits."""
    daemon.set("warm-hold")
    warm = stage(client)
    client.until(lambda: "jump" in daemon.done)
    box = client.hibernate()
    client.get("State")
    assert not box and daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    assert Refused(client.until(lambda: box)[0]).name == "org.kjump1.Error.Interrupted"
    daemon.unset("warm-hold")
    assert daemon.process.wait(20) == 0
    assert client.until(lambda: warm)[0][0]["result"] == "warm"
    assert words(daemon, "stage-warm", "stage", "ask", "jump", "close") == [
        "stage-warm",
        "jump",
        "close",
    ]


def test_a_killed_daemon_leaves_nothing_staged(
    client: Client, daemon: Daemon, address: str
) -> None:
    daemon.set("hold")
    client.hibernate()
    client.until(lambda: "jump" in daemon.done)
    daemon.stop(signal.SIGKILL)
    assert (daemon.folder / "staged").exists() and "unload" not in daemon.done
    daemon.unset("hold")
    daemon.start()
    assert daemon.done[daemon.done.index("jump") + 1 :][:2] == ["unload", "post"]
    assert not (daemon.folder / "staged").exists()
    again = Client(address)
    last = again.get("LastCycle")
    assert (last["result"], last["error"]) == ("failed", "Interrupted")
    assert again.call("Hibernate", GLib.Variant("(a{sv})", ({},)))[0]["result"] == "ok"


def test_history_is_there_after_a_restart(client: Client, daemon: Daemon, address: str) -> None:
    client.call("Hibernate", GLib.Variant("(a{sv})", ({},)))
    last = client.get("LastCycle")
    assert daemon.stop() == 0
    daemon.start()
    assert Client(address).get("LastCycle") == last


def test_an_earlier_boot_is_looked_back_at_once(client: Client, daemon: Daemon) -> None:
    client.call("CanHibernate")
    client.call("CanHibernate")
    assert daemon.done.count("look-back") == 1


# -- kjumpctl against it


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, address: str, client: Client) -> None:
    monkeypatch.setenv("KJUMP_BUS_ADDRESS", address)


@pytest.mark.usefixtures("at")
def test_kjumpctl(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert kjumpctl.main(["can-hibernate"]) == 0
    assert capsys.readouterr().out == "yes\n"
    assert kjumpctl.main(["hibernate", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["result"] == "ok" and report["pages"]["data"] == 1000
    assert kjumpctl.main(["hibernate", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert kjumpctl.main(["status"]) == 0
    text = capsys.readouterr().out
    for words in (
        "Can hibernate: yes",
        "/dev/vda3, 4096 MiB",
        "restored from disk",
        "pages saved",
        "ratio",
        "4.00 : 1",
        "hooks-pre",
    ):
        assert words in text
    assert kjumpctl.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["LastCycle"]["result"] == "ok"
    daemon.set("reasons", "NoKexecJump NoTarget")
    assert kjumpctl.main(["can-hibernate", "--json"]) == 21
    assert json.loads(capsys.readouterr().out)["answer"] == "na"
    assert kjumpctl.main(["hibernate"]) == 21
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kjumpctl: No CONFIG_KEXEC_JUMP.  Boot a kernel")
    assert "GDBus" not in captured.err and len(captured.err.splitlines()) == 1
    assert kjumpctl.main(["hibernate", "--json"]) == 21
    document = json.loads(capsys.readouterr().err)
    assert document["what"] == "No CONFIG_KEXEC_JUMP." and document["todo"].startswith("Boot a")


def test_kjumpctl_without_a_daemon(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_BUS_ADDRESS", address)
    assert kjumpctl.main(["status"]) == 69
    assert "systemctl start kjumpd" in capsys.readouterr().err
    monkeypatch.setenv("KJUMP_BUS_ADDRESS", "unix:path=/nonexistent")
    assert kjumpctl.main(["status"]) == 69


# -- what systemd is notified of


def test_ready_status_and_watchdog(address: str, tmp_path: Path) -> None:
    import socket

    if os.getuid():
        pytest.skip("owns the name with our own policy only as root")
    notify = tmp_path / "notify"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(notify))
    listener.settimeout(20)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}",
        "NOTIFY_SOCKET": str(notify),
        "WATCHDOG_USEC": "300000",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bus.server", address, str(tmp_path)], env=environment
    )
    try:
        heard = ""
        while "READY=1" not in heard or heard.count("WATCHDOG=1") < 3:
            heard += listener.recv(4096).decode() + "\n"
        assert "STATUS=" in heard
        process.terminate()
        while "STOPPING=1" not in heard:
            heard += listener.recv(4096).decode() + "\n"
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        listener.close()

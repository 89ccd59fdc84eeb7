# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that ask for hibernation on a desktop, the real ones of Debian: UPower, where the
battery is empty; XFCE's session; and what Plasma's menus are made of.

They have a guest image of their own (`image.DESKTOPS_PACKAGES`).  The battery is an ACPI device
(battery.asl), so the kernel, udev and UPower see one as on a laptop.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from . import suites
from .contents import DESKTOPS, UID, UPOWER_MASK, USER
from .emulator import QEMU_SUITE
from .guest import Guest, Shape
from .image import HERE, Image
from .scenarios_requests import login1
from .steps import (
    SAVE,
    Scenario,
    ctl_json,
    expect,
    power_off,
    ready,
    require,
    work_holds,
)

Check = Callable[[Guest], None]

CALLS = "/root/calls"
LISTEN = "type=method_call,interface=org.freedesktop.login1.Manager,member="
POWER = "org.freedesktop.UPower"
DISPLAY_DEVICE = f"{POWER} /org/freedesktop/UPower/devices/DisplayDevice {POWER}.Device"
ACTION = 5
"""UPower's warning level for a battery on which the critical action is due (up-types.h)."""
# Without what GTK would say of a desktop that has nothing for accessibility.
ON_HER_BUS = f"export DISPLAY=:9 XDG_RUNTIME_DIR=/run/user/{UID} NO_AT_BRIDGE=1;"
XFCE = "org.xfce.SessionManager /org/xfce/SessionManager org.xfce.Session.Manager"

# An administrator who does not let her.  Whoever may do it beside others' sessions
# (hibernate-multiple-sessions, which implies it) may do it: that is refused, too.
RULE_FILE = "/etc/polkit-1/rules.d/10-test.rules"
RULE = f"""\
polkit.addRule(function(action, subject) {{
    if (action.id.indexOf("org.freedesktop.login1.hibernate") == 0 && subject.user == "{USER}")
        return polkit.Result.NO;
}});
"""

# What the buttons of Plasma's menus do, and what they are told.  The answers of logind come in the
# background, so a menu offers hibernation only then.
MENU = """\
import org.kde.plasma.private.sessions

SessionManagement {
    onCanHibernateChanged: {
        console.log("can hibernate:", canHibernate)
        hibernate()
    }
    onAboutToSuspend: console.log("about to sleep")
    onResumingFromSuspend: console.log("awake")
}
"""
MENU_FILE = "/tmp/menu.qml"


def battery(folder: Path) -> str:
    """The ACPI table with a battery at 1 %, compiled into this folder."""
    table = folder / "battery.aml"
    # ACPI's compiler is needed nowhere else, so it is not installed.
    compiler = suites.program(QEMU_SUITE, "acpica-tools", "/usr/bin/iasl")
    command = [*compiler, "-p", str(table), str(HERE / "battery.asl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require("the battery is compiled", done.returncode == 0, done.stdout + done.stderr)
    return str(table)


def listen(guest: Guest) -> None:
    """Note who asks logind for hibernation, and how."""
    rules = " ".join(f"--match {LISTEN}{member}" for member in ("Hibernate", "HibernateWithFlags"))
    script = f"exec busctl monitor --json=short {rules} >{CALLS} 2>/dev/null"
    guest.check(f"systemd-run --quiet --unit=calls sh -c '{script}'; sleep 2")


def calls(guest: Guest) -> list[str]:
    """Every call that was heard so far."""
    return guest.check(f"cat {CALLS}").splitlines()


def caller(guest: Guest, call: str) -> tuple[str, str, int]:
    """Who made this call, and must still be there: program, method and user."""
    message = json.loads(call)
    said = guest.check(f"busctl status {message['sender']}")
    told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return told["Comm"], message["member"], int(told["EUID"])


@contextmanager
def forbidden(guest: Guest) -> Iterator[None]:
    """polkit does not let the user hibernate."""

    def answers(wanted: str) -> None:
        end = time.monotonic() + 60
        while (found := login1(guest, "CanHibernate")) != wanted:
            require(f"logind says {wanted}", time.monotonic() < end, found)
            time.sleep(0.5)

    guest.put(RULE.encode(), RULE_FILE)
    answers("no")
    yield
    guest.check(f"rm {RULE_FILE}")
    answers("yes")


def upower(guest: Guest) -> Check:
    """UPower, where the battery is empty, configured as Debian has it."""
    supply = "/sys/class/power_supply"
    told = guest.check(f"cd {supply}/BAT0; cat status capacity; cat {supply}/ADP0/online").split()
    expect("the kernel's battery", told, ["Discharging", "1", "0"])
    guest.check(f"rm {UPOWER_MASK}; systemctl daemon-reload; systemctl start upower", timeout=120)
    # That is not what its configuration names first; HybridSleep is, which kjump never promises.
    action = guest.check(f"busctl call {POWER} /org/freedesktop/UPower {POWER} GetCriticalAction")
    expect("critical action", action.split(), ["s", '"Hibernate"'])
    # It holds everybody off until it asks itself.
    inhibits = guest.check("systemd-inhibit --list --no-legend")
    require("UPower blocks sleep meanwhile", re.search("UPower .* block", inhibits), inhibits)
    process = guest.check("systemctl show -P MainPID upower").strip()

    def check(again: Guest) -> None:
        expect("UPower's process", again.check("systemctl show -P MainPID upower").strip(), process)
        level = again.check(f"busctl get-property {DISPLAY_DEVICE} WarningLevel").split()
        expect("UPower's warning", level, ["u", str(ACTION)])
        # It asks once for an empty battery.  Longer than it waits before it does (20 s).
        time.sleep(30)
        again.check(f"systemctl stop upower; touch {UPOWER_MASK}; systemctl daemon-reload")

    return check


def xfce(guest: Guest) -> Check:
    """XFCE's session manager, as its menu asks it."""
    guest.spawn("exec Xvfb :9 -nolisten tcp", user=True)
    guest.check("until test -S /tmp/.X11-unix/X9; do sleep 0.2; done", timeout=120)
    session = guest.spawn(f"{ON_HER_BUS} exec xfce4-session", user=True)
    guest.check(
        f"{ON_HER_BUS} until busctl --user status org.xfce.SessionManager; do sleep 0.5; done;"
        # 1: all that the session starts with is there.
        f" until busctl --user call {XFCE} GetState | grep 'u 1'; do sleep 0.5; done",
        user=True,
        timeout=200,
    )

    def can() -> str:
        found = guest.check(f"{ON_HER_BUS} busctl --user call {XFCE} CanHibernate", user=True)
        return found.split()[1]

    with forbidden(guest):
        expect("XFCE's CanHibernate, forbidden", can(), "false")
    expect("XFCE's CanHibernate", can(), "true")
    asked = guest.spawn(f"{ON_HER_BUS} exec xfce4-session-logout --hibernate", user=True)

    def check(again: Guest) -> None:
        end = time.monotonic() + 60
        while (done := again.job(asked, user=True)) is None:
            require("xfce4-session-logout ends", time.monotonic() < end)
            time.sleep(0.5)
        expect("what xfce4-session-logout saw", (done.rc, done.out), (0, ""))
        require("xfce4-session runs", again.job(session, user=True) is None)
        state = again.check(f"{ON_HER_BUS} busctl --user call {XFCE} GetState", user=True)
        expect("XFCE's state", state.split(), ["u", "1"])

    return check


def plasma(guest: Guest) -> Check:
    """Plasma's SessionManagement, which its menus call."""
    guest.put(MENU.encode(), MENU_FILE)
    # Otherwise Qt, which is not on a terminal, logs to the journal.
    how = f"{ON_HER_BUS} export QT_QPA_PLATFORM=offscreen QT_LOGGING_TO_CONSOLE=1;"
    command = f"{how} exec /usr/lib/qt6/bin/qml {MENU_FILE} >"

    def told(now: Guest, where: str, lines: int) -> list[str]:
        """What the menu has said, when it is so many lines."""
        words = f"until [ $(grep -c ^qml: {where}) -ge {lines} ]; do sleep 0.2; done; sleep 2;"
        return now.check(f"{words} grep ^qml: {where}", user=True).splitlines()

    with forbidden(guest):
        hidden = guest.spawn(f"{command}/tmp/hidden 2>&1", user=True)
        found = told(guest, "/tmp/hidden", 1)
        expect("what the menu saw, forbidden", found, ["qml: can hibernate: false"])
        guest.check(f"kill {hidden}", user=True)
    menu = guest.spawn(f"{command}/tmp/menu 2>&1", user=True)

    def check(again: Guest) -> None:
        require("the menu is still there", again.job(menu, user=True) is None)
        wanted = ["qml: can hibernate: true", "qml: about to sleep", "qml: awake"]
        expect("what the menu saw", told(again, "/tmp/menu", len(wanted)), wanted)

    return check


PROGRAMS = {
    upower: ("upowerd", "Hibernate", 0),
    xfce: ("xfce4-session", "Hibernate", UID),
    plasma: ("qml", "Hibernate", UID),
}
"""What each calls: its process's name, logind's method, the user."""


def desktops(_: Image) -> None:
    """UPower's critical action, XFCE's session and Plasma's menu: the real programs, real polkit;
    each is led to kjump, and goes on afterwards."""
    from .run import guest_image

    with TemporaryDirectory() as folder, ExitStack() as guests:
        shape = Shape(tables=(battery(Path(folder)),))
        guest = guests.enter_context(Guest(guest_image(DESKTOPS), shape))
        ready(guest)
        listen(guest)
        guest.start_work(50)
        for number, (ask, wanted) in enumerate(PROGRAMS.items(), 1):
            guest.seen = len(guest.console())
            check = ask(guest)
            power_off(guest)
            guest = guests.enter_context(guest.again())
            guest.wait_ready(SAVE)
            work_holds(guest)
            expect(f"who called, {ask.__doc__}", caller(guest, calls(guest)[-1]), wanted)
            check(guest)
            expect(f"calls until now, {ask.__doc__}", len(calls(guest)), number)
            entries = ctl_json(guest, "history")
            expect(f"cycles until now, {ask.__doc__}", len(entries), number)
            expect(f"result, {ask.__doc__}", entries[-1]["result"], "ok")
            print(ask.__doc__, entries[-1]["phases"], flush=True)


ALWAYS: dict[str, Scenario] = {}
MORE: dict[str, Scenario] = {"desktops": desktops}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests by way of logind and systemd: what is offered, what is refused, what is done instead."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack

from .contents import SWAP_UUID
from .guest import DiskErrors, Guest, Shape
from .image import MIB, Image
from .steps import (
    SAVE,
    SWAP,
    Scenario,
    at_work,
    configure,
    ctl,
    ctl_json,
    cycle,
    expect,
    last_cycle,
    nothing_staged,
    power_off,
    ready,
    require,
    went_well,
    work_holds,
)

NO_TARGET = ("[Target]", "Path=PARTLABEL=nonesuch")
DROP_IN = "/run/systemd/system/kjumpd.service.d/test.conf"
HOOK = "/etc/systemd/system-sleep/test"
HOOKS_TOLD = "/root/hooks"
MESSAGES = {
    "start": "6bbd95ee977941e497c48be27c254128",
    "stop": "8811e6df2a8e40f58a94cea26f8ebf14",
}
"""systemd's message ids for sleep (sd-messages.h)."""

# Notes each call, and whether the sessions stood still meanwhile; does what kjumpd may not.
HOOK_TEXT = f"""#!/bin/sh
frozen=$(sed -n 's/frozen //p' /sys/fs/cgroup/user.slice/cgroup.events)
echo "$1 $2 $SYSTEMD_SLEEP_ACTION $frozen" >>{HOOKS_TOLD}
echo "the hook says $1"
case $1 in pre) touch /etc/hook-was-here;; esac
"""


def login1(guest: Guest, method: str, *, user: bool = True) -> str:
    """What logind answers the user to one of its Can... methods."""
    words = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    result = guest.run(f"busctl call {words} {method}", user=user)
    found = re.search(r'^s "(\w+)"', result.out)
    return found[1] if found else (result.err or result.out).strip()


def offered(guest: Guest, wanted: bool, where: str) -> None:
    """logind's CanHibernate, as the user hears it; the other two are never offered."""
    end = time.monotonic() + 30
    while True:
        found = login1(guest, "CanHibernate")
        if (found == "yes") == wanted:
            break
        if time.monotonic() > end:
            told = guest.run("kjumpctl status; journalctl -b -n 20 --no-pager -u kjumpd").out
            raise guest.error(f"{where}: CanHibernate is {found}, expected {wanted}:\n{told}")
        time.sleep(1)
    for method in ("CanHybridSleep", "CanSuspendThenHibernate"):
        require(f"{where}: {method} promises nothing", login1(guest, method) != "yes")


def settle(guest: Guest) -> None:
    """The daemon has looked at what changed."""
    time.sleep(1)
    ctl(guest, "can-hibernate")


def hibernate_is_refused(guest: Guest, what: str) -> str:
    """The user's ``systemctl hibernate`` fails at once; what it said, and the service's lines."""
    guest.check("systemctl reset-failed systemd-hibernate.service || true")
    result = guest.run("systemctl hibernate; echo rc $?", user=True, timeout=120)
    end = time.monotonic() + 60
    while True:
        state = guest.check("systemctl show -P ActiveState systemd-hibernate.service").strip()
        if state in ("failed", "inactive"):
            break
        require(f"{what}: the service ends", time.monotonic() < end, state)
        time.sleep(0.5)
    told = guest.check("journalctl -b -n 30 --no-pager -u systemd-hibernate.service -t kjumpd")
    require(f"{what}: refused", state == "failed" or "rc 0" not in result.out, (result, told))
    nothing_staged(guest)
    return result.out + result.err + told


def set_configuration(guest: Guest, *lines: str) -> None:
    configure(guest, *lines)
    settle(guest)


def frozen(guest: Guest) -> str:
    return guest.check("sed -n 's/frozen //p' /sys/fs/cgroup/user.slice/cgroup.events").strip()


def journal_of(guest: Guest, message: str) -> str:
    return guest.check(f"journalctl -b --no-pager -o short -t kjumpd MESSAGE_ID={message}")


def what_is_offered(guest: Guest) -> None:
    """Each case of what logind may promise; ends with no swap in use."""
    offered(guest, True, "no swap, kjump can")

    # Neither: no swap, and the target is gone.
    set_configuration(guest, *NO_TARGET)
    offered(guest, False, "no swap, kjump cannot")
    said = hibernate_is_refused(guest, "no swap, kjump cannot")
    require("refused by logind, not by us", "rc 0" not in said, said)

    # Swap that no boot resumes from: the kernel's own would lose the session.
    guest.check(f"swapon {SWAP}")
    offered(guest, False, "swap without resume=, kjump cannot")
    result = ctl(guest, "hibernate --json")
    require("the error is named", "TargetMissing" in result.err, result)
    result = ctl(guest, "hibernate --fallback --json")
    require("and by way of systemd", "TargetMissing" in result.err, result)
    expect("why not", "resume" in last_cycle(guest)["no_fallback"], True)

    set_configuration(guest)
    offered(guest, True, "swap without resume=, kjump can")
    told = guest.check("cat /sys/power/resume /run/kjump/resume").split()
    require("kjumpd records what it wrote to the kernel", told[-1] == told[0].strip(), told)
    # Still not the kernel's own: the number there is ours.
    set_configuration(guest, *NO_TARGET)
    offered(guest, False, "swap, a resume device that kjumpd named, kjump cannot")
    set_configuration(guest)
    guest.check(f"swapoff {SWAP}")

    # A swap file under /home.
    guest.check(
        "fallocate -l 64M /home/swapfile; chmod 600 /home/swapfile; mkswap /home/swapfile;"
        " swapon /home/swapfile"
    )
    settle(guest)
    offered(guest, True, "a swap file under /home")
    guest.check("swapoff /home/swapfile; rm /home/swapfile")
    settle(guest)
    offered(guest, True, "no swap again")


def who_inhibits(guest: Guest) -> None:
    """Block inhibitors refuse, by logind and on our own bus."""
    job = "systemd-run --quiet --unit=blocker systemd-inhibit --what=sleep --mode=block"
    guest.check(f"{job} --who=Burner --why=burning sleep 1000; sleep 1")
    require("logind does not say yes", login1(guest, "CanHibernate") != "yes")
    said = hibernate_is_refused(guest, "a block inhibitor")
    require("systemctl says so", "rc 0" not in said, said)
    result = ctl(guest, "hibernate --json")
    expect("exit code", result.rc, 8)
    require("the inhibitor is named", "Inhibited" in result.err and "Burner" in result.err, result)
    guest.check("systemctl stop blocker")
    offered(guest, True, "no inhibitor")


def comes_back_in_order(guest: Guest, image: Image) -> None:
    """The user's request, with hooks, inhibitors and frozen sessions, on a disk that fails."""
    guest.check(f"mkdir -p {HOOK.rpartition('/')[0]}")
    guest.put(HOOK_TEXT.encode(), HOOK, mode=0o755)
    # Delay inhibitors get PrepareForSleep, and logind waits for them.
    watch = "busctl monitor --json=short --match \"member='PrepareForSleep'\" >/root/prepare"
    guest.check(f"systemd-run --quiet --unit=prepare sh -c '{watch} 2>/dev/null'")
    delay = "systemd-inhibit --what=sleep --mode=delay --who=Slow --why=saving"
    guest.check(f"systemd-run --quiet --unit=delay {delay} sleep 1000; sleep 2")
    before = len(ctl_json(guest, "history"))  # those that were refused
    guest.fail_disk(DiskErrors(image.target_offset + 24 * MIB, 4 * MIB))
    guest.seen = len(guest.console())
    guest.spawn("systemctl hibernate", user=True)
    guest.wait_console("jumping back to the session", 300)
    guest.heal_disk()
    end = time.monotonic() + 120
    while len(done := ctl_json(guest, "history")) == before and time.monotonic() < end:
        time.sleep(1)
    expect("error", done[-1]["error"], "TargetWriteFailed")
    time.sleep(3)
    told = guest.check(f"cat {HOOKS_TOLD}").split("\n")
    # Where systemd freezes sessions itself.
    freezes = "grep -c SYSTEMD_SLEEP_FREEZE_USER_SESSIONS /usr/lib/systemd/systemd-sleep || true"
    state = "1" if guest.check(freezes).strip() != "0" else "0"
    wanted = [f"pre hibernate hibernate {state}", f"post hibernate hibernate {state}", ""]
    expect("what the hooks saw", told, wanted)
    expect("sessions", frozen(guest), "0")
    guest.check("test -e /etc/hook-was-here")
    cycle_id = done[-1]["cycle"]
    lines = guest.check(f"journalctl -b --no-pager -t kjumpd KJUMP_CYCLE={cycle_id}")
    for text in ("the hook says pre", "the hook says post", "cycle begins", "cycle ends"):
        require(f"the journal has {text!r}", text in lines, lines)
    phased = f"journalctl -b --no-pager -t kjumpd KJUMP_CYCLE={cycle_id} KJUMP_PHASE=hooks-pre"
    require("with its phase", "the hook says pre" in guest.check(phased))
    for name, message in MESSAGES.items():
        require(f"sleep's {name} is in the journal", "system sleep" in journal_of(guest, message))
    prepared = re.findall(r'"data":\[(true|false)\]', guest.check("cat /root/prepare"))
    expect("PrepareForSleep", prepared, ["true", "false"])
    unit = guest.check("systemctl show -P Result systemd-hibernate.service").strip()
    expect("the service's result", unit, "exit-code")
    expect("what fell back", "fallback" in done[-1], False)
    guest.check("systemctl stop delay prepare")
    guest.run("systemctl reset-failed")


def requests(image: Image) -> None:
    """What logind offers in each case, inhibitors, hooks, frozen sessions, the sandbox; and the
    user's request falls back on the kernel's own hibernation, which resumes."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        level = guest.check("systemd-analyze security --no-pager kjumpd.service | tail -1")
        print(level, flush=True)
        require("little is exposed", float(re.findall(r"\d+\.\d", level)[0]) <= 2.5, level)
        what_is_offered(guest)
        who_inhibits(guest)
        comes_back_in_order(guest, image)
        guest.spawn("systemctl poweroff")
        guest.wait_exit(120)
        with guest.again(words=f"resume=UUID={SWAP_UUID} hibernate=nocompress") as second:
            ready(second)
            second.check(f"swapon {SWAP}")
            set_configuration(second, *NO_TARGET)
            offered(second, True, "swap with resume=, kjump cannot")
            set_configuration(second, *NO_TARGET, "[Session]", "Fallback=none")
            offered(second, False, "the same with Fallback=none")
            set_configuration(second, *NO_TARGET)
            offered(second, True, "the same with Fallback=stock")
            second.start_work(50)
            with cycle(second) as third:
                work_holds(third)
                last = last_cycle(third)
                expect(
                    "what came instead",
                    (last["error"], last["fallback"]),
                    ("TargetMissing", "stock"),
                )
                unit = third.check("systemctl show -P Result systemd-hibernate.service").strip()
                expect("the service's result", unit, "success")
                require(
                    "logged in the journal",
                    "hibernation is done instead"
                    in third.check("journalctl -b --no-pager -u systemd-hibernate.service"),
                )


def noresume(image: Image) -> None:
    """Booted with noresume: logind offers nothing where it knows the word, and a request that
    comes nevertheless is served by kjump, or refused with a name; never by the kernel's own."""
    with Guest(image, Shape(words="noresume")) as guest:
        ready(guest)
        guest.check(f"swapon {SWAP}")
        set_configuration(guest, *NO_TARGET)
        offered(guest, False, "noresume, kjump cannot")
        result = ctl(guest, "hibernate --fallback --json")
        require("named", "TargetMissing" in result.err, result)
        require("why not", "noresume" in last_cycle(guest)["no_fallback"], last_cycle(guest))
        # Before systemd 255 logind asked the kernel only; since then it refuses by itself.
        set_configuration(guest)
        print("noresume, kjump can:", login1(guest, "CanHibernate"), flush=True)


def killed(image: Image) -> None:
    """kjumpd killed while staging, during hooks, with a warm helper, and restarted: what was
    staged is gone, the sessions run, hooks got post, the history has it."""
    with at_work(image, Shape(), 50) as guest:
        kill_it(guest)
        # And it still hibernates.
        with cycle(guest) as again:
            went_well(again)


STAGING = "staging|hooks"
"""It lasts for some tenths of a second, which a guest that has to wait for its processors may not
see; then the hook waits, with the helper staged."""


def kill_it(guest: Guest) -> None:
    """At each of these moments."""

    def kill(where: str) -> None:
        guest.check("systemctl kill --signal=KILL --kill-whom=main kjumpd.service")
        end = time.monotonic() + 120
        while True:
            state = guest.check("systemctl show -P ActiveState kjumpd.service").strip()
            told = guest.run("kjumpctl status", timeout=100)
            if state == "active" and told.rc == 0:
                break
            require(f"killed {where}: it is back", time.monotonic() < end, (state, told))
            time.sleep(1)
        nothing_staged(guest)
        expect(f"killed {where}: sessions", frozen(guest), "0")
        expect(f"killed {where}: the mark", guest.run("test -e /run/kjump/staged").rc, 1)
        expect(f"killed {where}: can", ctl_json(guest, "can-hibernate")["answer"], "yes")
        work_holds(guest)

    def interrupted(where: str, before: int) -> None:
        entries = ctl_json(guest, "history")
        expect(f"killed {where}: entries", len(entries), before + 1)
        expect(f"killed {where}: reported", entries[-1]["error"], "Interrupted")

    def begin(state: str) -> None:
        """The user asks; the daemon comes to this state (a pattern)."""
        guest.check("systemctl reset-failed; rm -f /root/hooks")
        guest.spawn("systemctl hibernate", user=True)
        # In the guest: the state lasts for a second or two.
        state_of = "busctl get-property org.kjump1 /org/kjump1 org.kjump1.Manager State"
        guest.check(f"until {state_of} | grep -Eq '{state}'; do sleep 0.05; done", timeout=100)

    kill("while idle")
    before = len(ctl_json(guest, "history"))

    # A hook that waits: the sessions are frozen then, and the helper is staged.
    hook = HOOK_TEXT.replace("touch /etc/hook-was-here", "sleep 20")
    guest.check(f"mkdir -p {HOOK.rpartition('/')[0]}")
    guest.put(hook.encode(), HOOK, mode=0o755)
    begin("hooks")
    time.sleep(2)
    expect("staged", guest.check("cat /sys/kernel/kexec_loaded").strip(), "1")
    kill("during hooks")
    interrupted("during hooks", before)
    require("post was run", "post hibernate" in guest.check(f"cat {HOOKS_TOLD}"))

    # While the helper is staged: at once, and then again a little later each time.  The hook keeps
    # a machine that is quick from jumping before the kill.
    for number, wait in enumerate((0.0, 0.3, 0.8), 1):
        begin(STAGING)
        time.sleep(wait)
        kill(f"while staging, after {wait} s")
        interrupted("while staging", before + number)

    guest.check(f"mv {HOOK} /root/hook")
    require("a helper gets warm", ctl(guest, "stage --warm").rc == 0)
    kill("with a warm helper")
    expect("no cycle was lost", len(ctl_json(guest, "history")), before + 4)

    # Upgraded: stopped and started again, as the package does.
    guest.check(f"mv /root/hook {HOOK}")
    begin(STAGING)
    guest.check("systemctl restart kjumpd.service", timeout=150)
    nothing_staged(guest)
    guest.check(f"rm {HOOK}")
    entries = ctl_json(guest, "history")
    expect("restarted", (len(entries), entries[-1]["error"]), (before + 5, "Interrupted"))


CAPABILITIES = {
    "CAP_SYS_BOOT": "NotPrivileged",
    "CAP_SYS_ADMIN": "NotPrivileged",
}
"""What hibernation is refused with without each; CAP_SYS_RAWIO is for /proc/kcore alone."""


LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
IDLE = "/run/systemd/logind.conf.d/idle.conf"

# Has the keyboard say "hibernate" where F12 is pressed: struct input_keymap_entry and EVIOCSKEYCODE
# of uapi/linux/input.h; PS/2 keyboards' code of F12, KEY_SUSPEND.
REMAP = """
import fcntl, glob, struct
for path in glob.glob("/dev/input/event*"):
    with open(path, "rb") as device:
        name = bytearray(80)
        fcntl.ioctl(device, 0x80004506 | len(name) << 16, name)
        if b"Keyboard" in name or b"keyboard" in name:
            entry = struct.pack("=BBHI32s", 0, 4, 0, 205, struct.pack("<I", 0x58))
            fcntl.ioctl(device, 0x40284504, entry)
            print(path)
"""


def asked_by_the_user(guest: Guest) -> None:
    """As a desktop's menu does (KDE's, XFCE's, GNOME's)."""
    expect("CanHibernate, as the user hears it", login1(guest, "CanHibernate"), "yes")
    guest.spawn(f"busctl call {LOGIND} HibernateWithFlags t 0", user=True)


def asked_by_root(guest: Guest) -> None:
    """As UPower does where the battery is empty."""
    expect("CanHibernate, as root hears it", login1(guest, "CanHibernate", user=False), "yes")
    guest.spawn(f"busctl call {LOGIND} Hibernate b false")


def asked_by_key(guest: Guest) -> None:
    """The hibernate key of the keyboard."""
    guest.put(REMAP.encode(), "/run/remap.py")
    require("a keyboard has it", guest.check("python3 /run/remap.py").strip())
    # logind asks the keyboard for its keys when it begins to listen.
    guest.check("systemctl restart systemd-logind; sleep 2")
    guest.press("f12")


def asked_by_idleness(guest: Guest) -> None:
    """IdleAction=hibernate, where nobody does anything for a while."""
    lines = "[Login]\nIdleAction=hibernate\nIdleActionSec=15s\n"
    guest.put(lines.encode(), IDLE)
    guest.check("systemctl restart systemd-logind")


def ways(image: Image) -> None:
    """Whoever asks: a menu, UPower, the hibernate key, idleness; all lead to kjump."""
    with ExitStack() as guests:
        guest = guests.enter_context(Guest(image, Shape()))
        ready(guest)
        guest.check(f"mkdir -p {IDLE.rpartition('/')[0]}")
        guest.start_work(50)
        for ask in (asked_by_the_user, asked_by_root, asked_by_key, asked_by_idleness):
            before = len(ctl_json(guest, "history"))
            guest.seen = len(guest.console())
            ask(guest)
            power_off(guest)
            guest = guests.enter_context(guest.again())
            guest.wait_ready(SAVE)
            guest.check(f"rm -f {IDLE}; systemctl restart systemd-logind")
            work_holds(guest)
            entries = ctl_json(guest, "history")
            expect(f"cycles, {ask.__doc__}", len(entries), before + 1)
            expect(f"result, {ask.__doc__}", entries[-1]["result"], "ok")
            print(ask.__doc__, entries[-1]["phases"], flush=True)


def sandbox(image: Image) -> None:
    """Each capability that kjumpd has is needed: without it, a named refusal."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        guest.check(f"mkdir -p {DROP_IN.rpartition('/')[0]}")
        for capability, error in CAPABILITIES.items():
            guest.put(f"[Service]\nCapabilityBoundingSet=~{capability}\n".encode(), DROP_IN)
            guest.check("systemctl daemon-reload; systemctl restart kjumpd", timeout=150)
            result = ctl(guest, "hibernate --json")
            require(f"{error} without {capability}", error in result.err, result)
            nothing_staged(guest)
        guest.check(f"rm {DROP_IN}; systemctl daemon-reload; systemctl restart kjumpd", timeout=150)
        with cycle(guest) as again:
            expect("result with all", last_cycle(again)["result"], "ok")
            found = ctl_json(again, "image info")["description"]
            require(
                "the direct map is recorded", found.get("page_offset"), found.get("page_offset")
            )


def other_release(suite: str) -> Scenario:
    """The same on another release of Debian, with its systemd."""

    def run(_image: Image) -> None:
        from .run import guest_image

        requests(guest_image(suite=suite))

    run.__doc__ = f"What logind offers, inhibitors, hooks, the sandbox, falling back: on {suite}."
    return run


ALWAYS: dict[str, Scenario] = {"requests": requests}
MORE: dict[str, Scenario] = {
    "noresume": noresume,
    "ways": ways,
    "killed": killed,
    "sandbox": sandbox,
    "requests-bookworm": other_release("bookworm"),
    "requests-testing": other_release("forky"),
}

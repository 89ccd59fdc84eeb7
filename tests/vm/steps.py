# SPDX-License-Identifier: GPL-2.0-or-later
"""What scenarios and the demonstration have in common: asking for a cycle and judging it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .guest import Guest, GuestError, Message, Result, Shape, tail
from .image import Image

Scenario = Callable[[Image], None]

CONFIGURATION = "/etc/kjump/kjump.conf.d/90-test.conf"
SWAP = "/dev/disk/by-partlabel/swap"
CACHED = Path(__file__).parents[1] / "cached.py"
SAVE = 400.0
"""Seconds until the machine is off or the session runs again, at the slowest, in emulation."""


REFUSED = "kjtest: hibernation was refused:"


def watch(asked: str) -> str:
    """A script that reports a failed request on the console: either the job has failed, or logind
    has not even made one, and then the file says so.  After a successful cycle the script goes on,
    and sees the next request."""
    failed = "systemctl -q is-failed systemd-hibernate.service"
    return f"""\
while sleep 1; do
    if grep -qs '^rc' {asked} || {failed}; then
        echo "{REFUSED} $(cat {asked})" >/dev/ttyS0
        break
    fi
done
"""


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise GuestError(f"{what}: {found!r}, expected {wanted!r}")


def require(what: str, holds: object, detail: object = "") -> None:
    if not holds:
        raise GuestError(f"{what} does not hold: {detail}")


def ready(guest: Guest) -> None:
    """Root's agent, the user's, and the daemon answer."""
    guest.wait_ready()
    guest.wait_ready(user=True)
    guest.check("systemctl start kjumpd.service", timeout=120)


@contextmanager
def at_work(image: Image, shape: Shape, mb: int = 100, *, deadline: float = 180) -> Iterator[Guest]:
    """A guest with the daemon and, within so many seconds, `mb` MiB of the user's work."""
    with Guest(image, shape) as guest:
        ready(guest)
        guest.start_work(mb, deadline=deadline)
        yield guest


def configure(guest: Guest, *lines: str) -> None:
    """Have these lines in the configuration; without any, only what was there before the test."""
    if lines:
        guest.put("".join(f"{line}\n" for line in lines).encode(), CONFIGURATION)
    else:
        guest.check(f"rm -f {CONFIGURATION}")
    guest.check("kjumpctl reload")


def ctl(guest: Guest, words: str, *, timeout: float = SAVE, user: bool = False) -> Result:
    """``kjumpctl`` with these words."""
    return guest.run(f"kjumpctl {words}", timeout=timeout, user=user)


def ctl_json(guest: Guest, words: str) -> Any:
    """What ``kjumpctl ... --json`` says, whatever its exit status."""
    result = ctl(guest, f"{words} --json")
    try:
        return json.loads(result.out)
    except ValueError:
        raise guest.error(f"kjumpctl {words} --json: {result.out!r} {result.err!r}") from None


def work_holds(guest: Guest) -> Message:
    """The user's work is unharmed and the clock right; otherwise the error names what is not."""
    answers = guest.work()
    lost = {name: entry for name, entry in answers.items() if not entry["ok"]}
    if lost:
        raise guest.error(f"the user's work: {lost}")
    return answers


def nothing_staged(guest: Guest) -> None:
    expect("staged kexec image", guest.check("cat /sys/kernel/kexec_loaded").strip(), "0")


def helper_not_cached(guest: Guest) -> None:
    """What was staged was not saved a second time, as the page cache of its files."""
    guest.put(CACHED.read_bytes(), "/tmp/cached.py")
    found = guest.check("python3 /tmp/cached.py /var/lib/kjump/helper-$(uname -r).img")
    require("the helper's initrd is not in the page cache", int(found) < 1 << 20, found)


def request(guest: Guest) -> int:
    """The user's ``systemctl hibernate``, in her session; not waited for."""
    guest.seen = len(guest.console())
    asked = f"/tmp/asked-{time.time_ns()}"
    guest.check("systemctl reset-failed systemd-hibernate.service || true")
    guest.spawn(watch(asked))
    script = f'systemctl hibernate >{asked} 2>&1 || echo "rc $?" >>{asked}'
    return guest.spawn(script, user=True)


def ends(guest: Guest, deadline: float, how: str = "poweroff") -> None:
    """The machine ends in this way; on failure the error shows the console."""
    found = guest.wait_exit(deadline)
    if found != how:
        resets = tail(guest.log("qemu"), 120)
        raise guest.error(f"the machine ended with {found}, expected {how}\n{resets}")


def power_off(guest: Guest, deadline: float = SAVE) -> None:
    """The machine saves and goes off.  On failure the daemon's journal is in the error."""
    end = time.monotonic() + deadline
    while guest.running:
        if time.monotonic() > end:
            raise guest.error("did not go off")
        if "jumping back to the session" in guest.console()[guest.seen :]:
            journal = guest.run("journalctl -b -n 40 --no-pager -u kjumpd", timeout=120).out
            raise guest.error(f"came back instead of going off:\n{journal}")
        if REFUSED in guest.console()[guest.seen :]:
            units = "-u kjumpd -u systemd-hibernate -u systemd-logind"
            journal = guest.run(f"journalctl -b -n 40 --no-pager {units}", timeout=120).out
            raise guest.error(f"hibernation was refused:\n{journal}")
        time.sleep(0.2)
    ends(guest, 10)


def hibernate(guest: Guest, deadline: float = SAVE) -> None:
    """Hibernate as the user does: the machine saves and goes off."""
    request(guest)
    power_off(guest, deadline)


@contextmanager
def cycle(guest: Guest, *, deadline: float = SAVE, **changes: Any) -> Iterator[Guest]:
    """Hibernate as the user does, power on again; the guest in which the session must run on."""
    hibernate(guest, deadline)
    with guest.again(**changes) as again:
        again.wait_ready(deadline)
        yield again


def hibernate_fails(guest: Guest, error: str) -> Message:
    """A request that must come back with this error; the last cycle's report."""
    result = ctl(guest, "hibernate --json")
    require(f"hibernate fails with {error}", result.rc != 0, result)
    last: Message = last_cycle(guest)
    expect("error of the cycle", last.get("error"), error)
    nothing_staged(guest)
    return last


def last_cycle(guest: Guest) -> Message:
    """The last cycle's report, from the daemon."""
    entries = ctl_json(guest, "history")
    require("there is a history", entries, entries)
    found: Message = entries[-1]
    return found


def went_well(guest: Guest) -> Message:
    """The user's work is unharmed and the last cycle succeeded; its report."""
    work_holds(guest)
    last = last_cycle(guest)
    print(last, flush=True)
    expect("result", last["result"], "ok")
    return last


def refused(guest: Guest, code: str, availability: str) -> None:
    """`CanHibernate` names this reason first, and a request is refused with the same name."""
    can = ctl_json(guest, "can-hibernate")
    require(f"can-hibernate names {code}", code in json.dumps(can), can)
    expect("can-hibernate", can["answer"], availability)
    result = ctl(guest, "hibernate --json")
    require("hibernate is refused", result.rc not in (0, 124), result)
    require(f"hibernate names {code}", code in result.out + result.err, result)
    nothing_staged(guest)


def session_is_gone(guest: Guest, error: str) -> None:
    """Nothing was resumed, and the daemon reports why."""
    ready(guest)
    require("the work is gone", not guest.work()["work"]["ok"])
    last = last_cycle(guest)
    expect("error reported by the daemon", last["error"], error)
    status = ctl(guest, "status").out
    require("status reports why", error in status or last["what"] in status, status)
    expect("state of the image", ctl_json(guest, "image info")["state"], "spent")


def normal_boot(guest: Guest, error: str) -> None:
    """This power-on is a boot, not a resume, and the console shows why."""
    guest.wait_console(r"kjump: not resumed: .*")
    session_is_gone(guest, error)
